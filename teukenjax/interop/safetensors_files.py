"""Safetensors a piece at a time: files whose header is written first and filled in any order.

The layout of a file follows from names, shapes and dtypes alone, so no shard is ever held in
memory; a tensor's rows go straight to their place.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from teukenjax.errors import UserError
from teukenjax.interop.hf_weights import DTYPES, Tensor
from teukenjax.interop.resumable import write_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SUMS = "SHA256SUMS"
CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
READABLE = {code: name for name, code in CODES.items()}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
HASH_BYTES = 16 * 2**20


class Place(NamedTuple):
    """Where a tensor's bytes begin, and as what they are written."""

    file: Path
    offset: int
    dtype: np.dtype


def lay_out(
    tensors: Iterable[Tensor], dtypes: dict[str, str], out: Path, *, shard_bytes: int
) -> dict[str, Place]:
    """Makes the files of ``tensors`` in folder ``out``, at their full size, and the index.

    One file; when the tensors are larger than ``shard_bytes``, numbered files, each at most that
    large (or one tensor). Files that are there already, from a call that was killed, stay.

    Args:
      tensors: in the order of the files.
      dtypes: of each tensor, by its name.
      out: a folder.
      shard_bytes: of one file's tensors.
    """
    shards = _shards(tensors, dtypes, shard_bytes)
    names = [SINGLE] if len(shards) == 1 else list(map(_numbered(len(shards)), range(len(shards))))
    places = {}
    for file, shard in zip(names, shards, strict=True):
        places |= _make(out / file, shard, dtypes)
    if len(shards) > 1:
        total = sum(_bytes(tensor, dtypes) for shard in shards for tensor in shard)
        weight_map = {name: place.file.name for name, place in places.items()}
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return places


def write_rows(place: Place, rows: slice, block: np.ndarray) -> None:
    """Puts ``rows`` of a tensor at their place, rounded to its dtype."""
    with np.errstate(over="ignore"):  # an overflow is found below
        rounded = np.ascontiguousarray(block, dtype=place.dtype)
    if not np.isfinite(rounded.astype(np.float32, copy=False)).all():
        raise UserError(f"holds values that {place.dtype.name} cannot: NaN, infinite or too large")
    row_bytes = math.prod(block.shape[1:]) * place.dtype.itemsize
    with place.file.open("r+b") as file:
        file.seek(place.offset + rows.start * row_bytes)
        file.write(rounded.view(np.uint8).data)


class Stored(NamedTuple):
    """One tensor of a folder as it lies there."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    def read(self, name: str, rows: slice) -> np.ndarray:
        """Some of its rows, in fp32; only they are read."""
        with safe_open(self.file, framework="numpy") as opened:
            return np.asarray(opened.get_slice(name)[rows]).astype(np.float32)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a Hugging Face folder, by name; no weight is read.

    Raises:
      UserError: for no safetensors (pickles are never opened), an index that does not fit the
        files, a truncated or damaged file, or a dtype that is none of ``CODES``.
    """
    found: dict[str, Stored] = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="numpy") as opened:
                # Not a dict: the file handle offers its names by this method alone.
                for name in opened.keys():  # noqa: SIM118
                    described = opened.get_slice(name)
                    code, shape = described.get_dtype(), tuple(described.get_shape())
                    if code not in READABLE:
                        allowed = ", ".join(READABLE)
                        raise UserError(f"{file}: {name} is {code}: allowed: {allowed}")
                    if name in found:
                        raise UserError(f"{file}: {name} is also in {found[name].file.name}")
                    found[name] = Stored(file, READABLE[code], shape)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: is truncated or no safetensors file: {error}") from None
    return found


def write_sums(folder: Path, report: Callable[[int], None]) -> None:
    """Writes ``SHA256SUMS`` of all weights, as ``sha256sum -c`` reads it."""
    files = sorted(folder.glob("*.safetensors"))
    lines = [f"{_sha256(file, report)}  {file.name}\n" for file in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check_sums(folder: Path, report: Callable[[int], None]) -> None:
    """Compares the weights with ``SHA256SUMS``; a UserError names what differs."""
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        if name.endswith(".safetensors") and _sha256(folder / name, report) != expected:
            raise UserError(f"{folder / name}: is not what {SUMS} says: fetch or export it again")


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        pickles = sorted(path for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{pickles[0]}: is a pickle, which can run code when it is read: only safetensors "
                "are read"
            )
        raise UserError(f"{folder}: has neither {SINGLE} nor {INDEX}")
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: is damaged: no JSON with a weight_map") from None
    for name in sorted(names, key=str):
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not name.endswith(".safetensors")
        ):
            raise UserError(f"{index}: names '{name}': only safetensors beside it are read")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: is missing, and the index names it")
    return [folder / name for name in sorted(names)]


def _bytes(tensor: Tensor, dtypes: dict[str, str]) -> int:
    return math.prod(tensor.theirs) * DTYPES[dtypes[tensor.name]].itemsize


def _shards(tensors, dtypes, shard_bytes) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        size = _bytes(tensor, dtypes)
        if shards[-1] and held + size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += size
    return shards


def _numbered(count: int) -> Callable[[int], str]:
    return lambda position: f"model-{position + 1:05d}-of-{count:05d}.safetensors"


def _make(file: Path, shard: list[Tensor], dtypes: dict[str, str]) -> dict[str, Place]:
    # Without this entry older versions of transformers refuse the file.
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in shard:
        begin, end = end, end + _bytes(tensor, dtypes)
        dtype = CODES[dtypes[tensor.name]]
        header[tensor.name] = {
            "dtype": dtype,
            "shape": list(tensor.theirs),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    if not file.exists():
        new = file.with_name(file.name + ".new")
        with new.open("wb") as opened:
            opened.write(struct.pack("<Q", len(text)) + text)
            opened.truncate(start + end)
        new.replace(file)
    return {
        tensor.name: Place(
            file,
            start + header[tensor.name]["data_offsets"][0],
            DTYPES[dtypes[tensor.name]],
        )
        for tensor in shard
    }


def _sha256(file: Path, report: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while block := opened.read(HASH_BYTES):
                digest.update(block)
                report(len(block))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
