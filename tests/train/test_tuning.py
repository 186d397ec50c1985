"""Instruction tuning from a base: what it begins with, trains, resumes and leaves."""

import io
import json

import jax
import numpy as np
import pytest
from conversations import ADAMW, TURNS
from rich.console import Console

from teukenjax.checkpoint import Checkpoints
from teukenjax.errors import UserError
from teukenjax.evaluate.command import token_shares
from teukenjax.interop import export_run
from teukenjax.model.lora import Adapted
from teukenjax.recipe import to_yaml
from teukenjax.run import LoadedRun, RunDirectory, load_run
from teukenjax.train.loop import Run, train
from teukenjax.train.metrics import read_metrics
from teukenjax.train.report import print_next
from teukenjax.train.tuning import TuningSource, tune


def params_of(path) -> dict:
    return jax.device_get(load_run(path, devices=jax.devices()[:1]).params)


def test_tuning_lowers_the_bits_of_held_out_answers_and_shows_them(make_sft):
    screen = io.StringIO()
    path = tune(make_sft(steps=20), Console(file=screen, width=160))
    rows = json.loads((path / "eval.json").read_text())
    first, last = rows[0]["languages"], rows[-1]["languages"]
    assert first.keys() == set(TURNS)
    for language, (_, answer) in TURNS.items():
        assert first[language]["bytes"] == len(answer)  # one conversation is scored
        assert last[language]["bits_per_byte"] < 0.5 * first[language]["bits_per_byte"]
    said = screen.getvalue()
    assert "conversations 12 in 2 languages" in said
    assert "held out 4" in said
    assert "Who are you? " in said
    assert "after: " in said


def test_it_begins_with_the_bases_weights(make_sft, base, console):
    run = Run(make_sft(), console, TuningSource)
    state, first = run._start()
    assert first == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), params_of(base))
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(state.opt_state.inner))
    run._close()


