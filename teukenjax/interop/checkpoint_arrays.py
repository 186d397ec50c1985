"""The parameters of a checkpoint, read and written a piece at a time.

Orbax reads and writes whole arrays; a stacked matrix of Teuken-7B is 7 GB. Its files are plain
Zarr underneath, which TensorStore reads and writes by pieces: reading works on any checkpoint,
writing makes one in Orbax's form without OCDBT, where each piece is a file of its own.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from teukenjax.checkpoint import FOLDER, STORED_BYTES
from teukenjax.errors import UserError
from teukenjax.interop.hf_weights import Tensor

HANDLERS = "orbax.checkpoint._src.handlers"


class CheckpointArrays:
    """The arrays under ``params`` of one step's state."""

    def __init__(self, state: Path):
        """Args: RUN/checkpoints/STEP/state, whole or to be written."""
        self.state = state.resolve()
        self._open: dict[str, ts.TensorStore] = {}

    def read(self, tensor: Tensor, rows: slice) -> np.ndarray:
        """``rows`` of our piece for a Hugging Face tensor, fp32."""
        name = _key(tensor.path)
        try:
            if name not in self._open:
                self._open[name] = ts.open(self._spec(name), read=True).result()
            return self._piece(name, tensor, rows).read().result()
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.state}: '{name}' cannot be read: {reason:.200}") from None

    def write(self, tensor: Tensor, rows: slice, block: np.ndarray) -> None:
        """Writes what ``read`` gives; returns when it is with the system."""
        self._piece(_key(tensor.path), tensor, rows).write(block).result()

    def create(self, shapes: dict[tuple[str, ...], tuple[int, ...]]) -> None:
        """Makes the arrays, or finds those of a call that was killed.

        Args:
          shapes: our path → shape.
        """
        for path, shape in shapes.items():
            name = _key(path)
            metadata = {
                "shape": list(shape),
                "chunks": _chunks(shape),
                "dtype": "<f4",
                "compressor": {"id": "zstd", "level": 1},
                "fill_value": None,
                "order": "C",
            }
            spec = self._spec(name) | {"metadata": metadata}
            self._open[name] = ts.open(spec, create=True, open=True).result()

    def _piece(self, name: str, tensor: Tensor, rows: slice) -> ts.TensorStore:
        array = self._open[name]
        return array[rows] if tensor.layer is None else array[tensor.layer][rows]

    def _spec(self, name: str) -> dict[str, Any]:
        if (self.state / "manifest.ocdbt").is_file():
            store = {"driver": "ocdbt", "base": f"file://{self.state}/", "path": f"{name}/"}
        else:
            store = {"driver": "file", "path": f"{self.state}/{name}/"}
        return {"driver": "zarr", "kvstore": store, "recheck_cached_data": "open"}


def write_checkpoint_metadata(run: Path, paths: Iterable[tuple[str, ...]], about: dict) -> None:
    """What makes a step 0 of the arrays that ``CheckpointArrays`` wrote to its ``state``."""
    step = run / FOLDER / "0"
    tree = {
        str(("params", *path)): {
            "key_metadata": [{"key": key, "key_type": 2} for key in ("params", *path)],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
        }
        for path in paths
    }
    metadata = {"tree_metadata": tree, "use_ocdbt": False, "use_zarr3": False}
    handlers = {
        "state": f"{HANDLERS}.standard_checkpoint_handler.StandardCheckpointHandler",
        "about": f"{HANDLERS}.json_checkpoint_handler.JsonCheckpointHandler",
    }
    _save(step / "state" / "_METADATA", metadata)
    _save(step / "about" / "metadata", about)
    _save(step / "_CHECKPOINT_METADATA", {"item_handlers": handlers})


def _key(path: tuple[str, ...]) -> str:
    return ".".join(("params", *path))


def _chunks(shape: tuple[int, ...]) -> list[int]:
    """One layer, or some rows, of at most ``STORED_BYTES``; a table has no layers."""
    chunks = list(shape)
    for axis in range(len(shape)):
        while chunks[axis] > 1 and 4 * np.prod(chunks) > STORED_BYTES:
            chunks[axis] = -(-chunks[axis] // 2)
    return chunks


def _save(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
