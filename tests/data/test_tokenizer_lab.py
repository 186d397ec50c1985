import io
import json

import pytest
import tokenizers
from PIL import Image
from rich.console import Console

from teukenjax.data import tokenizer_lab as lab
from teukenjax.data.encoders import load_encoder
from teukenjax.data.fertility import report
from teukenjax.data.tokenizer import train_tokenizer
from teukenjax.errors import UserError
from teukenjax.interop.hf_tokenizer import write_tokenizer
from teukenjax.recipe import MixtureConfig, validate

LINES = {
    "de": ["Ein Satz mit fünf Wörtern", "noch einer 漢", "ﬁnal"],
    "el": ["μια μικρή γραμμή", "και άλλη"],
}


@pytest.fixture
def folder(tmp_path, tokenizer):
    """What an export writes: a SentencePiece model and the same as tokenizer.json."""
    write_tokenizer(tokenizer.model, tmp_path, context=64)
    return tmp_path


@pytest.fixture
def byte_level(tmp_path):
    """A byte-level BPE model, as GPT-2's descendants have."""
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(["ein kleiner Satz", "noch ein Satz"] * 20, vocab_size=300)
    model.save(str(tmp_path / "bpe.json"))
    return tmp_path / "bpe.json"


def mix(**stage) -> MixtureConfig:
    return validate(MixtureConfig, {"stages": [stage]}, "test")


def test_the_numbers_are_those_of_counting(folder):
    encoder = load_encoder(folder / "tokenizer.model")
    found = report(encoder, LINES).languages["de"]
    rows = [encoder.encode_batch([line])[0] for line in LINES["de"]]
    tokens = sum(map(len, rows))
    assert found.tokens == tokens
    assert found.bytes == len("".join(LINES["de"]).encode())
    assert found.fertility == tokens / 9
    assert found.characters_per_token == len("".join(LINES["de"])) / tokens
    assert found.bytes_per_token == found.bytes / tokens
    assert found.byte_fallback == 3 / tokens  # the Chinese character
    assert found.unknown == 0
    assert found.round_trip == 2 / 3  # the ligature became two letters
    assert found.round_trip_nfkc == 1
    assert found.pieces_used == len({index for row in rows for index in row}) / 1500


def test_a_piece_is_owned_by_the_language_that_uses_nearly_only_it(folder):
    lines = {"de": ["und der"], "fr": ["et der"]}
    encoder = load_encoder(folder / "tokenizer.model")
    ids = {name: set(encoder.encode_batch(found)[0]) for name, found in lines.items()}
    found = report(encoder, lines).languages
    for name, other in (("de", "fr"), ("fr", "de")):
        assert found[name].pieces_own == len(ids[name] - ids[other]) / 1500


def test_the_vocabulary_is_shared_out_over_scripts(folder, tokenizer):
    scripts = report(load_encoder(folder), LINES).scripts
    assert sum(scripts.values()) == pytest.approx(1)
    assert next(iter(scripts)) == "latin"
    assert scripts["byte"] == 256 / 1500
    assert scripts["special"] == 261 / 1500
    greek = [piece for piece in tokenizer.pieces if any("α" <= c <= "ω" for c in piece)]
    assert scripts["greek"] >= len(greek) / 1500 > 0.01
    assert scripts["cyrillic"] > 0.01


def test_a_fast_tokenizer_and_its_sentencepiece_model_have_the_same_report(folder):
    slow, fast = (
        report(load_encoder(folder / f"tokenizer.{kind}"), LINES) for kind in ("model", "json")
    )
    assert slow.languages == fast.languages
    assert slow.scripts == fast.scripts


def test_parts_of_characters_count_as_bytes_in_a_byte_level_vocabulary(byte_level):
    encoder = load_encoder(byte_level)
    assert encoder.name == "bpe"
    found = report(encoder, {"de": ["ein Satz"], "el": ["αβγ"]}).languages
    assert found["de"].byte_fallback == 0
    assert found["el"].byte_fallback == 1
    assert found["el"].fertility == 6
    assert found["el"].round_trip == 1


