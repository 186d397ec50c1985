"""Writing a token store: documents come one batch at a time, arrays grow by whole shards."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Int32

from teukenjax.data.documents import Reject
from teukenjax.data.store import COLUMNS, Counts, Manifest, Source, Split, TokenStore, spec
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError

SHARD = 1 << 22  # elements in a file: 16 MiB of ids, all that the writer holds of an array
CHUNK = 1 << 14  # elements that are compressed, checked and read together


def refuse_existing(path: Path) -> None:
    """Raises a UserError when there is already something at ``path``."""
    if path.exists():
        raise UserError(f"{path}: already exists: remove it, or choose another name for the store")


class StoreWriter:
    """Writes a store as its documents come; use as a context manager.

    Everything goes to ``path`` + ".partial" (one left by a run that died is removed); only
    ``finish`` gives it its name. Leaving the context without it removes what was written. It
    holds at most one shard (16 MiB) for each split and language in memory.

    Raises:
      UserError: when ``path`` exists, or ``tokenizer`` has no ``<eod>``.
    """

    def __init__(self, path: str | Path, tokenizer: Tokenizer):
        self._path = Path(path)
        refuse_existing(self._path)
        self._tokenizer = tokenizer
        self._eod = np.array([tokenizer.eod_id], np.int32)
        self._streams: dict[tuple[Split, str], _Stream] = {}
        self._rejects = 0
        self._partial = self._path.with_name(self._path.name + ".partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)  # after finish() there is none

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
            self._streams[key] = _Stream(self._partial / split / language)
        self._streams[key].append(ids, sizes, self._eod)

    def reject(self, reject: Reject) -> None:
        """Keeps a line that is no document, in ``rejects.jsonl``."""
        self._rejects += 1
        path = self._partial / "rejects.jsonl"
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(dataclasses.asdict(reject), ensure_ascii=False) + "\n")

    def finish(
        self, *, sources: Iterable[Path] = (), lines: int = 0, holdout: float = 0.0
    ) -> "TokenStore":
        """Completes the store, gives it its name and opens it."""
        self._tokenizer.save(self._partial / "tokenizer.model")
        splits: dict[Split, dict[str, Counts]] = {"train": {}, "valid": {}}
        for (split, language), stream in sorted(self._streams.items()):
            splits[split][language] = stream.close()
        manifest = Manifest(
            tokenizer=self._tokenizer.digest,
            vocab_size=self._tokenizer.vocab_size,
            eod_id=self._tokenizer.eod_id,
            holdout=holdout,
            lines=lines,
            rejects=self._rejects,
            splits=splits,
            sources=[Source(file=str(file), bytes=file.stat().st_size) for file in sources],
        )
        (self._partial / "manifest.json").write_text(manifest.model_dump_json(indent=1))
        self._partial.rename(self._path)
        return TokenStore.open(self._path)


class _Stream:
    """The three growing arrays of one language in one split."""

    def __init__(self, folder: Path):
        self._arrays = {name: _Growing(folder / name, COLUMNS[name]) for name in COLUMNS}
        self._documents = self._tokens = self._bytes = 0
        self._hash = hashlib.sha256()

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


class _Growing:
    """A flat array on disk that is appended to, in whole shards until the last."""

    def __init__(self, path: Path, dtype: str):
        with _as_oserror():
            self._array = ts.open(spec(path) | _layout(dtype), create=True).result()
        self._written = self._held = 0
        self._buffer: list[np.ndarray] = []

    def append(self, values: np.ndarray) -> None:
        self._buffer.append(values)
        self._held += len(values)
        if self._held >= SHARD:
            self._write(self._held // SHARD * SHARD)

    def flush(self) -> None:
        self._write(self._held)

    def _write(self, count: int) -> None:
        if not count:
            return
        values = np.concatenate(self._buffer)
        end = self._written + count
        with _as_oserror():
            self._array = self._array.resize(exclusive_max=[end]).result()
            self._array[self._written : end].write(values[:count]).result()
        self._buffer, self._held, self._written = [values[count:]], len(values) - count, end


@contextlib.contextmanager
def _as_oserror() -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # what TensorStore raises for everything
        raise OSError(str(error).split(" [")[0]) from None


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
