"""The adapter beside the harness's own Hugging Face backend, on the same exported weights."""

import jax
import local_tasks
import numpy as np
import pytest
from hf_case import random_parameters, small_config
from lm_eval.api.instance import Instance
from tiny import eight_devices, model_of, place

from teukenjax.data.prepare import SAMPLE
from teukenjax.data.tokenizer import FIXED_PIECES, train_tokenizer
from teukenjax.errors import UserError
from teukenjax.evaluate.benchmarks import run_suite
from teukenjax.evaluate.harness import TeukenLM
from teukenjax.evaluate.suite import Questions
from teukenjax.interop import export_hf
from teukenjax.model import logits

# Warnings of the harness, of datasets and of transformers are not ours to mend.
pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("default")]
BYTES = slice(FIXED_PIECES - 256, FIXED_PIECES)
CONTEXT = 512  # the harness wants room for 256 new tokens
# ln p of up to 40 tokens, each within 1e-4 of torch's (tests/interop/test_hf_parity).
ATOL = 4e-3


@pytest.fixture(scope="module")
def tokenizer():
    texts = [file.read_text(encoding="utf-8") for file in sorted(SAMPLE.glob("*.txt"))]
    return train_tokenizer(texts, vocab_size=1500)


@pytest.fixture(scope="module")
def case(tokenizer):
    config = small_config(tied=True, vocab_size=tokenizer.vocab_size)
    config = config.model_copy(update={"context": CONTEXT})
    params = random_parameters(config)
    # Bytes are never likeliest: two libraries show bytes that are no character differently.
    params["embed"]["table"][BYTES] = 0
    return config, params


