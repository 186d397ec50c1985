"""Instruction tuning from a base: what it begins with, trains, resumes and leaves."""

import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from teukenjax.errors import UserError
from teukenjax.interop import export_run
from teukenjax.recipe import Recipe, to_yaml
from teukenjax.run import load_run
from teukenjax.train.loop import Run, train
from teukenjax.train.metrics import read_metrics
from teukenjax.train.tuning import TuningSource, tune

ADAMW = {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.0}
TURNS = {"en": ("Who are you?", "A model."), "mt": ("Min int?", "Mudell.")}


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """Eight conversations in each of two languages, short enough for the tiny context."""
    file = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    rows = []
    for language, (question, answer) in TURNS.items():
        for number in range(8):
            turn = {"role": "user", "content": f"{question} {number}"}
            messages = [{"role": "system", "content": "x"}, turn]
            messages.append({"role": "assistant", "content": answer})
            rows.append({"messages": messages, "language": language})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def base(make_recipe_at, tmp_path_factory):
    recipe = make_recipe_at(tmp_path_factory.mktemp("base"), "base", steps=2, optimizer=ADAMW)
    return train(recipe, Console(quiet=True))


@pytest.fixture
def make_sft(make_recipe, chat, base):
    """``make_sft(name, lora=…, **other sections)``: a recipe that tunes the base."""

    def make(name="tuned", steps=4, sft=None, **changes) -> Recipe:
        model = make_recipe().model.model_dump() | {"context": 64}
        section = {"base": str(base), "sources": [{"data": str(chat)}], "holdout": 0.25}
        values = {
            "optimizer": ADAMW, "model": model, "data": {"packing": "best_fit"},
            "batch": {"sequences": 8}, "checkpoint": {"every": 2},
            "sft": section | (sft or {}),
        }  # fmt: skip
        return make_recipe(name, steps=steps, **values | changes)

    return make


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


def test_mistakes_are_said_in_one_line(make_sft, make_recipe, console):
    model = make_sft().model.model_dump() | {"ffn": 48}
    with pytest.raises(UserError, match=r"model.ffn=48: sft.base .* has 64"):
        Run(make_sft("a", model=model), console, TuningSource)
    with pytest.raises(UserError, match=r"then data.tokenizer must name a tokenizer"):
        Run(make_sft("b", sft={"base": None}), console, TuningSource)
    with pytest.raises(UserError, match=r"has no section sft: it is one for `teukenjax train`"):
        tune(make_recipe("c"), console)
    short = make_sft().model.model_dump() | {"context": 16}
    with pytest.raises(UserError, match=r"chat.jsonl:\d+: the conversation has"):
        Run(make_sft("d", model=short), console, TuningSource)


def test_other_conversations_do_not_resume_a_run(make_sft, console):
    train(make_sft(steps=2), console, TuningSource)
    with pytest.raises(UserError, match=r"sft\.holdout was 0.25 .* cannot become 0.5"):
        Run(make_sft(sft={"holdout": 0.5}), console, TuningSource)
