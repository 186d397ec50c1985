import json
import textwrap
from pathlib import Path

import pytest
from goldens import regenerate
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from teukenjax.errors import UserError
from teukenjax.recipe import digest, flatten, load, to_yaml

SMALL = """
out: runs/test
steps: 10
model:
  {vocab_size: 300, width: 32, layers: 2, heads: 4, kv_heads: 2, head_dim: 8, ffn: 64, context: 16}
data: {store: stores/test}
batch: {sequences: 8}
optimizer: {name: scion}
schedule:
  - {shape: linear, steps: 2, start: 0.0}
  - {shape: constant}
"""


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file beside the others of the test."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def small(write) -> Path:
    return write(SMALL)


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "key", "hint"),
    [
        ("stesp=3", "stesp", "did you mean 'steps'?"),
        ("model.widht=3", "model.widht", "did you mean 'width'?"),
        ("schedule.0.shpae=linear", "schedule.0.shpae", "did you mean 'shape'?"),
        ("optimizer.momentun=0.5", "optimizer.momentun", "did you mean 'momentum'?"),
        ("optimizer.radius.hiden=2", "optimizer.radius.hiden", "did you mean 'hidden'?"),
        ("batch.zzz=3", "batch.zzz", "allowed: accumulation, sequences"),
    ],
)
def test_unknown_key_is_named_with_the_nearest_spelling(small, override, key, hint):
    assert complaint(small, override) == f"{small}: unknown key '{key}': {hint}"


def test_key_of_the_other_optimizer_is_unknown(small):
    assert "unknown key 'optimizer.momentum'" in complaint(
        small, "optimizer.name=adamw", "optimizer.momentum=0.5"
    )


@pytest.mark.parametrize("key", ["s[chedule", "adamw"])
def test_an_unknown_key_may_look_like_the_name_of_a_variant(small, key):
    small.write_text(f"{small.read_text()}\n{key}: 1\n")
    with pytest.raises(UserError) as caught:
        load(small)
    assert str(caught.value).startswith(f"{small}: unknown key '{key}': ")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=many", "key 'steps' is \"many\": input should be a valid integer"),
        ("steps=1.5", "key 'steps' is 1.5: input should be a valid integer"),
        ("steps=true", "key 'steps' is true: input should be a valid integer"),
        ("steps='10'", "key 'steps' is \"10\": input should be a valid integer"),
        ("steps=0", "key 'steps' is 0: input should be greater than 0"),
        ("steps=", "key 'steps' is null: input should be a valid integer"),
        ("model=3", "key 'model' is 3: input should be an object"),
        ("model.tied=1", "key 'model.tied' is 1: input should be a valid boolean"),
        ("prompt=3", "key 'prompt' is 3: input should be a valid string"),
        ("data.text=3", "key 'data.text' is 3: input should be a valid string"),
        ("data.weights.de=no", "key 'data.weights.de' is \"no\": input should be a valid number"),
        ("schedule.1.shape=flat", "input should be 'constant', 'linear' or 'cosine'"),
        ("optimizer.beta2=.nan", "unknown key 'optimizer.beta2'"),
        ("optimizer.learning_rate=.nan", "input should be a finite number"),
        ("optimizer.learning_rate=.inf", "input should be a finite number"),
        ("optimizer.learning_rate=1.5", "at most 1 with optimizer.constrained=true"),
        ("optimizer.multiplier.hidden=8192", "comes to 2 for the role hidden: at most 1"),
        ("optimizer.epsilon=1e-46", "optimizer.epsilon: 1e-46 is nothing in float32"),
        ("model.norm_epsilon=1e-46", "model.norm_epsilon: 1e-46 is nothing in float32"),
        ("steps=3000000000", "key 'steps' is 3000000000: input should be less than 2147483648"),
        ("compute.xla_flags.a=1.5", "key 'compute.xla_flags.a' is 1.5: input should be a valid b"),
        ("optimizer.name=", "key 'optimizer.name' is null: allowed: adamw, scion"),
        ("guard.timeout_s=.inf", "input should be a finite number"),
        ("model.z_loss=.inf", "input should be a finite number"),
        ("schedule.0.end=.inf", "input should be a finite number"),
        ("seed=4294967296", "key 'seed' is 4294967296: input should be less than 4294967296"),
        ("optimizer.name=adam", "key 'optimizer.name' is \"adam\": did you mean 'adamw'?"),
        ("optimizer.name=sgd", "key 'optimizer.name' is \"sgd\": allowed: adamw, scion"),
        ("optimizer={nesterov: true}", "key 'optimizer.name' is missing: allowed: adamw, scion"),
    ],
)
def test_wrong_value_is_named_with_its_key_and_what_is_allowed(small, override, expected):
    message = complaint(small, override)
    assert message.startswith(f"{small}: ")
    assert expected in message


