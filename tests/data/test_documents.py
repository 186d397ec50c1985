import gzip
import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from teukenjax.data.documents import Document, DocumentReader, Fields, Reject, find_files
from teukenjax.errors import UserError

TEXTS = ["Grüße aus Köln.\nZweite Zeile.", "Ένα μικρό κείμενο 😀", "третий"]


def json_lines(texts=TEXTS, **extra) -> bytes:
    rows = (json.dumps({"text": text, **extra}, ensure_ascii=False) for text in texts)
    return "".join(row + "\n" for row in rows).encode()


def write(path, suffix: str):
    file = path / f"de{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": TEXTS, "number": [1, 2, 3]}), file, row_group_size=2)
        return file
    content = "\n\n".join(TEXTS).encode() if suffix == ".txt" else json_lines()
    pack = {".jsonl.zst": zstandard.compress, ".jsonl.gz": gzip.compress}.get(suffix, bytes)
    file.write_bytes(pack(content))
    return file


def read(*files, **options) -> list[Document]:
    return list(DocumentReader(files, **options))


def reject_all(file, **options) -> list[Reject]:
    rejects = []
    reader = DocumentReader([file], max_broken=1.0, on_reject=rejects.append, **options)
    assert len(list(reader)) == reader.lines - reader.broken
    assert len(rejects) == reader.broken
    return rejects


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet"])
def test_every_format_gives_the_same_documents(tmp_path, suffix):
    file = write(tmp_path, suffix)
    assert read(file) == [Document(text, "de", str(file)) for text in TEXTS]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl.zst", ".parquet"])
def test_the_position_ends_at_the_size_of_the_files(tmp_path, suffix):
    reader = DocumentReader([write(tmp_path, suffix)])
    for _ in range(2):
        assert len(list(reader)) == 3
        assert reader.bytes_read == reader.total_bytes > 0
        assert (reader.lines, reader.broken) == (3, 0)


def test_lines_longer_than_a_read_and_many_frames_survive(tmp_path):
    texts = ["a b" * 100_000, "c", "d" * 300_000]
    frames = [json_lines([text]) for text in texts]
    for suffix, pack in ((".jsonl.zst", zstandard.compress), (".jsonl.gz", gzip.compress)):
        file = tmp_path / f"en{suffix}"
        file.write_bytes(b"".join(map(pack, frames)))
        assert [document.text for document in read(file)] == texts


def test_the_language_comes_from_the_field_or_else_from_the_name(tmp_path):
    file = tmp_path / "mt.a.jsonl"
    file.write_text('{"text": "x", "lang": "ga"}\n{"text": "y", "lang": null}\n{"text": "z"}\n')
    assert [document.language for document in read(file)] == ["ga", "mt", "mt"]


def test_field_names_can_be_set(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"content": "hej", "language": "sv", "text": 1}\n')
    (document,) = read(file, fields=Fields(text="content", language="language"))
    assert (document.text, document.language) == ("hej", "sv")


def test_text_files_take_windows_line_ends_byte_order_marks_and_blank_edges(tmp_path):
    file = tmp_path / "fi.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n \r\n\r\nthree\r\n\n")
    assert [document.text for document in read(file)] == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "is not JSON: Expecting property name"),
        (b"[1, 2]", "is not a JSON object but list"),
        (b'{"txt": "a"}', "field 'text' is missing"),
        (b'{"text": 5}', "field 'text' is not a string but int"),
        (b'{"text": null}', "field 'text' is not a string but NoneType"),
        (b'{"text": " \\n"}', "field 'text' is empty"),
        (b'{"text": "\xff"}', "byte 10 is not UTF-8"),
        (b'{"text": "a\\u0000b"}', "field 'text' holds a NUL, at character 1"),
        (b'{"text": "a\0b"}', "is not JSON: Invalid control character"),
        (b'{"text": "\\ud800"}', "field 'text' holds half a surrogate pair"),
        (b'{"text": "a", "lang": ""}', "language '' is not a code"),
        (b'{"text": "a", "lang": "../up"}', "language '../up' is not a code"),
        (b'{"text": "a", "lang": ".."}', "language '..' is not a code"),
        (b'{"text": "a", "lang": "de\\n"}', "language 'de\\n' is not a code"),
        (b'{"text": "a", "lang": ["de"]}', "field 'lang' is not a string but list"),
        (b"[" * 100_000, "is not JSON: "),
    ],
)
def test_a_broken_line_is_reported_with_number_reason_and_text(tmp_path, line, reason):
    file = tmp_path / "de.jsonl"
    file.write_bytes(json_lines(["first"]) + b"\n" + line + b"\n" + json_lines(["last"]))
    (reject,) = reject_all(file)
    assert (reject.file, reject.line) == (str(file), 3)
    assert reject.reason.startswith(reason)
    assert reject.raw == line.decode(errors="backslashreplace")[:200]


