"""The scripts of conversion, decoding and the tokenizer, at the smallest size."""

import runpy
from pathlib import Path

import pytest
from hf_case import small_config
from sentencepiece import SentencePieceProcessor

from teukenjax.interop.hf_tokenizer import fast_tokenizer, parse_model

TOOLS = Path(__file__).parents[2] / "tools"


def names_of(tool: str) -> dict:
    return runpy.run_path(str(TOOLS / f"{tool}.py"), run_name=tool)


def test_a_random_model_is_converted_and_compared(tmp_path):
    bench, convert = names_of("bench_convert"), names_of("convert_hf")
    bench["write_random"](small_config(tied=True, vocab_size=2100), tmp_path / "hf")
    convert["main"]("import", tmp_path / "hf", tmp_path / "run")
    convert["main"]("export", tmp_path / "run", tmp_path / "again")
    assert bench["same"](tmp_path / "hf", tmp_path / "again") == 20
    with next((tmp_path / "again").glob("*.safetensors")).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert bench["same"](tmp_path / "hf", tmp_path / "again") == 19


def test_decoding_is_set_beside_reading(tmp_path, monkeypatch, capsys):
    model = tmp_path / "model.yaml"
    model.write_text(small_config(tied=True).model_dump_json())  # JSON is YAML
    arguments = [str(model), "--batch", "2", "--length", "9", "--steps", "3"]
    monkeypatch.setattr("sys.argv", ["bench_decode.py", *arguments])
    names_of("bench_decode")["main"]()
    first, weights, row = capsys.readouterr().out.splitlines()
    assert "model in bfloat16" in first
    assert "by the datasheet n/a ms" in weights
    assert row.startswith("batch  2, prompt     9, cache   256: prefill")
    assert "× reading" in row


def test_the_fuzzer_puts_every_difference_under_a_cause(
    tokenizer_model, tmp_path, monkeypatch, capsys
):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model)
    arguments = [str(tmp_path / "tokenizer.model"), "--strings", "4000"]
    monkeypatch.setattr("sys.argv", ["fuzz_tokenizer.py", *arguments])
    fuzz = names_of("fuzz_tokenizer")
    assert fuzz["main"]() == 0
    out = capsys.readouterr().out
    assert out.startswith("4,000 random strings\n")
    assert "it is normalised otherwise" in out
    assert fuzz["UNLISTED"] not in out


@pytest.mark.parametrize("text", ["<s>", "a\ufdd0b", "\U0001e063"])
def test_known_differences_are_found(tokenizer_model, tmp_path, text):
    fuzz, found = names_of("fuzz_tokenizer"), {}
    fast, reference = fast_tokenizer(parse_model(tokenizer_model)), SentencePieceProcessor()
    reference.LoadFromSerializedProto(tokenizer_model)
    assert fuzz["compare"](fast, reference, iter([text, "no difference"]), found) == 2
    assert list(found.values()) == [[text]]
    assert fuzz["UNLISTED"] not in found