@pytest.mark.parametrize("key", ["steps", "model", "model.width", "schedule.0.shape"])
def test_missing_key_is_named(write, key):
    values = YAML(typ="safe").load(SMALL)
    *parents, last = key.split(".")
    section = values
    for parent in parents:
        section = section[int(parent) if parent.isdecimal() else parent]
    del section[last]
    path = write(json.dumps(values))
    assert complaint(path) == f"{path}: key '{key}' is missing"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps", "expected key=value, as in steps=100"),
        ("=3", "expected key=value, as in steps=100"),
        ("schedule.2.end=3", "'2' is not one of 0 … 1"),
        ("schedule.-1.end=3", "'-1' is not one of 0 … 1"),
        ("schedule.first.end=3", "'first' is not one of 0 … 1"),
        ("schedule.²=3", "'²' is not one of 0 … 1"),
        ("steps.x=3", "'steps' has no keys"),
        ("steps.x.y=3", "nothing lies below a plain value"),
        ("steps=[1", "the value is not YAML"),
        ("prompt=one: two: three", "the value is not YAML"),
        ("steps=!!python/object:os.system 3", "the value is not YAML"),
    ],
)
def test_bad_override_is_quoted_with_the_reason(small, override, expected):
    message = complaint(small, override)
    assert message.startswith(f"override '{override}': ")
    assert expected in message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[" * 2000, "is nested too deeply"),
        ("1" * 5000, "a value is not what its tag says, or too long"),
        ("!!int x", "a value is not what its tag says, or too long"),
        ("!!float", "a value is not what its tag says, or too long"),
        ("{[1]: 2}", "a key is not text"),
    ],
)
def test_yaml_that_its_reader_fails_on_is_an_error_in_files_and_overrides(
    small, write, value, expected
):
    assert expected in complaint(small, f"steps={value}")
    assert expected in complaint(write(f"steps: {value}"))


def test_overrides_reach_nested_keys_list_items_and_sections_that_the_file_leaves_out(small):
    recipe = load(
        small,
        [
            "steps=20",
            "model.width=64",
            "schedule.0.steps=5",
            "schedule.1={shape: cosine, end: 0.1}",
            "evaluation.every=7",
            "data.weights.de=2",
            "data.weights.mt=1.5",
            "optimizer.radius.hidden=3",
        ],
    )
    assert (recipe.steps, recipe.model.width, recipe.evaluation.every) == (20, 64, 7)
    assert [phase.shape for phase in recipe.schedule] == ["linear", "cosine"]
    assert (recipe.schedule[0].steps, recipe.schedule[1].end) == (5, 0.1)
    assert recipe.data.weights == {"de": 2.0, "mt": 1.5}
    assert recipe.optimizer.radius.hidden == 3.0


def test_an_override_changes_nothing_else(small):
    before, after = flatten(load(small)), flatten(load(small, ["model.ffn=96"]))
    assert {key for key in before if before[key] != after[key]} == {"model.ffn"}


def test_later_override_wins(small):
    assert load(small, ["steps=3", "steps=4"]).steps == 4


def test_empty_override_unsets_an_optional_key(small):
    assert load(small, ["model.vocab_size="]).model.vocab_size is None


def test_numbers_and_words_are_those_of_yaml_1_2(small):
    recipe = load(small, ["optimizer.learning_rate=3e-4", "prompt=no", "data.temperature=2"])
    assert recipe.optimizer.learning_rate == 3e-4
    assert recipe.prompt == "no"
    assert recipe.data.temperature == 2.0


def test_a_date_is_a_name(small):
    assert load(small, ["out=2026-01-31"]).out == Path("2026-01-31")


def test_section_given_as_a_file_is_read_relative_to_the_recipe(write, tmp_path, monkeypatch):
    values = YAML(typ="safe").load(SMALL)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(json.dumps(values["model"]), "model.yaml")
    path = write(json.dumps(values | {"model": "../model.yaml"}), "recipes/test.yaml")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(path).model == load(write(SMALL)).model
    assert load(path, ["model.ffn=96"]).model.ffn == 96


def test_missing_file_is_named(tmp_path, write):
    path = tmp_path / "none.yaml"
    assert complaint(path) == f"{path}: cannot be read: No such file or directory"
    values = YAML(typ="safe").load(SMALL) | {"model": "models/none.yaml"}
    assert f"{tmp_path / 'models/none.yaml'}: cannot be read" in complaint(
        write(json.dumps(values))
    )


@pytest.mark.parametrize("text", ["", "just words", "- a list"])
def test_file_that_is_no_mapping_is_refused(write, text):
    assert "expected a mapping of keys to values" in complaint(write(text))


def test_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("prompt: Málta".encode("latin-1"))
    assert complaint(path) == f"{path}: cannot be read: not UTF-8 text"


@pytest.mark.parametrize("text", ["prompt: \0", "prompt: &loop [*loop]"])
def test_junk_and_cycles_are_one_line(write, text):
    message = complaint(write(text))
    assert message.startswith(str(write(text)))
    assert "\n" not in message


