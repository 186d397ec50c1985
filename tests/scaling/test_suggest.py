"""Suggestions: the rule's numbers in a recipe's units, and what they do not rest on."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from teukenjax.errors import UserError
from teukenjax.recipe import Recipe, load, validate
from teukenjax.scaling import published
from teukenjax.scaling.rules import Rules
from teukenjax.scaling.suggest import print_suggestion, suggest

PROXY = "configs/recipes/norm-proxy.yaml"


def test_the_papers_proxy_gets_the_papers_rule():
    made = suggest(load(PROXY), published.rules(), tokens=2.0**33)
    # B* = 0.00867 · 2^(0.45 · 33) = 256; η* = 2^(0.619 · 8 − 0.558 · 33 + 9.76) = 2^−3.70
    assert made.recipe.batch.sequences == 256
    assert made.log2_rate[0] == pytest.approx(0.619 * 8 - 0.558 * 33 + 9.76, abs=0.02)
    assert made.log2_rate[1] > 0.5  # the scatter of one run
    assert made.recipe.steps == 2**33 // (256 * 4096)
    assert made.caveats == []


def test_a_batch_is_counted_in_tokens_whatever_the_context():
    long = suggest(load(PROXY), published.rules(), tokens=2.0**33)
    short = suggest(load(PROXY, ["model.context=1024"]), published.rules(), tokens=2.0**33)
    assert short.recipe.tokens_per_step == long.recipe.tokens_per_step
    assert short.log2_rate == pytest.approx(long.log2_rate)
    assert short.log2_batch[0] == pytest.approx(long.log2_batch[0] + 2)


def test_every_difference_from_what_was_measured_is_said():
    phases = "schedule=[{shape: constant, steps: 9}, {shape: constant, start: 0.5, end: 0.5}]"
    changes = ["optimizer.momentum=0.9", "model.norm_gain=true", phases]
    made = suggest(load(PROXY, changes), published.rules(), tokens=2.0**39)
    assert made.caveats == [
        "model.norm_gain=true",
        "optimizer.momentum=0.9",
        "a schedule that is not constant",
        "2.0 octaves of tokens outside of 2^29 … 2^37",
    ]


def test_what_cannot_be_suggested_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.name=adamw"):
        suggest(load("configs/recipes/teuken-7b.yaml"), published.rules(), tokens=1e11)
    with pytest.raises(UserError, match="--tokens -1: must be positive"):
        suggest(load(PROXY), published.rules(), tokens=-1.0)
    with pytest.raises(UserError, match="--tokens inf: must be positive and finite"):
        suggest(load(PROXY), published.rules(), tokens=float("inf"))
    with pytest.raises(UserError, match="less than a step"):
        suggest(load(PROXY), published.rules(), tokens=5.0)


def test_a_batch_is_one_that_its_micro_batches_divide():
    made = suggest(load(PROXY, ["batch.accumulation=3", "batch.sequences=3"]), published.rules(),
                   tokens=2.0**33)  # fmt: skip
    assert made.recipe.batch.sequences == 3 * 64
    assert validate(Recipe, made.recipe.model_dump(mode="json"), "made") == made.recipe


@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("output", "‖W_out‖ RMS→∞ of 2^5.0 ± 1.0 at the end (norm/weight/output/rms_to_inf"),
        ("hidden", "‖W_hidden‖ RMS→RMS of 2^5.0 ± 1.0 at the end (norm/weight/hidden/rms_to_rms"),
        ("input", "‖W_in‖ 1→RMS of 2^5.0 ± 1.0 at the end (norm/weight/input/one_to_rms"),
    ],
)
def test_the_norm_to_look_for_is_that_of_the_fitted_role(role, said, tmp_path):
    dataclasses.replace(published.rules(), role=role, log2_norm=(5.0, 1.0)).save(
        tmp_path / "f.json"
    )
    rules, console = Rules.load(tmp_path / "f.json"), Console(file=io.StringIO(), width=200)
    print_suggestion(console, suggest(load(PROXY), rules, tokens=2.0**33), rules)
    assert said in console.file.getvalue()


def test_rounding_goes_to_the_nearest_power_of_two():
    for tokens in 2.0 ** np.arange(29, 38):
        made = suggest(load(PROXY), published.rules(), tokens=float(tokens))
        assert abs(np.log2(made.recipe.batch.sequences) - made.log2_batch[0]) <= 0.5
