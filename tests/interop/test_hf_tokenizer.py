"""tokenizer.json against SentencePiece itself."""

import json
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer

from teukenjax.errors import UserError
from teukenjax.interop.hf_tokenizer import (
    NEVER,
    SPECIAL,
    fast_tokenizer,
    parse_model,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def folder(tokenizer_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("export")
    write_tokenizer(tokenizer_model, out, context=4096)
    return out


@pytest.fixture(scope="module")
def fast(folder) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def assert_same(fast: Tokenizer, reference, text: str) -> None:
    ids = reference.encode(text)
    assert fast.encode(text).ids == ids, ascii(text)
    assert fast.decode(ids, skip_special_tokens=False) == reference.decode(ids), ascii(text)


def test_whole_sample_has_the_same_ids(fast, reference, sample):
    assert sample
    for text in sample.values():
        assert_same(fast, reference, text)
    assert_same(fast, reference, "\n\n".join(sample.values()))


def test_decomposed_sample_has_the_same_ids(fast, reference, sample):
    for text in sample.values():
        assert_same(fast, reference, unicodedata.normalize("NFD", text))


def test_unrounded_scores_differ_only_in_ties(tokenizer_model, sample):
    # A tokenizer that was trained elsewhere, such as Teuken's own, has scores of full precision.
    proto, random = ModelProto.FromString(tokenizer_model), np.random.default_rng(0)
    for piece in proto.pieces:
        if piece.score:
            piece.score += random.uniform(-1 / 128, 1 / 128)
    reference = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    fast = fast_tokenizer(proto)

    def score(ids):
        return sum(map(reference.get_score, ids))

    for text in sample.values():
        ids, expected = fast.encode(text).ids, reference.encode(text)
        assert fast.decode(ids) == reference.decode(expected)
        assert score(ids) == pytest.approx(score(expected), rel=2**-20)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces ",
        "\n",
        "line\n\nline\r\n\tindented\n",
        "▁already escaped",
        "x</s>\nUser: y",
        "<s>Grüße</s><eod>",
        " <pad> <pad>",
        "a<placeholder_tok_0>b<placeholder_tok_255>",
        "<placeholder_tok_256>",
        "\uff1cs\uff1e becomes special under NFKC",
        "the bytes <0x0A> and <0x41><0xFF>, <0xfg> <0x0a>",
        "<unk> is not a text of the unknown piece; nor <unk><unk>",
        "<0x<0x0A>0A> <<unk>>",
        "1234 5,678.90 ½ ² … ﬁ №",
        "ΐ ΰ ᾧ Ελλάδα — България — Ħal Għargħur",
        "日本語 한국어 العربية हिन्दी 😀👩‍👩‍👧 \x00\x7f",
    ],
)
def test_traps(fast, reference, text):
    assert_same(fast, reference, text)


def test_special_tokens_are_dropped_from_decoded_text(fast):
    ids = fast.encode("Hello</s>\nYes<eod>").ids
    assert fast.decode(ids) == "Hello\nYes"


def test_normalization_agrees_on_european_scripts(reference):
    nfkc = [chr(code) for code in range(1, 0x2C80) if not unicodedata.combining(chr(code))]
    decomposed = [unicodedata.normalize("NFD", letter) for letter in nfkc]
    for text in nfkc + decomposed:
        assert reference.normalize("x" + text)[2:] == unicodedata.normalize("NFKC", text).replace(
            " ", "▁"
        ), ascii(text)


FRAGMENTS = [*SPECIAL, "<placeholder_tok_7>", "<0x0A>", "<", ">", "0x", " ", "  ", "\n", "\t", "▁"]
FRAGMENTS += ["ﬁ", "½", "…", "\uff11", "e\u0301", "\u03b9\u0308\u0301"]
FRAGMENTS += ["Straße", "ħ", "ж", "ω", "日本", "😀"]


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(
    st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3)).map("".join))
)
@example("....mmmm   ")
def test_any_text_has_the_same_ids(fast, reference, text):
    # The differences that the module's docstring lists.
    assume(text not in SPECIAL and NEVER not in text)
    normalized = unicodedata.normalize("NFKC", text).replace(" ", "▁")
    assume(reference.normalize("x" + text) == "▁x" + normalized)
    assert_same(fast, reference, text)


def test_config_needs_no_remote_code_and_adds_nothing(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_max_length"] == 4096
    assert not config["clean_up_tokenization_spaces"]
    assert "auto_map" not in config
    assert json.loads((folder / "tokenizer.json").read_text("utf-8"))["post_processor"] is None


def test_model_file_is_copied(folder, tokenizer_model):
    assert (folder / "tokenizer.model").read_bytes() == tokenizer_model


def test_other_tokenizers_are_refused(tokenizer_model):
    proto = ModelProto.FromString(tokenizer_model)
    proto.normalizer_spec.name = "nmt_nfkc"
    with pytest.raises(UserError, match="option name=nmt_nfkc: the export needs nfkc"):
        parse_model(proto.SerializeToString())
    proto = ModelProto.FromString(tokenizer_model)
    proto.pieces[1].piece = "<bos>"
    with pytest.raises(UserError, match="begins with"):
        parse_model(proto.SerializeToString())
    with pytest.raises(UserError, match="not a SentencePiece model"):
        parse_model(b"no tokenizer")
