"""Raw records of one file: lines of ``.jsonl``, blocks of ``.txt``, rows of ``.parquet``.

Each function streams ``(number, record)``, the number counting from 1 as an editor does, and
reports the bytes of the file that it has consumed to ``advance``. Nothing is checked here but
that the file itself is whole: the libraries' own stream readers take a truncated file for an
ended one, so decompression is driven by hand, frame by frame. A line beyond ``MAX_LINE_BYTES`` is
an ``Oversized``, of which only the beginning is kept, so no line can fill the memory.
"""

import codecs
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from teukenjax.errors import UserError, nearest

Advance = Callable[[int], None]

# Small, because a block of compressed bytes may unpack to a hundredfold.
READ_BYTES = 1 << 17
MAX_LINE_BYTES = 1 << 25  # some ten million tokens
KEPT_BYTES = 1 << 10  # of an oversized line
ROWS = 1024
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    # zstd --long files need windows above the library's default of 128 MiB.
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    ".gz": lambda: zlib.decompressobj(wbits=31),
}


@dataclass(frozen=True)
class Oversized:
    """A line that is too long to be taken."""

    beginning: bytes
    size: int  # bytes


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What goes wrong with a whole file inside the block becomes a UserError that names it."""
    try:
        yield
    except EOFError:
        raise UserError(f"{path}: ends in the middle of its compressed data") from None
    # Arrow takes the names of a damaged file's columns for UTF-8.
    except (zstandard.ZstdError, zlib.error, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is damaged: {' '.join(str(error).split())}") from None
    except OSError as error:
        # Arrow raises OSErrors without a strerror for pages that do not unpack.
        reason = " ".join((error.strerror or str(error)).split())
        raise UserError(f"{path}: cannot be read: {reason}") from None


def json_lines(path: Path, advance: Advance) -> Iterator[tuple[int, bytes | Oversized]]:
    """The lines that are not blank."""
    for number, line in _lines(path, advance):
        if isinstance(line, Oversized) or line.strip():
            yield number, line


def text_blocks(path: Path, advance: Advance) -> Iterator[tuple[int, bytes | Oversized]]:
    """Runs of lines between blank lines, with the number of the first line."""
    first, block = 0, _Pieces(b"\n")
    for number, line in _lines(path, advance):
        if isinstance(line, Oversized) or line.strip():
            first = first or number
            block.add(line.removesuffix(b"\r") if isinstance(line, bytes) else line)
        elif first:
            yield first, block.take()
            first = 0
    if first:
        yield first, block.take()


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


def _lines(path: Path, advance: Advance) -> Iterator[tuple[int, bytes | Oversized]]:
    number, rest = 0, _Pieces(b"")
    for chunk in _chunks(path, advance):
        begun, *whole = chunk.split(b"\n")
        rest.add(begun)
        for begun in whole:
            number += 1
            yield number, _without_mark(rest.take(), number)
            rest.add(begun)
    last = rest.take()
    if last:
        yield number + 1, _without_mark(last, number + 1)


class _Pieces:
    """A line (or block) in pieces; of one that becomes too long only the beginning is kept."""

    def __init__(self, separator: bytes):
        self._separator = separator
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes | Oversized) -> None:
        """The next piece."""
        fits = self._size <= MAX_LINE_BYTES
        self._size += len(piece) if isinstance(piece, bytes) else piece.size
        if fits:
            self._pieces.append(piece if isinstance(piece, bytes) else piece.beginning)

    def take(self) -> bytes | Oversized:
        """All pieces together; begins anew."""
        whole, size = self._separator.join(self._pieces), self._size
        self._pieces, self._size = [], 0
        return whole if size <= MAX_LINE_BYTES else Oversized(whole[:KEPT_BYTES], size)


def _without_mark(line: bytes | Oversized, number: int) -> bytes | Oversized:
    if number == 1 and isinstance(line, bytes):
        return line.removeprefix(codecs.BOM_UTF8)
    return line


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