@pytest.mark.parametrize("broken", ["steps: [1", "steps: 1\nsteps: 2", "steps: a: b"])
def test_yaml_error_has_its_line_number(write, broken):
    lines = f"out: runs/test\n{broken}".count("\n") + 1
    assert f"line {lines}: " in complaint(write(f"out: runs/test\n{broken}"))


@pytest.mark.parametrize("path", regenerate.RECIPES, ids=lambda path: path.stem)
def test_written_recipe_reads_back_equal(path, write):
    recipe = load(path)
    written = write(to_yaml(recipe))
    assert load(written) == recipe
    assert to_yaml(load(written)) == to_yaml(recipe)


# ruamel.yaml writes U+0085, a control character of EBCDIC, as a line break: known, not ours.
PROMPTS = st.text(st.characters(codec="utf-8", exclude_characters="\x85"), max_size=200)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(prompt=PROMPTS, rate=st.floats(1e-300, 1e300))
def test_any_prompt_and_learning_rate_survive_writing(tmp_path_factory, prompt, rate):
    folder = tmp_path_factory.getbasetemp()
    original, written = folder / "original.yaml", folder / "written.yaml"
    original.write_text(SMALL, encoding="utf-8")
    recipe = load(original)
    optimizer = recipe.optimizer.model_copy(update={"learning_rate": rate, "constrained": False})
    recipe = recipe.model_copy(update={"prompt": prompt, "optimizer": optimizer})
    written.write_text(to_yaml(recipe), encoding="utf-8")
    assert load(written) == recipe


def test_digest_changes_with_any_value_and_not_with_formatting(small, write):
    recipe = load(small)
    spelled = write(json.dumps(YAML(typ="safe").load(SMALL)), "other.yaml")
    explicit = write(to_yaml(recipe), "explicit.yaml")  # every default written out
    assert digest(load(spelled)) == digest(load(explicit)) == digest(recipe)
    overrides = ("seed=43", "model.ffn=65", "schedule.0.start=0.1", "prompt=a", "data.weights.de=1")
    digests = {digest(load(small, [override])) for override in overrides}
    assert len(digests | {digest(recipe)}) == 1 + len(overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.kv_heads=3"], "model: heads=4 must be a multiple of kv_heads=3"),
        (["model.head_dim=7"], "model: head_dim=7 must be even: RoPE rotates pairs"),
        (["batch.accumulation=3"], "batch: sequences=8 must be a multiple of accumulation=3"),
        (["optimizer.weight_decay=0.1"], "optimizer: weight_decay needs constrained=false"),
        (["schedule.1.end=0.5"], "schedule.1: a constant phase has start == end, not 1.0 and 0.5"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(small, overrides, expected):
    assert expected in complaint(small, *overrides)


def test_decay_is_allowed_without_the_constraint(small):
    recipe = load(small, ["optimizer.weight_decay=0.1", "optimizer.constrained=false"])
    assert recipe.optimizer.weight_decay == 0.1


def test_resolved_recipes_are_those_of_the_goldens():
    files = regenerate.recipes()
    regenerate.check(files)
    stored = {f"recipes/{path.name}" for path in (regenerate.HERE / "recipes").iterdir()}
    assert stored == set(files)


def test_a_mixture_may_be_a_file_in_a_recipe_and_on_the_command_line(write, small):
    mixture = write("{stages: [{tokens: 5, weights: {de: 1}}, {}]}", "mix.yaml")
    named = write(SMALL.replace("{store: stores/test}", "{mixture: mix.yaml}"), "named.yaml")
    stages = load(named).data.mixture.stages
    assert [stage.tokens for stage in stages] == [5, None]
    assert load(small, [f"data.mixture={mixture}"]).data.mixture.stages == stages
    data = write("{store: stores/test, mixture: mix.yaml}", "data.yaml")
    assert load(small, [f"data={data}"]).data.mixture.stages == stages


def test_a_word_for_a_section_is_a_file_that_is_not_there(small):
    assert complaint(small, "data.mixture=x.yaml") == (
        "key 'data.mixture' is \"x.yaml\": a mapping, or the file of one: "
        "x.yaml: cannot be read: No such file or directory"
    )


def test_an_override_changes_one_of_the_places_of_an_alias(write):
    stages = "stages: [&s {tokens: 7}, *s, {}]"
    path = write(SMALL.replace("{store: stores/test}", f"{{mixture: {{{stages}}}}}"))
    recipe = load(path, ["data.mixture.stages.0.tokens=5"])
    assert [stage.tokens for stage in recipe.data.mixture.stages] == [5, 7, None]


@pytest.mark.parametrize("path", sorted(Path("configs/mixtures").glob("*.yaml")), ids=str)
def test_every_shipped_mixture_is_one(small, path):
    recipe = load(small, [f"data.mixture={path}"])
    assert load(small, [f"data={json.dumps(recipe.data.model_dump(mode='json'))}"]) == recipe