@pytest.fixture(scope="module")
def theirs(case, tokenizer, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    from lm_eval.models.huggingface import HFLM

    config, params = case
    folder = tmp_path_factory.mktemp("export") / "hf"
    export_hf(config, params, tokenizer.model, folder, dtype="float32")
    yield HFLM(
        pretrained=str(folder), dtype="float32", device="cpu", batch_size=4,
        prefix_token_id=tokenizer.eod_id, max_length=CONTEXT,
    )  # fmt: skip
    patch.undo()


def ours(case, tokenizer, layout=None) -> TeukenLM:
    config, params = case
    model = model_of(config, layout, head_chunk=32)
    return TeukenLM(model, place(model, params), tokenizer, batch_tokens=1024)


@pytest.fixture(scope="module")
def mine(case, tokenizer):
    return ours(case, tokenizer, eight_devices("fsdp"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return local_tasks.write(tmp_path_factory.mktemp("tasks"))


def requests(kind: str, *arguments) -> list[Instance]:
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def pairs() -> list[tuple[str, str]]:
    """Contexts of many lengths; one empty, one longer than the model reads."""
    texts = {name: (SAMPLE / f"{name}.txt").read_text()[:9000] for name in ("en", "bg", "ga")}
    some = [(text[:cut], text[cut : cut + 40]) for text in texts.values() for cut in (3, 90, 400)]
    return [*some, ("", "The river"), (texts["en"][:8000], " and the end"), ("Question: ", "Yes")]


def test_log_likelihoods_and_greediness_are_those_of_the_hf_backend(mine, theirs):
    asked = requests("loglikelihood", *pairs())
    (found, greedy), (expected, their_greedy) = (
        zip(*lm.loglikelihood(asked, disable_tqdm=True), strict=True) for lm in (mine, theirs)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)
    assert greedy == their_greedy


def test_a_greedy_continuation_is_known_as_one(mine, case):
    config, params = case
    ids = mine.tok_encode("The river")
    likeliest = int(np.argmax(logits(config, params, np.array([ids], np.int32))[0, -1]))
    asked = [(None, ids, [likeliest]), (None, ids, [likeliest - 1]), (None, ids, [likeliest, 7, 9])]
    assert [greedy for _, greedy in mine._loglikelihood_tokens(asked)] == [True, False, False]


def test_rolling_log_likelihoods_are_those_of_the_hf_backend(mine, theirs):
    long = (SAMPLE / "fi.txt").read_text()[:6000]
    asked = requests("loglikelihood_rolling", (long,), ("Bonġu",))
    found = mine.loglikelihood_rolling(asked, disable_tqdm=True)
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


LANGUAGES = ("de", "el", "bg", "ga", "mt")


def questions() -> list[tuple[str, dict]]:
    """Of five languages, from one word to more than the context, cut and stopped differently."""
    asked = []
    for language in LANGUAGES:
        text = (SAMPLE / f"{language}.txt").read_text(encoding="utf-8")
        for number, length in enumerate((9, 200, 1500, 6000)):
            until = [["\n\n", "a"], ["ε"], "\n", []][number]
            options = {"until": until, "max_gen_toks": (24, 5, 40, 60)[number]}
            asked.append((text[:length], options | {"do_sample": False, "temperature": 0.0}))
    return [*asked, ("Frage: Wer?\nAntwort:", {"until": ["Frage:"], "max_new_tokens": 7})]


def test_generation_is_that_of_the_hf_backend(mine, theirs):
    asked = requests("generate_until", *questions())
    found, expected = (lm.generate_until(asked, disable_tqdm=True) for lm in (mine, theirs))
    assert found == expected
    stopped = [
        len(mine.tok_encode(text)) < options.get("max_gen_toks", 7)
        for text, (_, options) in zip(found, questions(), strict=True)
    ]
    assert any(stopped)
    assert not all(stopped)


def test_generation_follows_the_parameters_that_are_asked(mine, case, tokenizer):
    """In training they are others each time."""
    config, params = case
    asked = requests("generate_until", *questions()[:2])
    before, kept = mine.generate_until(asked), mine.params
    flipped = jax.tree.map(lambda x: x[..., ::-1], params)
    mine.params = place(mine.model, flipped)
    after = mine.generate_until(asked)
    mine.params = kept
    assert after != before
    assert after == ours((config, flipped), tokenizer).generate_until(asked)
    assert mine.generate_until(asked) == before


def test_prompts_that_do_not_fit_are_counted_once_and_choices_that_do_not_are_refused(
    case, tokenizer, capsys
):
    lm = ours(case, tokenizer)
    long = (SAMPLE / "fi.txt").read_text()[:6000]
    lm.loglikelihood(requests("loglikelihood", (long, " a"), (long, " b"), ("Q", " a")))
    assert lm.cut_prompts == 1
    # Of 512 tokens 505 leave room for seven.
    options = {"max_gen_toks": 505, "until": ["a"]}
    lm.generate_until(requests("generate_until", (long, options), ("Q", options)))
    assert lm.cut_prompts == 1  # the same one
    lm.generate_until(requests("generate_until", ("one two three four five six", options)))
    assert lm.cut_said.startswith("2 prompts did not fit in the model's context of 512 tokens")
    lm.loglikelihood_rolling(requests("loglikelihood_rolling", (long,)))
    assert lm.cut_prompts == 2  # windows fit
    assert "Tokenizing" not in capsys.readouterr().err  # no bar where there is no terminal
    with pytest.raises(UserError, match=r"a choice of \d+ tokens does not fit in .* 512 tokens"):
        lm.loglikelihood(requests("loglikelihood", ("Q", long)))


def test_options_that_are_not_known_and_answers_without_room_are_refused(mine):
    for options, message in (
        ({"num_beams": 4}, "generation_kwargs 'num_beams': allowed: do_sample"),
        ({"max_gen_toks": CONTEXT}, f"max_gen_toks={CONTEXT}: leaves no room"),
    ):
        with pytest.raises(UserError, match=message):
            mine.generate_until(requests("generate_until", ("Q", options)))
    suite = local_tasks.suite()
    long = suite.tasks["gsm8k"].model_copy(update={"new_tokens": 600})
    with pytest.raises(UserError, match=r"tasks.gsm8k.new_tokens=600: leaves no room"):
        run_suite(mine, Questions(suite.model_copy(update={"tasks": {"gsm8k": long}})))


def test_every_score_of_a_suite_is_that_of_the_hf_backend(mine, theirs, folder):
    suite = local_tasks.suite()
    found, expected = (run_suite(lm, Questions(suite, folder)) for lm in (mine, theirs))
    assert found.keys() == set(local_tasks.KINDS)
    for task, languages in expected.items():
        assert languages.keys() == set(local_tasks.LANGUAGES)
        for language, values in languages.items():
            assert found[task][language].keys() == values.keys()
            for metric, value in values.items():
                atol = ATOL if task == "truthfulqa_mc2" else 0  # the others count
                np.testing.assert_allclose(found[task][language][metric], value, atol=atol)
    assert {"acc", "acc_norm", "questions"} == found["arc"]["de"].keys()
    assert 0 < found["arc"]["el"]["acc_norm"] < 1


def test_the_mesh_does_not_change_scores(mine, case, tokenizer, folder):
    suite = local_tasks.suite(languages=("mt",), tasks={"arc": ARC})
    alone, questions = ours(case, tokenizer), Questions(suite, folder)
    assert run_suite(alone, questions) == run_suite(mine, questions)
    assert jax.tree.leaves(mine.params)[0].sharding.num_devices == 8


ARC = {"kind": "arc", "split": "test", "shots": 0, "metric": "acc"}
