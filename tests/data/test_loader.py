import itertools
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from teukenjax.data.loader import batches
from teukenjax.data.mixture import Mixture
from teukenjax.data.store import TokenStore
from teukenjax.errors import UserError

S, B = 8, 6


@pytest.fixture
def mixture(counting_store):
    def make():
        store = counting_store(de=1000, fr=500)
        return store, Mixture(store, sequence_length=S, seed=1)

    return make()


def take(store, mixture, steps: int, *, first_step: int = 0, rows: range = range(B)):
    iterator = batches(store, mixture, batch_size=B, first_step=first_step, rows=rows)
    with closing(iterator):
        return np.stack(list(itertools.islice(iterator, steps)))


def test_rows_are_the_windows_that_the_mixture_names(mixture):
    store, order = mixture
    stream = take(store, order, 20)
    assert stream.shape == (20, B, S + 1)
    assert stream.dtype == np.int32
    for step, row in itertools.product(range(20), range(B)):
        language, start = order.window(step * B + row)
        assert np.array_equal(
            stream[step, row], store.read("train", language, start, start + S + 1)
        )


def test_starting_at_a_step_is_reading_through_to_it(mixture):
    whole = take(*mixture, 30)
    for first in (1, 7, 29):
        assert np.array_equal(take(*mixture, 30 - first, first_step=first), whole[first:])


def test_starting_far_into_the_stream_costs_nothing(mixture):
    store, order = mixture
    (batch,) = take(store, order, 1, first_step=10**9)
    language, start = order.window(10**9 * B)
    assert np.array_equal(batch[0], store.read("train", language, start, start + S + 1))


@pytest.mark.parametrize("hosts", [1, 2, 3, 6])
def test_any_split_of_the_rows_over_hosts_gives_the_same_batches(mixture, hosts):
    share = B // hosts
    parts = [take(*mixture, 5, rows=range(h * share, (h + 1) * share)) for h in range(hosts)]
    assert np.array_equal(np.concatenate(parts, axis=1), take(*mixture, 5))


def test_closing_stops_the_threads(mixture):
    before = set(threading.enumerate())
    iterator = batches(*mixture, batch_size=B, first_step=0, rows=range(B))
    next(iterator)
    assert set(threading.enumerate()) - before
    iterator.close()
    for _ in range(100):
        if not set(threading.enumerate()) - before:
            return
        time.sleep(0.05)
    pytest.fail("reading threads outlive the iterator")


def test_damage_found_by_a_reading_thread_reaches_the_caller(mixture):
    store, order = mixture
    for file in store.path.glob("train/*/ids/c/*"):
        file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(UserError, match="in train is damaged"):
        take(TokenStore.open(store.path), order, 1)