def test_a_vocabulary_without_bytes_has_unknowns(tmp_path):
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<unk>": 0, "ein": 1}, unk_token="<unk>")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    found = report(load_encoder(tmp_path), {"de": ["ein ein mann"]}).languages["de"]
    assert found.unknown == 1 / 3
    assert found.round_trip == 0


def test_reports_are_a_table_json_and_a_picture(folder, byte_level, tmp_path):
    reports = lab.compare([folder, byte_level], "sample", bytes_per_language=2000, progress=False)
    screen = io.StringIO()
    lab.print_reports(Console(file=screen, width=200), reports)
    table = screen.getvalue()
    assert len(table.splitlines()) == 1 + 2 * 25 + 2
    maltese = reports[0].languages["mt"]
    assert f"{maltese.fertility:.3f}" in table
    lab.write_json(reports, tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in content] == [folder.name, "bpe"]
    assert content[0]["languages"]["mt"]["fertility"] == maltese.fertility
    lab.plot(reports, tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as image:
        assert image.width > 1000


def test_bytes_for_less_than_a_line_are_refused(folder):
    with pytest.raises(UserError, match="10 bytes of 'bg' hold no line: take more"):
        lab.compare([folder], "sample", bytes_per_language=10, progress=False)


def test_a_tokenizer_is_trained_in_the_shares_of_a_mixture(tmp_path):
    mixture = mix(weights={"de": 2, "mt": 1})
    made = lab.train_on_mixture(
        mixture, "sample", tmp_path / "t", vocab_size=700, bytes_per_language=4000, progress=False
    )
    about = json.loads((tmp_path / "t" / "training.json").read_text(encoding="utf-8"))
    assert about["bytes"].keys() == {"de", "mt"}
    assert 3500 < about["bytes"]["de"] <= 4000
    assert 1500 < about["bytes"]["mt"] <= 2000
    assert len(about["bytes_seen"]) == 24
    assert load_encoder(tmp_path / "t").pieces == made.pieces
    assert made.vocab_size == 700


def test_training_does_not_overwrite(tmp_path, tokenizer):
    with pytest.raises(UserError, match="already exists"):
        lab.train_on_mixture(
            mix(), "sample", tmp_path, vocab_size=700, bytes_per_language=4000, progress=False
        )


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.* cannot be written: Not a directory"):
        lab.train_on_mixture(
            mix(), "sample", tmp_path / "file" / "t", vocab_size=900, bytes_per_language=4000,
            progress=False,
        )  # fmt: skip


def test_a_kill_leaves_no_folder_without_a_tokenizer(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    options = {"vocab_size": 900, "bytes_per_language": 4000, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(lab.Tokenizer, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            lab.train_on_mixture(mix(), "sample", tmp_path / "t", **options)
    assert not (tmp_path / "t").exists()
    lab.train_on_mixture(mix(), "sample", tmp_path / "t", **options)
    assert {file.name for file in tmp_path.iterdir()} == {"t"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "tokenizer.json: is not a tokenizer.json"),
        ("x.model", "x", "x.model: is not a SentencePiece model"),
        ("none.json", None, "none.json: cannot be read: No such file"),
        ("none.model", None, "none.model: cannot be read: No such file"),
        ("", None, "holds neither tokenizer.model nor tokenizer.json"),
    ],
)
def test_what_is_no_tokenizer_is_an_error(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_encoder(tmp_path / name)
    assert "\n" not in str(error.value)


def test_any_sentencepiece_model_can_be_compared(tmp_path):
    train_tokenizer(["ein kleiner Satz"] * 3, vocab_size=530).save(tmp_path / "own.model")
    encoder = load_encoder(tmp_path / "own.model")
    assert (encoder.name, encoder.unknown) == ("own", 0)
