"""The loader: reads the windows that the mixture names, ahead of the training loop.

What is read is the mixture's business and *when* is Grain's. A batch is one element of a
random-access source, so seeking is slicing, and a resumed run starts at its step at once.
"""

import grain
import numpy as np
from jaxtyping import Int32

from teukenjax.data.mixture import Mixture
from teukenjax.data.store import TokenStore

THREADS = 4
PREFETCH_STEPS = 8
ENDLESS = 1 << 40  # steps


def batches(
    store: TokenStore, mixture: Mixture, *, batch_size: int, first_step: int, rows: range
) -> grain.DatasetIterator[Int32[np.ndarray, "rows window"]]:
    """Endless batches of token ids, windows of S + 1, from step ``first_step`` on.

    Args:
      store: the store that ``mixture`` was made for.
      mixture: names the window of each row.
      batch_size: rows of the global batch.
      first_step: the step of the first batch, from 0.
      rows: the rows of the global batch that this host holds; row r of step s is
        ``mixture.window(s * batch_size + r)``.

    Returns:
      An iterator with ``close()``, which stops its reading threads.

    Raises (while iterating):
      UserError: for damaged tokens.
    """
    assert all(0 <= row < batch_size for row in rows)
    steps = grain.MapDataset.source(_Steps(store, mixture, batch_size, rows))[first_step:]
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=PREFETCH_STEPS)
    return iter(steps.to_iter_dataset(options))


class _Steps:
    """A Grain source: step → this host's rows of its batch."""

    def __init__(self, store: TokenStore, mixture: Mixture, batch_size: int, rows: range):
        self._store = store
        self._mixture = mixture
        self._batch_size = batch_size
        self._rows = rows

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> Int32[np.ndarray, "rows window"]:
        return np.stack([self._window(step * self._batch_size + row) for row in self._rows])

    def _window(self, index: int) -> Int32[np.ndarray, " window"]:
        language, start = self._mixture.window(index)
        stop = start + self._mixture.sequence_length + 1
        return self._store.read("train", language, start, stop)
