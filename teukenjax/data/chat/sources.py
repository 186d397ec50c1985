"""Files of conversations → conversations, each checked, by language, a share held out.

Which conversations are held out, and which ``take`` of a larger file are used, is decided by a
hash of their text: so neither depends on the order of the rows.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from teukenjax.data.chat.messages import Conversation, parse
from teukenjax.data.chat.template import system_sentences
from teukenjax.data.documents import files_ending, parse_json
from teukenjax.data.records import ROWS, json_lines, named
from teukenjax.errors import UserError, nearest
from teukenjax.recipe import ChatSource, SftConfig

TOY = Path(__file__).parent / "toy"
SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")


@dataclass
class Found:
    """What the sources hold.

    ``broken`` are the errors of rows that were left out, at most ``sft.max_broken`` of them all.
    """

    train: dict[str, list["Row"]] = field(default_factory=dict)
    held_out: dict[str, list["Row"]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    rows: int = 0


@dataclass(frozen=True)
class Row:
    """A conversation and where it stands, as FILE:LINE (rows, for Parquet)."""

    where: str
    conversation: Conversation

    @property
    def rank(self) -> float:
        """A number from 0 to 1 that depends on the text alone."""
        digest = hashlib.blake2b(repr(self.conversation).encode(), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64


def read_sources(config: SftConfig) -> Found:
    """The conversations of all sources, languages in alphabetical order.

    Raises:
      UserError: for a source that is not there or has fewer conversations than it is to give, and
        for broken rows, by file and number, when they are more than ``max_broken`` allows.
    """
    found = Found()
    by_language: dict[str, list[Row]] = {}
    for source in config.sources:
        for row in _taken(source, found):
            by_language.setdefault(row.conversation.language, []).append(row)
    if len(found.broken) > config.max_broken * found.rows:
        raise UserError(
            f"{found.broken[0]}; {len(found.broken)} of {found.rows} rows are broken, "
            f"sft.max_broken={config.max_broken} is allowed"
        )
    for language, rows in sorted(by_language.items()):
        held = _lowest(rows, round(config.holdout * len(rows)))
        found.held_out[language] = [row for row in rows if row.where in held]
        found.train[language] = [row for row in rows if row.where not in held]
    return found


def _lowest(rows: list[Row], count: int) -> set[str]:
    """Where the rows of lowest rank stand."""
    return {row.where for row in sorted(rows, key=lambda row: row.rank)[:count]}


def _taken(source: ChatSource, found: Found) -> list[Row]:
    rows = list(_rows(source, found))
    if source.take is None:
        return rows
    if len(rows) < source.take:
        raise UserError(f"{source.data}: has {len(rows)} conversations, take={source.take:,}")
    chosen = _lowest(rows, source.take)
    return [row for row in rows if row.where in chosen]


def _rows(source: ChatSource, found: Found) -> Iterator[Row]:
    languages = system_sentences()
    for file in _files(source):
        named = file.name.split(".")[0].lower()
        language = source.language or (named if named in languages else None)
        for number, values in _values(file):
            where = f"{file}:{number}"
            found.rows += 1
            try:
                values = values if isinstance(values, dict) else parse_json(values)
                yield Row(where, parse(values, language=language, languages=languages))
            except UserError as error:
                found.broken.append(f"{where}: {error}")


def _files(source: ChatSource) -> list[Path]:
    if source.language is not None and source.language not in system_sentences():
        known = nearest(source.language, system_sentences())
        raise UserError(f"sft.sources: language '{source.language}' is unknown: {known}")
    path = TOY if source.data == "toy" else Path(source.data)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    files = files_ending(path, SUFFIXES)
    if not files:
        raise UserError(f"{path}: no files of {', '.join(SUFFIXES)} found")
    return files


def _values(file: Path) -> Iterator[tuple[int, Any]]:
    """Number from 1, and the row: undecoded lines of JSON, or Parquet's values."""
    with named(file):
        if file.suffix != ".parquet":
            yield from json_lines(file, lambda _: None)
            return
        with pq.ParquetFile(file) as parquet:
            number = 0
            for batch in parquet.iter_batches(batch_size=ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
