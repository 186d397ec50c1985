import random

import numpy as np
import pytest
import sentencepiece

from teukenjax.data.tokenizer import Tokenizer, split_sentences, train_tokenizer
from teukenjax.errors import UserError

LATIN = ["der kleine Hund läuft 42 Mal durch den Wald und bellt laut", "un petit chien"] * 5


def processor(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    return sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))


def test_the_first_517_ids_are_those_of_teuken(tokenizer, tmp_path):
    model = processor(tokenizer, tmp_path)
    expected = ["<unk>", "<s>", "</s>", "<pad>", "<eod>"]
    expected += [f"<placeholder_tok_{number}>" for number in range(256)]
    expected += [f"<0x{byte:02X}>" for byte in range(256)]
    assert [model.id_to_piece(index) for index in range(517)] == expected
    assert [index for index in range(1500) if model.is_byte(index)] == list(range(261, 517))
    assert not any(model.is_control(index) for index in range(1500))
    assert (model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()) == (0, -1, -1, -1)
    assert tokenizer.eod_id == 4
    assert tokenizer.vocab_size == 1500


def test_nothing_is_added_and_special_strings_are_matched_inside_text(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.encode("<eod>")[-1] == 4
    ids = tokenizer.encode("ein Hund</s> und <placeholder_tok_7> mehr")
    assert ids.count(2) == 1
    assert ids.count(12) == 1
    assert not {1, 3, 4} & set(ids)


def test_the_two_routes_of_teuken_differ_after_special_strings(tokenizer):
    """Facts of the released class: `</s>` is followed by a ▁ of its own when it is called."""
    pieces = tokenizer.pieces
    text = "x</s>\nUser: y"
    encoded = [pieces[index] for index in tokenizer.encode(text)]
    called = [pieces[index] for index in tokenizer.encode_split(text)]
    at = encoded.index("</s>")
    assert encoded[: at + 1] == called[: at + 1]
    assert called[at + 1] == "▁"
    assert called[at + 2 :] == encoded[at + 1 :]
    for plain in ("no special string", "", "two\nlines", "<placeholder_tok_3>x"):
        assert tokenizer.encode_split(plain) == tokenizer.encode(plain)
    assert tokenizer.encode_split("<s><s></s>") == [1, 1, 2]
    assert tokenizer.encode_split("<unk>") == [tokenizer.unknown_id] == [0]


def test_a_folder_is_loaded_by_the_model_in_it(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    assert Tokenizer.load(tmp_path).digest == tokenizer.digest


def test_digits_are_split_and_spaces_are_kept(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a  b   c 2024 ")) == "a  b   c 2024 "
    pieces = [tokenizer.decode([index]) for index in tokenizer.encode("x2024")]
    assert pieces[-4:] == ["2", "0", "2", "4"]


@pytest.mark.parametrize(
    "text",
    [
        "Příliš žluťoučký kůň úpěl ďábelské ódy.",
        "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
        "line one\nline two\twith a tab\x00and a zero",
        "bytes instead of unknown pieces: 漢字 😀 𓀀",
    ],
)
def test_text_survives_the_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert 0 not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.array(ids, np.int32)) == text


def test_normalisation_is_nfkc(tokenizer):
    assert tokenizer.decode(tokenizer.encode("ﬁn²…\u00a0\uff0c")) == "fin2... ,"


def test_a_batch_is_encoded_like_its_texts_on_any_number_of_threads(tokenizer):
    texts = ["eins", "", "zwei und drei", "τέσσερα\n"] * 50
    expected = [tokenizer.encode(text) for text in texts]
    for threads in (1, 3):
        ids = tokenizer.encode_batch(texts, threads=threads)
        assert all(row.dtype == np.int32 for row in ids)
        assert [row.tolist() for row in ids] == expected


def test_training_is_deterministic_and_the_file_is_the_model(tmp_path, capfd):
    first, second = (train_tokenizer(iter(LATIN), vocab_size=545) for _ in range(2))
    other = train_tokenizer(LATIN, vocab_size=546)
    assert first.digest == second.digest != other.digest
    first.save(tmp_path / "model")
    loaded = Tokenizer.load(tmp_path / "model")
    assert loaded.digest == first.digest
    assert loaded.encode("der Hund") == first.encode("der Hund")
    assert capfd.readouterr() == ("", "")


def test_long_lines_are_cut_instead_of_dropped():
    words = random.Random(0).choices(["größer", "als", "viertausend", "Bytes"], k=3000)
    line = " ".join(words)
    pieces = list(split_sentences(line + "\n\n \nkurz"))
    assert all(len(piece.encode()) <= 4096 for piece in pieces)
    assert pieces[-1] == "kurz"
    assert len("".join(pieces[:-1])) >= len(line) - len(pieces)
    train_tokenizer([line], vocab_size=540)  # all of the text is one long line


def test_a_vocabulary_out_of_bounds_names_the_bound_which_works():
    with pytest.raises(UserError, match=r"100 pieces is too small .* allowed: (\d+) or more"):
        train_tokenizer(LATIN, vocab_size=100)
    with pytest.raises(UserError, match=r"9000 pieces is too large") as error:
        train_tokenizer(LATIN, vocab_size=9000)
    bound = int(str(error.value).split("allowed: ")[1].split()[0])
    assert train_tokenizer(LATIN, vocab_size=bound).vocab_size == bound


def test_no_text_is_an_error():
    with pytest.raises(UserError, match="no text to train a tokenizer on"):
        train_tokenizer(["", "\n \n"], vocab_size=600)


@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_a_file_that_is_no_model_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model: (is not a|cannot be read: No such)"):
        Tokenizer.load(tmp_path / "tokenizer.model")


def test_a_model_without_eod_says_so(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LATIN),
        model_prefix=str(tmp_path / "plain"),
        vocab_size=30,
        minloglevel=2,
    )
    plain = Tokenizer.load(tmp_path / "plain.model")
    with pytest.raises(UserError, match="has no piece '<eod>'"):
        _ = plain.eod_id
