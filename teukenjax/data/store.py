"""The token store: a corpus as flat arrays of ids, one for each split and language.

Text is tokenised once; afterwards any window of any language is one read at a known place, which
is what lets the order of training be arithmetic (see ``mixture``). The layout::

    STORE/manifest.json                     what is inside, and from what it was made
    STORE/tokenizer.model                   the tokenizer that made the ids
    STORE/rejects.jsonl                     the lines that were no documents, if there were any
    STORE/{train,valid}/{language}/ids      uint32, every document followed by the eod id
    STORE/{train,valid}/{language}/ends     int64, where each document ends in ids, eod included
    STORE/{train,valid}/{language}/bytes    int64, UTF-8 bytes of each document's text

Arrays are Zarr 3 with sharding, Zstandard and a checksum on every chunk. The manifest is written
last (``writer``), and what it does not count does not exist: so a store that has one is whole, also
while text is appended to it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import tensorstore as ts
from jaxtyping import Int32, Int64
from pydantic import BaseModel, ConfigDict

from teukenjax.data.location import Location, context, has_no_answer, reason
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import LOST, TryAgainError, UserError

FORMAT = 1
COLUMNS = {"ids": "uint32", "ends": "int64", "bytes": "int64"}

Split = Literal["train", "valid"]
Array = tuple[str, str, str]  # split, language, column


class Counts(BaseModel):
    """The size of one language in one split, and the hash of its ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: int
    tokens: int  # eod included
    bytes: int  # of UTF-8 text
    sha256: str


class Source(BaseModel):
    """One file that the store was made from; ``bytes`` is its size on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    bytes: int
    documents: int | None = None  # none: not counted


class Manifest(BaseModel):
    """The content of ``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    tokenizer: str  # its digest
    vocab_size: int
    eod_id: int
    holdout: float
    lines: int  # read from the sources
    rejects: int  # of them
    splits: dict[Split, dict[str, Counts]]
    sources: list[Source]


class TokenStore:
    """A store to read from; made by ``TokenStore.open``. Safe to share by threads."""

    def __init__(self, location: Location, manifest: Manifest, arrays: dict[Array, Any]):
        self.location = location
        self.manifest = manifest
        self._arrays = arrays

    @classmethod
    def open(cls, where: str | Path | Location) -> "TokenStore":
        """Opens the store at a path or URL.

        Raises:
          UserError: when there is none, it was written by another version, or parts are missing.
        """
        location = Location(where)
        manifest = _read_manifest(location)
        opening = {
            (split, language, name): ts.open(
                location.array(f"{split}/{language}/{name}"), open=True, context=context()
            )
            for split, languages in manifest.splits.items()
            for language in languages
            for name in COLUMNS
        }
        arrays = {key: _opened(location, manifest, key, opening[key]) for key in opening}
        return cls(location, manifest, arrays)

    @property
    def path(self) -> Path:
        """The store's folder; only of one on a disk."""
        assert self.location.path is not None
        return self.location.path

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids; a UserError when the file was exchanged."""
        model = self.location.read("tokenizer.model")
        if model is None:
            raise UserError(f"{self.location}/tokenizer.model: is missing")
        tokenizer = Tokenizer.parse(model, f"{self.location}/tokenizer.model")
        if tokenizer.digest != self.manifest.tokenizer:
            raise UserError(
                f"{self.location}/tokenizer.model: is tokenizer {tokenizer.digest}, but the store "
                f"was made with {self.manifest.tokenizer}"
            )
        return tokenizer

    @property
    def digest(self) -> str:
        """Names the token streams: equal ids in all splits and languages, equal digest."""
        content = self.manifest.model_dump(include={"format", "tokenizer", "eod_id", "splits"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def languages(self) -> list[str]:
        """The languages of all splits, sorted."""
        return sorted({name for languages in self.manifest.splits.values() for name in languages})

    def tokens(self, split: Split, language: str) -> int:
        """Number of ids, eods included; 0 for a language that the split does not hold."""
        counts = self.manifest.splits[split].get(language)
        return counts.tokens if counts else 0

    def read(self, split: Split, language: str, start: int, stop: int) -> Int32[np.ndarray, " ids"]:
        """The ids from ``start`` to before ``stop``.

        Raises (so do all that read arrays):
          UserError: when they are damaged.
          TryAgainError: when the store's server does not answer any more.
        """
        assert 0 <= start <= stop <= self.tokens(split, language)
        return self._read(split, language, "ids", start, stop).astype(np.int32)

    def ends(self, split: Split, language: str) -> Int64[np.ndarray, " documents"]:
        """Where each document ends in the ids, eod included."""
        return self._column(split, language, "ends")

    def documents(
        self, split: Split, language: str, limit: int
    ) -> list[tuple[Int32[np.ndarray, " _"], int]]:
        """The first ``limit`` documents: ids without eod, and size in bytes of UTF-8."""
        counts = self.manifest.splits[split].get(language)
        count = min(limit, counts.documents) if counts else 0
        if not count:
            return []
        ends = self._read(split, language, "ends", 0, count)
        sizes = self._read(split, language, "bytes", 0, count)
        ids = np.split(self.read(split, language, 0, int(ends[-1])), ends[:-1])
        return [(flat[:-1], int(size)) for flat, size in zip(ids, sizes, strict=True)]

    def sizes(self, split: Split, language: str) -> Int64[np.ndarray, " documents"]:
        """Bytes of UTF-8 of each document's text."""
        return self._column(split, language, "bytes")

    def _column(self, split: Split, language: str, name: str) -> Int64[np.ndarray, " documents"]:
        counts = self.manifest.splits[split].get(language)
        if counts is None:
            return np.empty(0, np.int64)
        return self._read(split, language, name, 0, counts.documents)

    def _read(self, split: str, language: str, name: str, start: int, stop: int) -> np.ndarray:
        what = f"'{name}' of language '{language}' in {split}"
        try:
            return self._arrays[split, language, name][start:stop].read().result()
        except ValueError as error:  # what TensorStore raises for everything
            if has_no_answer(error):
                raise TryAgainError(
                    f"{self.location}: does not answer about {what}: {reason(error)}", LOST
                ) from None
            raise UserError(
                f"{self.location}: {what} is damaged between {start} and {stop}: {reason(error)}"
            ) from None


def _read_manifest(location: Location) -> Manifest:
    content, file = location.read("manifest.json"), f"{location}/manifest.json"
    if content is None:
        raise UserError(f"{location}: is not a token store: it has no manifest.json")
    try:
        values = json.loads(content)
        version = values.get("format")
        if version != FORMAT:
            raise UserError(
                f"{file}: format {version} is not {FORMAT}, which this version reads: prepare the "
                "store again"
            )
        return Manifest.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file}: is damaged: {where}: {first['msg']}") from None
    except (AttributeError, UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise UserError(f"{file}: is damaged: not a JSON object") from None


def _opened(location: Location, manifest: Manifest, key: Array, opening: ts.Future) -> Any:
    """The part of an array that the manifest counts; an append that died leaves more."""
    split, language, name = key
    counts, path = manifest.splits[split][language], f"{location}/{split}/{language}/{name}"
    expected = counts.tokens if name == "ids" else counts.documents
    try:
        array = opening.result()
    except ValueError as error:
        if has_no_answer(error):
            raise UserError(f"{path}: cannot be read: {reason(error)}") from None
        raise UserError(f"{path}: is missing or damaged: prepare the store again") from None
    if array.shape[0] < expected:
        raise UserError(f"{path}: holds {array.shape[0]} elements, the manifest says {expected}")
    return array[:expected]
