"""A hash of what a run reads, so that two clusters can find out that they read the same.

Each process of a run reads its rows of every batch. Here so many real processes do that and hash
each row; the hash of all rows, in the order of the stream, is then the same for any number of
processes, and any division of the steps between runs.
"""

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing

import numpy as np

from teukenjax.data.loader import Batch, batches
from teukenjax.data.store import TokenStore
from teukenjax.data.stream import Stream
from teukenjax.errors import UserError
from teukenjax.recipe import Recipe

DIGEST_BYTES = 16


def fingerprint(
    recipe: Recipe, store: TokenStore, *, start: int, steps: int, processes: int
) -> str:
    """The hash of steps ``start`` … ``start + steps − 1`` of a recipe's stream, as hex.

    Raises:
      UserError: when the batch does not divide over the processes, or the mixture ends before.
    """
    rows = row_digests(recipe, store, start=start, steps=steps, processes=processes)
    return hashlib.blake2b(b"".join(rows), digest_size=DIGEST_BYTES).hexdigest()


def row_digests(
    recipe: Recipe, store: TokenStore, *, start: int, steps: int, processes: int
) -> list[bytes]:
    """The hash of each row of each step, in order of the stream; see ``fingerprint``."""
    if recipe.batch.sequences % processes:
        raise UserError(
            f"processes={processes}: batch.sequences={recipe.batch.sequences} is not a multiple"
        )
    recipe = recipe.model_copy(update={"steps": start + steps})
    Stream.of(recipe, store)  # before any process starts: mistakes are said once
    share = recipe.batch.sequences // processes
    jobs = [
        (recipe, str(store.location), start, range(number * share, (number + 1) * share))
        for number in range(processes)
    ]
    # Not forked from this process, whose threads (JAX, TensorStore) would hang in the child, but
    # from a server that has only imported what is needed.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        parts = list(pool.map(_read, jobs))
    return [row for step in zip(*parts, strict=True) for part in step for row in part]


def _read(job: tuple[Recipe, str, int, range]) -> list[list[bytes]]:
    """One process: the digests of its rows, for each step."""
    recipe, path, start, rows = job
    stream = Stream.of(recipe, TokenStore.open(path))
    loaded = batches(stream, batch_size=recipe.batch.sequences, first_step=start, rows=rows)
    with closing(loaded):
        steps = zip(range(start, recipe.steps), loaded, strict=False)
        return [_digests(batch) for _, batch in steps]


def _digests(batch: Batch) -> list[bytes]:
    """One digest a row: of the names, types and contents of its arrays."""
    arrays = [(key.encode(), batch[key].astype("<i4")) for key in sorted(batch)]
    digests = []
    for row in range(len(batch["tokens"])):
        state = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for key, values in arrays:
            state.update(key + np.int64(values.shape[1]).tobytes() + values[row].tobytes())
        digests.append(state.digest())
    return digests