def test_adapters_are_trained_alone_merged_when_loaded_and_exported(
    make_sft, base, console, tmp_path
):
    lora = {"rank": 2, "alpha": 4.0, "targets": ["query", "up"]}
    run = Run(make_sft(sft={"lora": lora}), console, TuningSource)
    held = jax.tree.leaves(run.program.abstract_state.opt_state.inner)
    adapters, frozen = run.program.model.split(run.program.abstract_state.params)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (adapters, frozen)]
    assert sum(leaf.size for leaf in held if leaf.ndim) == 2 * sizes[0] < sizes[1] / 4
    run.train()
    before, after = params_of(base), params_of(run.directory.path)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    changed = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    )
    names = {path[-1].key for path, differs in changed if differs}
    assert names == {"query", "up"}
    export_run(run.directory.path, tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").is_file()


def scores(model, params, tokens) -> np.ndarray:
    """Logits on the model's mesh."""

    def logits(params, tokens):
        module = model.bind(params)
        return module.logits(module.hidden(tokens))

    return np.asarray(
        jax.jit(logits)(params, jax.device_put(tokens, model.layout.batch(trailing=1)))
    )


@pytest.mark.hf
@pytest.mark.filterwarnings("default")
def test_an_export_has_the_logits_of_the_model_with_adapters(make_sft, console, tmp_path):
    """transformers on the merged weights, beside our model that adds the adapters up."""
    import torch
    from transformers import AutoModelForCausalLM

    lora = {"rank": 2, "alpha": 4.0}
    run = Run(make_sft(sft={"lora": lora}), console, TuningSource)
    run.train()
    model = run.program.model
    assert isinstance(model, Adapted)
    saved = Checkpoints(run.directory.path)
    params = saved.restore_params(4, run.program.abstract_state.params)
    saved.close()
    tokens = np.arange(8 * 24, dtype=np.int32).reshape(8, 24) * 7 % run.recipe.model.vocab_size
    ours = scores(model, params, tokens)
    export_run(run.directory.path, tmp_path / "hf", dtype="fp32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)  # as tests/interop/test_hf_parity
    plain = scores(model.inner, params["base"], tokens)
    assert np.abs(plain - expected).max() > 0.01  # the adapters say something


@pytest.mark.parametrize("sft", [{"lora": {"rank": 2, "alpha": 4.0}, "neftune": 5.0}])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(make_sft, console, sft):
    whole = train(make_sft("whole", sft=sft), console, TuningSource)
    train(make_sft("parts", steps=2, sft=sft), console, TuningSource)
    parts = train(make_sft("parts", sft=sft), console, TuningSource)
    losses = [
        [row["loss"] for row in read_metrics(path / "metrics.jsonl")] for path in (whole, parts)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    jax.tree.map(np.testing.assert_array_equal, params_of(whole), params_of(parts))


def test_a_recipe_as_base_is_trained_first(make_recipe, make_sft, tmp_path):
    recipe = make_recipe("first", steps=2, optimizer=ADAMW)
    file = tmp_path / "first.yaml"
    file.write_text(to_yaml(recipe))
    for expected in (True, False):  # not a second time
        screen = io.StringIO()
        console = Console(file=screen, width=200)
        run = Run(make_sft(f"of{expected}", sft={"base": str(file)}), console, TuningSource)
        run.checkpoints.close()
        assert ("training it first" in screen.getvalue()) == expected
    assert load_run(recipe.out).step == 2


def test_what_is_printed_next_is_of_tuning(make_sft, make_recipe, tmp_path):
    for recipe, expected in (
        (make_sft(), ["chat {run} --language de", "sft {run}/recipe.yaml steps=8"]),
        (
            make_recipe("text", steps=3),
            ["generate {run} --prompt", "train {run}/recipe.yaml steps=6"],
        ),
    ):
        run = RunDirectory(recipe).path
        screen = io.StringIO()
        print_next(Console(file=screen), run)
        for command in (*expected, "export {run} {run}/hf"):
            assert f"uv run teukenjax {command.format(run=run)}" in screen.getvalue()


def test_gaps_ask_for_the_run_that_a_tuned_one_began_with(make_recipe, make_sft, base, tmp_path):
    file = tmp_path / "first.yaml"
    file.write_text(to_yaml(make_recipe("first")))
    for given, told in (
        (str(base), f"give the run that it began with, {base}"),
        (str(file), f"give the run that it began with, {tmp_path / 'first'}"),
        (None, "it began with none"),
    ):
        tuned = LoadedRun(tmp_path, make_sft(sft={"base": given}), None, None, {}, 4)
        with pytest.raises(UserError) as error:
            token_shares(tuned)
        assert str(error.value) == f"--gaps: {tmp_path} was tuned on conversations: {told}"


def test_mistakes_are_said_in_one_line(make_sft, make_recipe, console):
    model = make_sft().model.model_dump() | {"ffn": 48}
    with pytest.raises(UserError, match=r"model.ffn=48: sft.base .* has 64"):
        Run(make_sft("a", model=model), console, TuningSource)
    with pytest.raises(UserError, match=r"then data.tokenizer must name a tokenizer"):
        Run(make_sft("b", sft={"base": None}), console, TuningSource)
    with pytest.raises(UserError, match=r"has no section sft: it is one for `teukenjax train`"):
        tune(make_recipe("c"), console)
    with pytest.raises(UserError, match=r"has a section sft: it is one for `teukenjax sft`"):
        train(make_sft("e"), console)
    short = make_sft().model.model_dump() | {"context": 8}
    with pytest.raises(
        UserError, match=r"no conversation is left .* 16 longer than model.context=8"
    ):
        Run(make_sft("f", model=short, sft={"too_long": "skip"}), console, TuningSource)
    short = make_sft().model.model_dump() | {"context": 16}
    with pytest.raises(UserError, match=r"chat.jsonl:\d+: the conversation has"):
        Run(make_sft("d", model=short), console, TuningSource)


def test_other_conversations_do_not_resume_a_run(make_sft, console):
    train(make_sft(steps=2), console, TuningSource)
    with pytest.raises(UserError, match=r"sft\.holdout was 0.25 .* cannot become 0.5"):
        Run(make_sft(sft={"holdout": 0.5}), console, TuningSource)
