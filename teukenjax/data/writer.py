"""Writing a token store: documents come one batch at a time, arrays grow by whole shards."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Int32

from teukenjax.data.location import Location, context, reason
from teukenjax.data.store import COLUMNS, Counts, Manifest, Source, Split, TokenStore
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError

SHARD = 1 << 22  # elements in a file: 16 MiB of ids, all that the writer holds of an array
# Elements that are compressed, checked and read together: a quarter of 2^14 takes 6 % more disk
# and a third of the time for a window of 257 ids.
CHUNK = 1 << 12


def refuse_existing(location: Location) -> None:
    """Raises a UserError when there is already something at a location."""
    if location.exists():
        raise UserError(
            f"{location}: already exists: remove it, choose another name for the store, or append"
        )


class StoreWriter:
    """Writes a new store as its documents come, or appends to one; use as a context manager.

    A new store on a disk is written to ``path`` + ".writing" (what a run that died left there is
    replaced), and gets its name in ``finish``. At a URL, where nothing can be renamed, and in an
    append the arrays are written in place; they count when ``finish`` writes the manifest. Leaving
    the context without it leaves the store, or its absence, as it was. It holds at most one shard
    (16 MiB) for each split and language in memory.

    Args:
      where: path or URL of a new store; or
      tokenizer: … its tokenizer.
      extend: an existing store to append to.

    Raises:
      UserError: when there is something at ``where``, or ``tokenizer`` has no ``<eod>``.
    """

    def __init__(
        self,
        where: str | Path | Location,
        tokenizer: Tokenizer,
        *,
        extend: TokenStore | None = None,
    ):
        self._final = self._target = Location(where)
        self._tokenizer = tokenizer
        self._eod = np.array([tokenizer.eod_id], np.int32)
        self._old = extend
        self._streams: dict[tuple[Split, str], _Stream] = {}
        self._rejects: list[bytes] = []
        if extend is None:
            refuse_existing(self._final)
            if self._final.path:
                self._target = Location(f"{self._final}.writing")
                shutil.rmtree(self._target.path, ignore_errors=True)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_) -> None:
        if self._target is not self._final:
            shutil.rmtree(self._target.path, ignore_errors=True)  # after finish() there is none

    def append(
        self,
        split: Split,
        language: str,
        *,
        ids: list[Int32[np.ndarray, " _"]],
        sizes: list[int],
    ) -> None:
        """Adds documents: the ids of each, without eod, and its size in bytes of UTF-8."""
        key = (split, language)
        if key not in self._streams:
            self._streams[key] = _Stream(self._target, split, language, self._old)
        self._streams[key].append(ids, sizes, self._eod)

    def reject(self, lines: bytes) -> None:
        """Keeps lines of JSON about what is no document, for ``rejects.jsonl``."""
        self._rejects.append(lines)

    def finish(
        self, *, sources: list[Source] | None = None, lines: int = 0, holdout: float = 0.0
    ) -> "TokenStore":
        """Completes the store and opens it."""
        old = self._old.manifest if self._old else None
        splits = {
            split: dict(old.splits.get(split, {})) if old else {} for split in ("train", "valid")
        }
        for (split, language), stream in self._streams.items():
            splits[split][language] = stream.close()
        rejects = b"".join(self._rejects)
        manifest = Manifest(
            tokenizer=self._tokenizer.digest,
            vocab_size=self._tokenizer.vocab_size,
            eod_id=self._tokenizer.eod_id,
            holdout=holdout,
            lines=lines + (old.lines if old else 0),
            rejects=rejects.count(b"\n") + (old.rejects if old else 0),
            splits={split: dict(sorted(languages.items())) for split, languages in splits.items()},
            sources=[*(old.sources if old else ()), *(sources or ())],
        )
        if rejects:
            before = (self._target.read("rejects.jsonl") or b"").splitlines(keepends=True)
            counted = before[: old.rejects if old else 0]  # an append that died may have left more
            self._target.write("rejects.jsonl", b"".join(counted) + rejects)
        if not old:
            self._target.write("tokenizer.model", self._tokenizer.model)
        self._target.write("manifest.json", manifest.model_dump_json(indent=1).encode())
        if self._target is not self._final:
            self._target.path.rename(self._final.path)
        return TokenStore.open(self._final)


class _Stream:
    """The three growing arrays of one language in one split."""

    def __init__(self, location: Location, split: Split, language: str, old: TokenStore | None):
        counts = old.manifest.splits[split].get(language) if old else None
        self._hash = hashlib.sha256()
        self._documents = self._tokens = self._bytes = 0
        if counts:
            self._documents, self._tokens = counts.documents, counts.tokens
            self._bytes = counts.bytes
            update_hash(self._hash, old, split, language)
        lengths = {"ids": self._tokens, "ends": self._documents, "bytes": self._documents}
        self._arrays = {
            name: _Growing(location, f"{split}/{language}/{name}", COLUMNS[name], lengths[name])
            for name in COLUMNS
        }

    def append(self, ids: list[np.ndarray], sizes: list[int], eod: np.ndarray) -> None:
        flat = np.concatenate([part for document in ids for part in (document, eod)])
        flat = flat.astype(np.uint32)
        ends = self._tokens + np.cumsum([len(document) + 1 for document in ids], dtype=np.int64)
        self._hash.update(flat.data)
        self._arrays["ids"].append(flat)
        self._arrays["ends"].append(ends)
        self._arrays["bytes"].append(np.array(sizes, np.int64))
        self._documents += len(ids)
        self._tokens += len(flat)
        self._bytes += sum(sizes)

    def close(self) -> Counts:
        for array in self._arrays.values():
            array.flush()
        return Counts(
            documents=self._documents,
            tokens=self._tokens,
            bytes=self._bytes,
            sha256=self._hash.hexdigest()[:16],
        )


def update_hash(state: Any, store: TokenStore, split: Split, language: str) -> None:
    """Feeds all ids of a language to a hash, and so checks that they can be read."""
    total = store.tokens(split, language)
    for start in range(0, total, SHARD):
        ids = store.read(split, language, start, min(start + SHARD, total))
        state.update(ids.astype(np.uint32).data)


class _Growing:
    """A flat array that is appended to, in whole shards until the last."""

    def __init__(self, location: Location, key: str, dtype: str, length: int):
        self._name = f"{location}/{key}"
        how = {"open": True} if length else {"create": True, "delete_existing": True}
        spec = location.array(key) | ({} if length else _layout(dtype))
        self._array = self._await(ts.open(spec, context=context(), **how))
        self._written, self._held = length, 0
        self._buffer: list[np.ndarray] = []

    def append(self, values: np.ndarray) -> None:
        self._buffer.append(values)
        self._held += len(values)
        if self._held >= SHARD:
            # An append may begin inside a shard; from its first write on the borders are met.
            self._write((self._written + self._held) // SHARD * SHARD - self._written)

    def flush(self) -> None:
        self._write(self._held)

    def _write(self, count: int) -> None:
        if not count:
            return
        values = np.concatenate(self._buffer)
        end = self._written + count
        self._array = self._await(self._array.resize(exclusive_max=[end]))
        self._await(self._array[self._written : end].write(values[:count]))
        self._buffer, self._held, self._written = [values[count:]], len(values) - count, end

    def _await(self, future: Any) -> Any:
        try:
            return future.result()
        except ValueError as error:  # what TensorStore raises for everything
            raise UserError(f"{self._name}: cannot be written: {reason(error)}") from None


def _layout(dtype: str) -> dict[str, Any]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [CHUNK],
        "codecs": [little, {"name": "zstd", "configuration": {"level": 1}}, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
    }
    grid = {"name": "regular", "configuration": {"chunk_shape": [SHARD]}}
    codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return {"metadata": {"shape": [0], "data_type": dtype, "chunk_grid": grid, "codecs": codecs}}
