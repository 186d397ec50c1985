"""Raw records of one file: lines of ``.jsonl``, blocks of ``.txt``, rows of ``.parquet``.

Each function streams ``(number, record)``, the number counting from 1 as an editor does, and
reports the bytes of the file that it has consumed to ``advance``. Nothing is checked here but
that the file itself is whole: the libraries' own stream readers take a truncated file for an
ended one, so decompression is driven by hand, frame by frame.
"""

import codecs
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from teukenjax.errors import UserError, nearest

Advance = Callable[[int], None]

# Small, because a block of compressed bytes may unpack to a hundredfold.
READ_BYTES = 1 << 17
ROWS = 1024
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    # zstd --long files need windows above the library's default of 128 MiB.
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    ".gz": lambda: zlib.decompressobj(wbits=31),
}


def json_lines(path: Path, advance: Advance) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank."""
    return ((number, line) for number, line in _lines(path, advance) if line.strip())


def text_blocks(path: Path, advance: Advance) -> Iterator[tuple[int, bytes]]:
    """Runs of lines between blank lines, with the number of the first line."""
    first, block = 0, []
    for number, line in _lines(path, advance):
        if line.strip():
            first = first or number
            block.append(line.removesuffix(b"\r"))
        elif block:
            yield first, b"\n".join(block)
            first, block = 0, []
    if block:
        yield first, b"\n".join(block)


def parquet_rows(
    path: Path, advance: Advance, *, required: str, optional: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as dictionaries of two columns; a UserError when the required one is missing."""
    size, number = path.stat().st_size, 0
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if required not in names:
            raise UserError(f"{path}: column '{required}' is missing: {nearest(required, names)}")
        columns = [name for name in (required, optional) if name in names]
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            values = [_values(batch.column(name)) for name in columns]
            for row in zip(*values, strict=True):
                number += 1
                yield number, dict(zip(columns, row, strict=True))
            advance(size * batch.num_rows // file.metadata.num_rows)


def _values(column: pa.Array) -> list[Any]:
    """Strings as bytes, so that one that is not UTF-8 breaks its row and not the file."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _lines(path: Path, advance: Advance) -> Iterator[tuple[int, bytes]]:
    number, rest = 0, b""
    for chunk in _chunks(path, advance):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield number, _without_mark(line, number)
    if rest:
        yield number + 1, _without_mark(rest, number + 1)


def _without_mark(line: bytes, number: int) -> bytes:
    return line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _chunks(path: Path, advance: Advance) -> Iterator[bytes]:
    """The content, unpacked; an EOFError when the compressed data breaks off."""
    new_stream, stream = DECOMPRESSORS.get(path.suffix), None
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            advance(len(chunk))
            if new_stream is None:
                yield chunk
                continue
            while chunk:
                stream = stream or new_stream()
                yield stream.decompress(chunk)
                # A file may be several compressed frames in a row.
                chunk, stream = (stream.unused_data, None) if stream.eof else (b"", stream)
    if stream is not None:
        raise EOFError
