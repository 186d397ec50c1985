"""Documents: plain text, JSON lines or Parquet in; one stream of checked documents out.

A corpus of any size always holds some broken lines, and a run must neither die of one nor hide
them. So a broken line is counted and handed to the caller with its file, its number and the
reason; only when their share exceeds ``max_broken`` is the corpus refused, by name of the first.
A damaged *file* is always refused: what follows the damage would be missing without a trace.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teukenjax.data.records import (
    MAX_LINE_BYTES,
    Oversized,
    json_lines,
    named,
    parquet_rows,
    text_blocks,
)
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


class _BrokenError(UserError):
    """Why a line is no document."""


def find_files(path: str | Path) -> list[Path]:
    """The text files at ``path`` (one file, or all below a directory), sorted by name.

    Raises:
      UserError: when ``path`` does not exist, or neither is nor holds a file of ``SUFFIXES``.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    found = files_ending(path, SUFFIXES)
    if not found:
        raise UserError(f"{path}: no text files found: allowed: {', '.join(SUFFIXES)}")
    return found


def refuse_within(out: Path, text: str | Path) -> None:
    """A UserError when ``out`` lies in the directory ``text``: what is written would be read."""
    if Path(text).is_dir() and out.resolve().is_relative_to(Path(text).resolve()):
        raise UserError(f"{out}: lies in {text}, of which all files are text: choose another place")


def files_ending(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files at ``path`` (itself, or all below a directory) with such names, sorted."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in files if file.name.endswith(suffixes) and file.is_file()]


@dataclass(frozen=True)
class Record:
    """One line as it was read, before anything of it is checked."""

    file: str
    line: int
    raw: bytes | dict[str, Any] | Oversized

    @property
    def size(self) -> int:
        """Bytes, about."""
        if isinstance(self.raw, dict):
            return sum(len(v) for v in self.raw.values() if isinstance(v, bytes | str))
        return len(self.raw.beginning if isinstance(self.raw, Oversized) else self.raw)


@dataclass(frozen=True)
class Fields:
    """Where text and language stand in a record.

    Where the language is missing or null, the part of the file's name before the first dot is the
    language.
    """

    text: str = "text"
    language: str = "lang"

    def parse(self, record: Record) -> Document | Reject:
        """What a record says, checked."""
        try:
            values = record.raw if isinstance(record.raw, dict) else parse_json(record.raw)
            name = Path(record.file).name.split(".")[0]
            return Document(self._text(values), self._language(values, name), record.file)
        except _BrokenError as error:
            return Reject(record.file, record.line, str(error), _beginning(record.raw))

    def _text(self, values: dict[str, Any]) -> str:
        if self.text not in values:
            raise _BrokenError(f"field '{self.text}' is missing")
        text = _string(values[self.text], self.text)
        if not text.strip():
            raise _BrokenError(f"field '{self.text}' is empty")
        if "\0" in text:
            raise _BrokenError(
                f"field '{self.text}' holds a NUL, at character {text.index(chr(0))}"
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _BrokenError(f"field '{self.text}' holds half a surrogate pair") from None
        return text

    def _language(self, values: dict[str, Any], fallback: str) -> str:
        language = values.get(self.language)
        language = fallback if language is None else _string(language, self.language)
        if not LANGUAGE.fullmatch(language):
            raise _BrokenError(
                f"language {language!r:.40} is not a code: 1 to 32 of A-Z a-z 0-9 _ - are allowed"
            )
        return language


DEFAULT_FIELDS = Fields()


class DocumentReader:
    """Streams the documents of ``files``, in order; may be iterated more than once.

    After (and during) an iteration ``lines`` and ``broken`` count what was read, and
    ``bytes_read`` is the position in the files' total size. Lines of Parquet are rows, lines of
    ``.txt`` are the blocks between blank lines, each of them a document.

    Args:
      files: as ``find_files`` returns them.
      fields: of JSON and Parquet.
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
        fields: Fields = DEFAULT_FIELDS,
        max_broken: float = 0.01,
        on_reject: Callable[[Reject], None] = lambda reject: None,
    ):
        self.files = list(files)
        self.fields = fields
        self._max_broken = max_broken
        self._on_reject = on_reject
        self.total_bytes = sum(file.stat().st_size for file in self.files)
        self.lines = self.broken = self.bytes_read = 0

    def __iter__(self) -> Iterator[Document]:
        first = None
        self.broken = 0
        for record in self.records():
            found = self.fields.parse(record)
            if isinstance(found, Document):
                yield found
                continue
            self.broken += 1
            first = first or found
            self._on_reject(found)
        check_broken(first, self.broken, self.lines, self._max_broken)

    def records(self) -> Iterator[Record]:
        """All lines, unchecked; what is wrong with a whole file is raised here."""
        self.lines = self.bytes_read = 0
        for path in self.files:
            with named(path):
                for number, raw in self._raw(path):
                    self.lines += 1
                    yield Record(str(path), number, raw)

    def _raw(self, path: Path) -> Iterator[tuple[int, Any]]:
        if path.suffix == ".txt":
            blocks = text_blocks(path, self._advance)
            key = self.fields.text
            return ((n, {key: raw} if isinstance(raw, bytes) else raw) for n, raw in blocks)
        if path.suffix == ".parquet":
            names = {"required": self.fields.text, "optional": self.fields.language}
            return parquet_rows(path, self._advance, **names)
        return json_lines(path, self._advance)

    def _advance(self, count: int) -> None:
        self.bytes_read += count


def check_broken(first: Reject | None, broken: int, lines: int, allowed: float) -> None:
    """Raises a UserError when more than the share ``allowed`` of the lines is broken."""
    if broken > allowed * lines:
        raise UserError(
            f"{first.file}:{first.line}: {first.reason}; {broken} of {lines} lines are broken, "
            f"max_broken={allowed} is allowed"
        )


def parse_json(raw: bytes | Oversized) -> dict[str, Any]:
    """The object that a line holds; a UserError says why it is none."""
    if isinstance(raw, Oversized):
        raise _BrokenError(f"is {raw.size:,} bytes long: {MAX_LINE_BYTES:,} are allowed")
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


def _beginning(raw: bytes | dict[str, Any] | Oversized) -> str:
    raw = raw.beginning if isinstance(raw, Oversized) else raw
    if isinstance(raw, dict):
        return repr({key: _cut(value) for key, value in raw.items()})
    # Four bytes a character at most; cut first, as a line may be megabytes long.
    return raw[: 4 * REJECT_CHARACTERS].decode(errors="backslashreplace")[:REJECT_CHARACTERS]


def _cut(value: Any) -> Any:
    return value[:REJECT_CHARACTERS] if isinstance(value, bytes | str) else value
