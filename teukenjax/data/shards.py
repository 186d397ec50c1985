"""Shards: pieces of the input that worker processes encode, each into files of its own.

A shard is some megabytes of lines in the order of the input, cut without regard to files and
workers; so the same shards come out of any number of processes. A finished shard is a folder under
its final name, and is never done again: a run that was killed reads past its lines and goes on.

    PARTS/000017/ids.npy          uint32, the documents one after another, without eods
    PARTS/000017/documents.npy    language (a number), tokens, bytes of UTF-8
    PARTS/000017/rejects.jsonl    lines that are no documents
    PARTS/000017/part.json        languages by number, lines, documents of each file
"""

import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt32

from teukenjax.data.documents import Document, Fields, Record, Reject
from teukenjax.data.tokenizer import Tokenizer

SHARD_BYTES = 1 << 24  # of raw lines
ROW = np.dtype([("language", "<u2"), ("tokens", "<i8"), ("bytes", "<i8")])


class Part(NamedTuple):
    """A finished shard."""

    ids: UInt32[np.ndarray, " tokens"]
    documents: np.ndarray  # of ROW
    languages: list[str]
    rejects: bytes
    lines: int
    files: dict[str, int]  # documents of each

    @classmethod
    def load(cls, folder: Path) -> "Part":
        """Opens the shard in a folder; its ids stay on disk."""
        about = json.loads((folder / "part.json").read_text(encoding="utf-8"))
        return cls(
            ids=np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False),
            documents=np.load(folder / "documents.npy", allow_pickle=False),
            rejects=(folder / "rejects.jsonl").read_bytes(),
            **about,
        )


@dataclasses.dataclass(frozen=True)
class ShardEncoder:
    """Encodes shards into folders of ``parts``."""

    parts: Path
    model: bytes  # of the tokenizer
    fields: Fields

    def __call__(self, number: int, records: list[Record]) -> None:
        """Encodes one shard."""
        found = [self.fields.parse(record) for record in records]
        documents = [item for item in found if isinstance(item, Document)]
        rejects = [item for item in found if isinstance(item, Reject)]
        ids = self.tokenizer.encode_batch([document.text for document in documents], threads=1)
        languages = sorted({document.language for document in documents})
        rows = [
            (languages.index(document.language), len(row), len(document.text.encode()))
            for document, row in zip(documents, ids, strict=True)
        ]
        files = Counter(document.source for document in documents)
        about = {
            "languages": languages,
            "lines": len(records),
            "files": {record.file: files[record.file] for record in records},
        }
        unfinished = self.parts / f"{number:06}.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        flat = np.concatenate([np.empty(0, np.int32), *ids]).astype(np.uint32)
        _save(unfinished / "ids.npy", flat)
        _save(unfinished / "documents.npy", np.array(rows, ROW))
        (unfinished / "rejects.jsonl").write_bytes(b"".join(map(_json_line, rejects)))
        (unfinished / "part.json").write_text(json.dumps(about), encoding="utf-8")
        unfinished.rename(part_folder(self.parts, number))

    @property
    def tokenizer(self) -> Tokenizer:
        """Loaded once a process."""
        if self.model not in _LOADED:
            _LOADED[self.model] = Tokenizer(self.model)
        return _LOADED[self.model]


_LOADED: dict[bytes, Tokenizer] = {}


def part_folder(parts: Path, number: int) -> Path:
    """Where shard ``number`` is when it is finished."""
    return parts / f"{number:06}"


def encode_shards(records: Iterable[Record], encoder: ShardEncoder, *, processes: int) -> int:
    """Encodes all records that no finished shard holds; the number of shards.

    At most two shards for each process are in memory.
    """
    count = 0
    with _workers(processes, encoder) as submit:
        for count, shard in enumerate(_shards(records), start=1):
            if not part_folder(encoder.parts, count - 1).exists():
                submit(count - 1, shard)
    return count


def _shards(records: Iterable[Record]) -> Iterator[list[Record]]:
    shard, size = [], 0
    for record in records:
        shard.append(record)
        size += record.size
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _save(path: Path, array: np.ndarray) -> None:
    # By way of memory: of a full disk NumPy says only how many items it could not write.
    content = io.BytesIO()
    np.save(content, array)
    try:
        path.write_bytes(content.getvalue())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _json_line(reject: Reject) -> bytes:
    line = json.dumps(dataclasses.asdict(reject), ensure_ascii=False) + "\n"
    return line.encode(errors="backslashreplace")


class _workers:  # noqa: N801  (used like a function)
    """A context that gives ``submit(number, shard)``, which waits while enough are under way."""

    def __init__(self, processes: int, encoder: ShardEncoder):
        self._processes = processes
        self._encoder = encoder
        self._running: set[Future] = set()

    def __enter__(self):
        if self._processes == 1:
            return self._encoder
        # Not forked from this process, which may have threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pool = ProcessPoolExecutor(
            self._processes, context, initializer=_start, initargs=(self._encoder,)
        )
        return self._submit

    def __exit__(self, kind, *_) -> None:
        if self._processes > 1:
            try:
                while kind is None and self._running:
                    self._collect()
            finally:
                self._pool.shutdown(cancel_futures=True)

    def _submit(self, number: int, shard: list[Record]) -> None:
        while len(self._running) >= 2 * self._processes:
            self._collect()
        self._running.add(self._pool.submit(_encode, number, shard))

    def _collect(self) -> None:
        done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()


def _start(encoder: ShardEncoder) -> None:
    global _encoder
    _encoder = encoder
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _encode(number: int, records: list[Record]) -> None:
    _encoder(number, records)
