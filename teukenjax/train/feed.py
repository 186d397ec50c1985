"""The batches of a run, on its mesh: each process reads the rows of its own devices.

What is in a batch depends on its number alone (``data.stream``), and which rows of it a process
reads on the mesh alone. So a run may go on with other processes, devices, strategies and numbers
of micro-batches, and its stream of tokens stays the same.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Int

from teukenjax.data.loader import batches
from teukenjax.data.stream import Stream
from teukenjax.errors import UserError
from teukenjax.recipe import BatchConfig
from teukenjax.sharding import Layout
from teukenjax.train.step import batch_sharding


class Feed:
    """An iterator over batches [A, B/A, S+1] from batch ``first`` on; to be closed."""

    def __init__(self, stream: Stream, batch: BatchConfig, layout: Layout, *, first: int):
        parts = batch.accumulation
        self._shape = (parts, batch.sequences // parts, stream.sequence_length + 1)
        self._sharding = batch_sharding(layout)
        self._rows = local_rows(self._sharding, self._shape)
        self._loaded = batches(
            stream, batch_size=batch.sequences, first_step=first, rows=self._rows
        )
        self._next = first

    def __iter__(self) -> Iterator[jax.Array]:
        return self

    def __next__(self) -> jax.Array:
        """The next batch.

        Raises:
          UserError: for damaged tokens, a store that does not answer, or no rows left.
        """
        try:
            tokens = next(self._loaded)["tokens"]
        except StopIteration:
            raise UserError(f"data.mixture: its stages end before batch {self._next}") from None
        self._next += 1
        numbers = row_numbers(self._shape)

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            return tokens[np.searchsorted(self._rows, numbers[index[:2]]), index[2]]

        return jax.make_array_from_callback(self._shape, self._sharding, shard)

    def close(self) -> None:
        """Stops the reading threads."""
        self._loaded.close()


def row_numbers(shape: tuple[int, int, int]) -> Int[np.ndarray, "A rows"]:
    """Which row of the global batch is where in [A, B/A, S+1]."""
    return np.arange(shape[0] * shape[1]).reshape(shape[:2])


def local_rows(sharding: jax.sharding.NamedSharding, shape: tuple[int, int, int]) -> list[int]:
    """The rows of a batch [A, B/A, S+1] that devices of this process hold, in order."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    held = [row_numbers(shape)[index[:2]].ravel() for index in indices]
    return np.unique(np.concatenate(held)).tolist()
