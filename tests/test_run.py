"""The run directory: what it accepts, what it refuses."""

import pytest

from teukenjax.checkpoint import find
from teukenjax.data.tokenizer import train_tokenizer
from teukenjax.errors import UserError
from teukenjax.recipe import Recipe, load, validate
from teukenjax.run import RunDirectory
from teukenjax.train.goodput import Goodput

MODEL = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn": 32}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one small text about bread and rivers"] * 3, vocab_size=534)


@pytest.fixture
def make_recipe(tmp_path):
    def make(**changes) -> Recipe:
        values = {
            "out": str(tmp_path / "run"),
            "steps": 5,
            "model": MODEL,
            "data": {},
            "batch": {"sequences": 16},
            "optimizer": {"name": "scion"},
        }
        return validate(Recipe, values | changes, "test")

    return make


@pytest.fixture
def begun(make_recipe, tokenizer):
    """The recipe of a run that has saved a checkpoint."""
    recipe = make_recipe()
    RunDirectory(recipe).adopt(recipe, tokenizer)
    (recipe.out / "checkpoints/5").mkdir(parents=True)
    return recipe


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 8}, "seed was 42 .* cannot become 8"),
        ({"batch": {"sequences": 8}}, "batch.sequences was 16 .* cannot become 8"),
        ({"optimizer": {"name": "adamw"}}, "optimizer.name was scion .* cannot become adamw"),
        ({"model": MODEL | {"ffn": 64}}, "model.ffn was 32 .* cannot become 64"),
        ({"data": {"temperature": 2.0}}, "data.temperature was 1.0 .* cannot become 2.0"),
        ({"data": {"packing": "best_fit"}}, "data.packing was concat .* cannot become best_fit"),
        ({"data": {"segments": True}}, "data.segments was False .* cannot become True"),
        ({"data": {"mixture": {}}}, "data.mixture"),
        ({"telemetry": {"every": None}}, "telemetry.every was 20 .* cannot become None"),
        (
            {"optimizer": {"name": "scion", "clip_norm": 1.0}},
            "optimizer.clip_norm was None .* cannot become 1.0",
        ),
    ],
)
def test_what_would_break_a_begun_run_is_refused(changes, named, begun, make_recipe, tokenizer):
    before = (begun.out / "recipe.yaml").read_text()
    recipe = make_recipe(**changes)
    with pytest.raises(UserError, match=named):
        RunDirectory(recipe).adopt(recipe, tokenizer)
    assert (begun.out / "recipe.yaml").read_text() == before


def test_the_rest_may_change_and_is_told(begun, make_recipe, tokenizer):
    recipe = make_recipe(steps=9, batch={"sequences": 16, "accumulation": 2})
    changed = RunDirectory(recipe).adopt(recipe, tokenizer)
    assert changed == {"steps": (5, 9), "batch.accumulation": (1, 2)}
    assert load(begun.out / "recipe.yaml") == recipe


def test_before_the_first_checkpoint_everything_may_change(make_recipe, tokenizer):
    recipe = make_recipe()
    RunDirectory(recipe).adopt(recipe, tokenizer)
    (recipe.out / "checkpoints").mkdir()  # a run has it from its start on
    recipe = make_recipe(seed=8)
    assert RunDirectory(recipe).adopt(recipe, tokenizer) == {"seed": (42, 8)}


@pytest.mark.parametrize("size", [534, 533])
def test_another_tokenizer_is_refused(begun, make_recipe, size):
    other = train_tokenizer(["one tall text about bread and rivers"] * 3, vocab_size=size)
    recipe = make_recipe(model=MODEL | {"vocab_size": size})
    with pytest.raises(UserError, match=r"tokenizer .* differs from the run's"):
        RunDirectory(recipe).adopt(recipe, other)


def test_a_damaged_file_of_rows_is_named(begun, tmp_path):
    directory = RunDirectory(begun)
    for name in ("eval.json", "benchmarks.jsonl"):
        (begun.out / name).write_text('[{"step": 5')
    for read in (directory.evaluations, lambda: directory.record_benchmarks(6, {})):
        with pytest.raises(UserError, match="is damaged: not JSON: remove it"):
            read()
    (tmp_path / "goodput.json").write_text("[{")
    with pytest.raises(UserError, match=r"goodput\.json: is damaged: not JSON: remove it"):
        Goodput().write(tmp_path / "goodput.json", steps=1, repeated=0)


def test_a_directory_with_other_things_in_it_is_refused(make_recipe):
    recipe = make_recipe()
    recipe.out.mkdir()
    (recipe.out / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty and not a run directory"):
        RunDirectory(recipe)
    assert [file.name for file in recipe.out.iterdir()] == ["thesis.tex"]


def test_out_that_is_a_file_is_refused(make_recipe):
    recipe = make_recipe()
    recipe.out.write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        RunDirectory(recipe)


def test_find_refuses_what_is_no_run(tmp_path, begun):
    with pytest.raises(UserError, match="no such run directory"):
        find(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run directory"):
        find(tmp_path)
    (begun.out / "checkpoints/5").rmdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        find(begun.out)
