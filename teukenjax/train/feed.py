"""The batches of a run, on its mesh: each process reads the rows of its own devices.

What is in a batch depends on its number alone (``data.stream``), and which rows of it a process
reads on the mesh alone. So a run may go on with other processes, devices, strategies and numbers
of micro-batches, and its stream of tokens stays the same.
"""

from collections.abc import Iterator

import jax
import numpy as np

from teukenjax.data.chat.stream import ChatStream
from teukenjax.data.loader import batches
from teukenjax.data.stream import Stream
from teukenjax.errors import UserError
from teukenjax.recipe import BatchConfig
from teukenjax.sharding import Layout
from teukenjax.train.batch import Batch, batch_sharding, place_batch


class Feed:
    """An iterator over the batches from number ``first`` on; to be closed."""

    def __init__(
        self, stream: Stream | ChatStream, batch: BatchConfig, layout: Layout, *, first: int
    ):
        self._parts, self._layout, self._next = batch.accumulation, layout, first
        shape = (self._parts, batch.sequences // self._parts, 1)
        rows = local_rows(batch_sharding(layout), shape)
        self._loaded = batches(stream, batch_size=batch.sequences, first_step=first, rows=rows)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          UserError: for damaged tokens, or no rows left.
          TryAgainError: for a store that does not answer.
        """
        try:
            samples = next(self._loaded)
        except StopIteration:
            raise UserError(f"data.mixture: its stages end before batch {self._next}") from None
        self._next += 1
        return place_batch(samples, self._parts, self._layout)

    def close(self) -> None:
        """Stops the reading threads."""
        self._loaded.close()


def local_rows(sharding: jax.sharding.NamedSharding, shape: tuple[int, int, int]) -> list[int]:
    """The rows of a batch [A, B/A, …] that devices of this process hold, in order."""
    numbers = np.arange(shape[0] * shape[1]).reshape(shape[:2])
    indices = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([numbers[index[:2]].ravel() for index in indices])).tolist()
