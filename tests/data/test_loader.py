import itertools
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from teukenjax.data.loader import batches
from teukenjax.data.store import TokenStore
from teukenjax.data.stream import Stream
from teukenjax.errors import UserError
from teukenjax.recipe import DataConfig, validate

S, B = 8, 6


def stream_of(store, **data) -> Stream:
    return Stream(store, validate(DataConfig, data, "test"), sequence_length=S, seed=1)


@pytest.fixture
def store(counting_store):
    return counting_store(de=1000, fr=500)


@pytest.fixture
def stream(store):
    return stream_of(store)


def take(stream, steps: int, *, first_step: int = 0, rows: range = range(B)):
    iterator = batches(stream, batch_size=B, first_step=first_step, rows=rows)
    with closing(iterator):
        return np.stack([batch["tokens"] for batch in itertools.islice(iterator, steps)])


def test_rows_are_the_samples_of_the_stream(store, stream):
    tokens = take(stream, 20)
    assert tokens.shape == (20, B, S + 1)
    assert tokens.dtype == np.int32
    for step, row in itertools.product(range(20), range(B)):
        language, window = stream.mixture.window(step * B + row)
        start = window * S
        assert np.array_equal(
            tokens[step, row], store.read("train", language, start, start + S + 1)
        )


def test_segments_come_only_when_they_are_asked_for(store, stream):
    with closing(batches(stream, batch_size=B, first_step=0, rows=range(B))) as plain:
        assert next(plain).keys() == {"tokens"}
    packed = stream_of(store, segments=True)
    with closing(batches(packed, batch_size=B, first_step=0, rows=range(B))) as loaded:
        batch = next(loaded)
    shapes = {key: values.shape for key, values in batch.items()}
    assert shapes == {"tokens": (B, S + 1), "segments": (B, S), "positions": (B, S)}


def test_starting_at_a_step_is_reading_through_to_it(stream):
    whole = take(stream, 30)
    for first in (1, 7, 29):
        assert np.array_equal(take(stream, 30 - first, first_step=first), whole[first:])


def test_starting_far_into_the_stream_reads_one_batch_only(store, stream, monkeypatch):
    reads = []
    read = TokenStore.read

    def counted(self, *place):
        reads.append(place)
        return read(self, *place)

    monkeypatch.setattr(TokenStore, "read", counted)
    monkeypatch.setattr("teukenjax.data.loader.PREFETCH_STEPS", 1)
    (batch,) = take(stream, 1, first_step=10**9)
    assert len(reads) <= 4 * B  # the threads are ahead by a few batches
    language, window = stream.mixture.window(10**9 * B)
    start = window * S
    assert np.array_equal(batch[0], store.read("train", language, start, start + S + 1))


@pytest.mark.parametrize("hosts", [1, 2, 3, 6])
def test_any_split_of_the_rows_over_hosts_gives_the_same_batches(stream, hosts):
    share = B // hosts
    parts = [take(stream, 5, rows=range(h * share, (h + 1) * share)) for h in range(hosts)]
    assert np.array_equal(np.concatenate(parts, axis=1), take(stream, 5))


def test_a_mixture_that_ends_ends_the_batches(store):
    stages = [{"tokens": 10 * B * S}, {"tokens": 5 * B * S + 7 * S}]
    stream = stream_of(store, mixture={"stages": stages})
    assert len(take(stream, 100, first_step=4)) == 12  # the last batch would be half empty


def test_closing_stops_the_threads(stream):
    before = set(threading.enumerate())
    iterator = batches(stream, batch_size=B, first_step=0, rows=range(B))
    next(iterator)
    assert set(threading.enumerate()) - before
    iterator.close()
    for _ in range(100):
        if not set(threading.enumerate()) - before:
            return
        time.sleep(0.05)
    pytest.fail("reading threads outlive the iterator")


def test_damage_found_by_a_reading_thread_reaches_the_caller(store):
    for file in store.path.glob("train/*/ids/c/*"):
        file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(UserError, match="in train is damaged"):
        take(stream_of(TokenStore.open(store.path)), 1)
