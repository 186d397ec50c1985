"""Conversations in rows: whole, apart from each other, in the shares asked for."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teukenjax.data.chat.sources import read_sources
from teukenjax.data.chat.stream import ChatStream, load_chat
from teukenjax.data.chat.template import Template
from teukenjax.errors import UserError
from teukenjax.recipe import ChatSource, Recipe, SftConfig, validate

MODEL = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn": 16}


@pytest.fixture
def make(tmp_path):
    """A recipe on the toy set: ``make(context=…, weights=…, **of the section sft)``."""

    def make(context=512, data=None, **sft) -> Recipe:
        values = {
            "out": str(tmp_path / "run"), "steps": 1, "batch": {"sequences": 8},
            "model": MODEL | {"context": context}, "optimizer": {"name": "adamw"},
            "data": {"packing": "best_fit"} | (data or {}),
            "sft": {"sources": [{"data": "toy"}]} | sft,
        }  # fmt: skip
        return validate(Recipe, values, "test")

    return make


def line(question="Wer?", answer="Ich.", **changes) -> dict:
    asked = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    return {"messages": list(asked), "language": "de"} | changes


@pytest.fixture
def file(tmp_path):
    def write(*rows: dict | str, name="chat.jsonl"):
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def sources(*paths, **options) -> SftConfig:
    return SftConfig(sources=tuple(ChatSource(data=path) for path in paths), **options)


def test_every_conversation_is_in_one_row_whole_and_by_itself(make, tokenizer):
    data = load_chat(make(), tokenizer)
    stream = ChatStream(make(data={"weights": {"fi": 1.0}}), data)
    rows = stream.mixture.windows["fi"]
    found = []
    for index in range(rows):
        sample = stream.sample(index)
        tokens, segments = sample["tokens"], sample["segments"]
        for number in range(1, segments.max() + 1):
            (places,) = np.nonzero(segments == number)
            assert (np.diff(places) == 1).all()
            assert sample["positions"][places].tolist() == list(range(len(places)))
            # Targets of a segment's own tokens; what follows the last is another conversation's.
            weights = sample["weights"][places[:-1]]
            assert sample["weights"][places[-1] : places[-1] + 1].sum() == (places[-1] == 511)
            found.append((tokens[places].tolist(), weights.tolist()))
        assert not sample["weights"][segments == 0].any()
    expected = [(one.ids.tolist(), one.weights[1:].tolist()) for one in data.train["fi"]]
    assert sorted(ids for ids, _ in found) == sorted(ids for ids, _ in expected)
    assert sorted(weights for _, weights in found) == sorted(weights for _, weights in expected)


def test_weights_of_languages_are_kept(make, tokenizer):
    recipe = make(data={"weights": {"mt": 3.0, "de": 1.0}})
    stream = ChatStream(recipe, load_chat(recipe, tokenizer))
    languages = [stream.mixture.window(index)[0] for index in range(4096)]
    assert languages.count("mt") == 3 * languages.count("de") == 3072


def test_a_mixture_that_ends_before_the_run_is_refused_at_its_start(make, tokenizer):
    recipe = make(data={"mixture": {"stages": [{"tokens": 15 * 512}]}})
    data = load_chat(recipe, tokenizer)
    assert ChatStream(recipe, data).mixture.rows == 15  # one step of eight, and most of another
    with pytest.raises(UserError, match=r"stages of data.mixture end .* at most 1 steps"):
        ChatStream(recipe.model_copy(update={"steps": 2}), data)


def test_only_neftune_numbers_the_samples(make, tokenizer):
    for alpha, expected in ((None, None), (5.0, [7])):
        recipe = make(neftune=alpha)
        sample = ChatStream(recipe, load_chat(recipe, tokenizer)).sample(7)
        assert sample.get("rows", np.array(expected)).tolist() == expected


def test_a_conversation_too_long_is_named_or_left_out_or_keeps_its_first_turns(make, tokenizer):
    whole = load_chat(make(), tokenizer)
    sizes = [one.ids.size for some in whole.train.values() for one in some]
    context = max(sizes) - 2  # holds context + 1 tokens
    with pytest.raises(
        UserError, match=rf"\w\w.jsonl:\d+: the conversation has \d+ tokens, at most {context + 1}"
    ) as error:
        load_chat(make(context=context), tokenizer)
    assert "\n" not in str(error.value)
    skipped = load_chat(make(context=context, too_long="skip"), tokenizer)
    assert skipped.too_long == sum(size > context + 1 for size in sizes) > 0
    cut = load_chat(make(context=context, too_long="turns"), tokenizer)
    assert (cut.too_long, cut.shortened) == (0, skipped.too_long)
    ends = {int(one.ids[-1]) for some in cut.train.values() for one in some}
    assert ends == {tokenizer.end_of_turn_id}


def test_when_none_is_left_the_source_and_what_became_of_its_rows_are_named(make, tokenizer, file):
    rows = [line(), line("Wo?", "Hier.")]
    path = file("{", *rows)
    with pytest.raises(UserError) as error:
        load_chat(
            make(context=4, too_long="skip", max_broken=0.5, sources=[{"data": str(path)}]),
            tokenizer,
        )
    assert str(error.value) == (
        f"sft.sources: {path}: no conversation is left to train on: "
        "3 rows: 1 broken, 2 longer than model.context=4, 0 held out"
    )


def test_held_out_conversations_are_in_every_language_and_not_trained_on(make, tokenizer):
    data = load_chat(make(holdout=0.125), tokenizer)
    assert {len(some) for some in data.held_out.values()} == {2}
    trained = {one.ids.tobytes() for some in data.train.values() for one in some}
    assert not any(
        one.ids.tobytes() in trained for some in data.held_out.values() for _, one in some
    )
    assert data.digest != load_chat(make(), tokenizer).digest


def test_what_is_held_out_is_the_conversation_that_was_encoded(make, tokenizer):
    """Otherwise the bytes of turns that were left out would count in bits per byte."""
    recipe = make(holdout=0.9)
    whole = load_chat(recipe, tokenizer)
    context = max(one.ids.size for some in whole.held_out.values() for _, one in some) - 2
    cut = load_chat(make(holdout=0.9, context=context, too_long="turns"), tokenizer)
    assert cut.shortened
    for some in cut.held_out.values():
        for row, one in some:
            np.testing.assert_array_equal(Template(tokenizer).encode(row.conversation).ids, one.ids)


def test_parquet_is_read_as_json_lines_are(file, tmp_path):
    rows = [line(), line("Wo?", "Hier.")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "same.parquet")
    by_json, by_parquet = (
        [row.conversation for row in read_sources(sources(path)).train["de"]]
        for path in (file(*rows), tmp_path / "same.parquet")
    )
    assert by_json == by_parquet
    assert len(by_json) == 2


def test_the_language_comes_from_the_row_the_source_or_the_files_name(file):
    row = line()
    del row["language"]
    assert read_sources(sources(file(row, name="sv.jsonl"))).train.keys() == {"sv"}
    source = ChatSource(data=file(row, line(), name="x.jsonl"), language="ga")
    assert read_sources(SftConfig(sources=(source,))).train.keys() == {"ga", "de"}


def test_take_chooses_by_the_text_and_not_by_the_order(file):
    rows = [line(f"{number}?") for number in range(20)]
    chosen = []
    for order in (rows, rows[::-1]):
        source = ChatSource(data=file(*order), take=5)
        found = read_sources(SftConfig(sources=(source,))).train["de"]
        chosen.append({row.conversation for row in found})
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 5
    with pytest.raises(UserError, match=r"chat.jsonl: has 20 conversations, take=21"):
        read_sources(SftConfig(sources=(ChatSource(data=file(*rows), take=21),)))


MISTAKES = {
    "empty answer": (line(answer=" "), "chat.jsonl:2: turn 2: the answer is empty"),
    "unknown language": (line(language="xx"), "chat.jsonl:2: language 'xx' is unknown"),
    "no json": ("{", "chat.jsonl:2: is not JSON"),
    "no object": ("[]", "chat.jsonl:2: is not a JSON object but list"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_broken_row_is_named_by_file_and_number(name, file):
    broken, expected = MISTAKES[name]
    path = file(line(), broken, *[line(f"{n}?") for n in range(8)])
    with pytest.raises(UserError, match="1 of 10 rows are broken") as error:
        read_sources(sources(path))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    found = read_sources(sources(path, max_broken=0.1))
    assert len(found.train["de"]) == 9
    assert expected in found.broken[0]


def test_sources_that_are_not_there_are_refused(tmp_path, file):
    with pytest.raises(UserError, match="no such file or directory"):
        read_sources(sources(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"no files of \.jsonl"):
        read_sources(sources(tmp_path))
    with pytest.raises(UserError, match="language 'dee' is unknown: did you mean 'de'"):
        read_sources(SftConfig(sources=(ChatSource(data=file(line()), language="dee"),)))


def test_the_template_of_the_recipe_is_used(make, tokenizer):
    data = load_chat(make(form="published"), tokenizer)
    one = read_sources(make().sft).train["de"][0].conversation
    np.testing.assert_array_equal(
        data.train["de"][0].ids, Template(tokenizer, "published").encode(one).ids
    )


def test_conversations_need_best_fit(make):
    with pytest.raises(UserError, match=r"set data\.packing=best_fit"):
        make(data={"packing": "concat"})
