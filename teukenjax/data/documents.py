"""Documents: plain text, JSON lines or Parquet in; one stream of checked documents out.

A corpus of any size always holds some broken lines, and a run must neither die of one nor hide
them. So a broken line is counted and handed to the caller with its file, its number and the
reason; only when their share exceeds ``max_broken`` is the corpus refused, by name of the first.
A damaged *file* is always refused: what follows the damage would be missing without a trace.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard

from teukenjax.data.records import json_lines, parquet_rows, text_blocks
from teukenjax.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")
# Codes become names of folders, so no dots and no slashes.
LANGUAGE = re.compile(r"[A-Za-z0-9_-]{1,32}")
REJECT_CHARACTERS = 200


@dataclass(frozen=True)
class Document:
    """One text, never blank and always encodable as UTF-8; ``source`` is the file's path."""

    text: str
    language: str
    source: str


@dataclass(frozen=True)
class Reject:
    """A line that is no document; ``line`` counts from 1 (rows, for Parquet)."""

    file: str
    line: int
    reason: str
    raw: str  # the beginning of it


class _BrokenError(Exception):
    """Why a line is no document."""


def find_files(path: str | Path) -> list[Path]:
    """The text files at ``path`` (one file, or all below a directory), sorted by name.

    Raises:
      UserError: when ``path`` does not exist, or neither is nor holds a file of ``SUFFIXES``.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [file for file in files if file.name.endswith(SUFFIXES) and file.is_file()]
    if not found:
        raise UserError(f"{path}: no text files found: allowed: {', '.join(SUFFIXES)}")
    return found


class DocumentReader:
    """Streams the documents of ``files``, in order; may be iterated more than once.

    After (and during) an iteration ``lines`` and ``broken`` count what was read, and
    ``bytes_read`` is the position in the files' total size. Lines of Parquet are rows, lines of
    ``.txt`` are the blocks between blank lines, each of them a document.

    Args:
      files: as ``find_files`` returns them.
      text_field: key (or column) of the text.
      language_field: key (or column) of the language; where it is missing or null, the part of
        the file's name before the first dot is the language.
      max_broken: the largest tolerated share of broken lines over all files.
      on_reject: called with every broken line.

    Raises (while iterating):
      UserError: for a damaged file, a Parquet file without the text column, or too many broken
        lines; the last is known, and raised, only when every file has been read.
    """

    def __init__(
        self,
        files: Iterable[Path],
        *,
        text_field: str = "text",
        language_field: str = "lang",
        max_broken: float = 0.01,
        on_reject: Callable[[Reject], None] = lambda reject: None,
    ):
        self.files = list(files)
        self._text_field = text_field
        self._language_field = language_field
        self._max_broken = max_broken
        self._on_reject = on_reject
        self.total_bytes = sum(file.stat().st_size for file in self.files)
        self._restart()

    def __iter__(self) -> Iterator[Document]:
        self._restart()
        for path in self.files:
            try:
                yield from self._documents(path)
            except EOFError:
                raise UserError(f"{path}: ends in the middle of its compressed data") from None
            except (zstandard.ZstdError, zlib.error, pa.ArrowException) as error:
                raise UserError(f"{path}: is damaged: {' '.join(str(error).split())}") from None
            except OSError as error:
                # Arrow raises OSErrors without a strerror for pages that do not unpack.
                raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        if self.broken > self._max_broken * self.lines:
            raise UserError(
                f"{self._first.file}:{self._first.line}: {self._first.reason}; {self.broken} of "
                f"{self.lines} lines are broken, max_broken={self._max_broken} is allowed"
            )

    def _restart(self) -> None:
        self.lines = self.broken = self.bytes_read = 0
        self._first: Reject | None = None

    def _documents(self, path: Path) -> Iterator[Document]:
        fallback = path.name.split(".")[0]
        for number, raw in self._records(path):
            self.lines += 1
            try:
                fields = raw if isinstance(raw, dict) else _parse_json(raw)
                text, language = self._text(fields), self._language(fields, fallback)
            except _BrokenError as error:
                self._reject(Reject(str(path), number, str(error), _beginning(raw)))
            else:
                yield Document(text, language, str(path))

    def _records(self, path: Path) -> Iterator[tuple[int, Any]]:
        if path.suffix == ".txt":
            blocks = text_blocks(path, self._advance)
            return ((number, {self._text_field: block}) for number, block in blocks)
        if path.suffix == ".parquet":
            fields = {"required": self._text_field, "optional": self._language_field}
            return parquet_rows(path, self._advance, **fields)
        return json_lines(path, self._advance)

    def _advance(self, count: int) -> None:
        self.bytes_read += count

    def _reject(self, reject: Reject) -> None:
        self.broken += 1
        self._first = self._first or reject
        self._on_reject(reject)

    def _text(self, fields: dict[str, Any]) -> str:
        if self._text_field not in fields:
            raise _BrokenError(f"field '{self._text_field}' is missing")
        text = _string(fields[self._text_field], self._text_field)
        if not text.strip():
            raise _BrokenError(f"field '{self._text_field}' is empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _BrokenError(f"field '{self._text_field}' holds half a surrogate pair") from None
        return text

    def _language(self, fields: dict[str, Any], fallback: str) -> str:
        language = fields.get(self._language_field)
        language = fallback if language is None else _string(language, self._language_field)
        if not LANGUAGE.fullmatch(language):
            raise _BrokenError(
                f"language {language!r:.40} is not a code: 1 to 32 of A-Z a-z 0-9 _ - are allowed"
            )
        return language


def _parse_json(raw: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise _BrokenError(f"byte {error.start} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _BrokenError(f"is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise _BrokenError(f"is not a JSON object but {type(fields).__name__}")
    return fields


def _string(value: Any, field: str) -> str:
    try:
        value = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise _BrokenError(f"field '{field}': byte {error.start} is not UTF-8") from None
    if not isinstance(value, str):
        raise _BrokenError(f"field '{field}' is not a string but {type(value).__name__}")
    return value


def _beginning(raw: bytes | dict[str, Any]) -> str:
    if isinstance(raw, dict):
        return repr({key: value and value[:REJECT_CHARACTERS] for key, value in raw.items()})
    # Four bytes a character at most; cut first, as a line may be megabytes long.
    return raw[: 4 * REJECT_CHARACTERS].decode(errors="backslashreplace")[:REJECT_CHARACTERS]