def test_a_text_block_that_is_not_utf8_is_reported_with_its_first_line(tmp_path):
    file = tmp_path / "de.txt"
    file.write_bytes(b"good\n\n\nfine\nb\xe4d\n\ngood\n")
    (reject,) = reject_all(file)
    assert (reject.line, reject.reason) == (4, "field 'text': byte 6 is not UTF-8")


def test_broken_parquet_rows_are_reported_with_their_row(tmp_path):
    file = tmp_path / "de.parquet"
    texts = pa.array([b"good", b"\xff", None, b"good"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": texts, "lang": ["de", "de", "de", "a/b"]}), file)
    reasons = {reject.line: reject.reason for reject in reject_all(file)}
    assert reasons[2] == "field 'text': byte 0 is not UTF-8"
    assert reasons[3] == "field 'text' is not a string but NoneType"
    assert reasons[4].startswith("language 'a/b' is not a code")


def test_the_share_of_broken_lines_counts_over_all_files(tmp_path):
    bad, good = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    bad.write_bytes(b"{}\n")
    good.write_bytes(json_lines(["x"] * 99))
    assert len(read(bad, good, max_broken=0.01)) == 99
    message = rf"{bad}:1: field 'text' is missing; 1 of 100 lines are broken, max_broken=0.009 "
    with pytest.raises(UserError, match=message):
        read(bad, good, max_broken=0.009)


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("cut", [0.5, 0.99])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, suffix, cut):
    file = write(tmp_path, suffix)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(UserError, match=str(file)) as error:
        read(file, max_broken=1.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".jsonl.gz", ".parquet"])
def test_a_file_of_something_else_is_an_error_that_names_it(tmp_path, suffix):
    file = tmp_path / f"de{suffix}"
    file.write_bytes(b"not at all compressed" * 10)
    with pytest.raises(UserError, match=f"{file}: is damaged"):
        read(file)


def test_a_parquet_file_without_the_text_column_names_the_nearest(tmp_path):
    file = tmp_path / "de.parquet"
    pq.write_table(pa.table({"texts": TEXTS}), file)
    with pytest.raises(UserError, match="column 'text' is missing: did you mean 'texts'"):
        read(file)


def test_files_are_found_below_a_directory_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "sub/a.jsonl.gz", "a.parquet", "notes.md", "c.csv.gz", "d.jsonl.zst"):
        (tmp_path / name).touch()
    found = [str(file.relative_to(tmp_path)) for file in find_files(tmp_path)]
    assert found == ["a.parquet", "b.txt", "d.jsonl.zst", "sub/a.jsonl.gz"]
    assert find_files(tmp_path / "b.txt") == [tmp_path / "b.txt"]


def test_missing_paths_and_folders_without_text_are_errors(tmp_path):
    with pytest.raises(UserError, match="no such file or directory"):
        find_files(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"allowed: \.txt, \.jsonl"):
        find_files(tmp_path)


@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".jsonl.zst"])
def test_a_line_of_a_hundred_megabytes_is_one_reject_and_not_in_memory(tmp_path, suffix):
    file = tmp_path / f"de{suffix}"
    before, after = (json_lines(["x"]), json_lines(["y"]))
    if suffix == ".txt":
        before, after = b"x\n\n", b"\n\ny"
    # Digits without a pattern: of one that unpacks a thousandfold, single reads would be as large.
    content = before + b"z" * 200 + os.urandom(49_999_900).hex().encode() + b"\n" + after
    file.write_bytes(zstandard.compress(content, 1) if suffix.endswith("zst") else content)
    del content
    tracemalloc.start()
    (reject,) = reject_all(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reject.reason == "is 100,000,000 bytes long: 33,554,432 are allowed"
    assert reject.raw == "z" * 200
    assert reject.line == (3 if suffix == ".txt" else 2)
    assert peak < 90_000_000
    assert [d.text for d in read(file, max_broken=0.5)] == ["x", "y"]


def test_the_last_line_needs_no_newline_and_long_lines_are_whole(tmp_path):
    file = tmp_path / "de.jsonl"
    texts = ["a", "b" * 1_000_000, "c"]
    file.write_bytes(json_lines(texts).removesuffix(b"\n"))
    assert [document.text for document in read(file)] == texts
