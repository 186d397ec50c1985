"""The loader: reads the samples of the stream, ahead of the training loop.

What is read is the stream's business and *when* is Grain's. A batch is one element of a
random-access source, so seeking is slicing, and a resumed run starts at its step at once.
"""

from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Float32, Int32

from teukenjax.data.chat.stream import ChatStream
from teukenjax.data.stream import Stream

THREADS = 4
PREFETCH_STEPS = 8
ENDLESS = 1 << 40  # steps

Batch = dict[str, Int32[np.ndarray, "rows _"] | Float32[np.ndarray, "rows _"]]


def batches(
    stream: Stream | ChatStream, *, batch_size: int, first_step: int, rows: Sequence[int]
) -> grain.DatasetIterator[Batch]:
    """Batches from step ``first_step`` to the end of the stream; samples stacked.

    Args:
      stream: names and reads the samples.
      batch_size: rows of the global batch.
      first_step: the step of the first batch, from 0.
      rows: the rows of the global batch that this host holds; row r of step s is
        ``stream.sample(s * batch_size + r)``.

    Returns:
      An iterator with ``close()``, which stops its reading threads.

    Raises (while iterating):
      UserError: for damaged tokens.
      TryAgainError: for a store that does not answer.
    """
    assert all(0 <= row < batch_size for row in rows)
    steps = grain.MapDataset.source(_Steps(stream, batch_size, rows))[first_step:]
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=PREFETCH_STEPS)
    return iter(steps.to_iter_dataset(options))


class _Steps:
    """A Grain source: step → this host's rows of its batch."""

    def __init__(self, stream: Stream | ChatStream, batch_size: int, rows: Sequence[int]):
        self._stream = stream
        self._batch_size = batch_size
        self._rows = rows

    def __len__(self) -> int:
        rows = self._stream.mixture.rows
        return ENDLESS if rows is None else rows // self._batch_size

    def __getitem__(self, step: int) -> Batch:
        samples = [self._stream.sample(step * self._batch_size + row) for row in self._rows]
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
