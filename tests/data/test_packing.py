import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teukenjax.data.packing import BestFitPlan, make_packing
from teukenjax.data.writer import StoreWriter

S = 16
EOD = 4


@pytest.fixture
def store(tmp_path, tokenizer):
    """Documents of 0 … 39 tokens without their eod; document n is n times the id 100 + n."""
    with StoreWriter(tmp_path / "store", tokenizer) as writer:
        ids = [np.full(size, 100 + size, np.int32) for size in range(40)]
        writer.append("train", "de", ids=ids, sizes=[1] * 40)
        return writer.finish()


def samples(packing):
    return [packing.read("de", window) for window in range(packing.windows["de"])]


def naive_best_fit(sizes: list[int]) -> list[int]:
    """How full each window is, by the textbook: longest first, into the least sufficient room."""
    windows = []
    for size in sorted((size % S for size in sizes if size % S), reverse=True):
        rooms = [(S - sum(window), window) for window in windows if sum(window) + size <= S]
        if rooms:
            min(rooms, key=lambda room: room[0])[1].append(size)
        else:
            windows.append([size])
    return sorted(map(sum, windows))


lengths = st.lists(st.integers(1, 3 * S), min_size=0, max_size=200)


@given(sizes=lengths)
@settings(max_examples=200, deadline=None)
def test_best_fit_is_that_of_the_textbook(sizes):
    plan = BestFitPlan(np.cumsum(np.array(sizes, np.int64)), S)
    full = sum(size // S for size in sizes)
    pieces = [plan.pieces(window) for window in range(full, plan.windows)]
    # Of windows with equal room either may be taken; how full they become is the same.
    assert sorted(sum(b - a for a, b in window) for window in pieces) == naive_best_fit(sizes)


@given(sizes=lengths)
@settings(max_examples=100, deadline=None)
def test_best_fit_holds_every_token_once_and_cuts_only_long_documents(sizes):
    ends = np.cumsum(np.array(sizes, np.int64))
    plan = BestFitPlan(ends, S)
    pieces = [piece for window in range(plan.windows) for piece in plan.pieces(window)]
    tokens = [token for start, stop in pieces for token in range(start, stop)]
    assert sorted(tokens) == list(range(sum(sizes)))
    borders = set(ends.tolist()) | {0}
    for start, stop in pieces:
        document = int(np.searchsorted(ends, start, side="right"))
        first = int(ends[document] - sizes[document])
        assert stop <= ends[document]
        if sizes[document] <= S:
            assert {start, stop} <= borders
        else:
            assert (start - first) % S == 0


def test_a_million_documents_are_planned_by_their_lengths_alone():
    sizes = np.random.default_rng(0).lognormal(6, 1, 1_000_000).astype(np.int64) + 1
    plan = BestFitPlan(np.cumsum(sizes), 4096)
    assert len(plan._groups) < 4 * 4096
    assert plan.windows * 4096 < 1.01 * sizes.sum()  # padding below one per cent


def test_a_best_fit_sample_has_whole_documents_in_segments(store):
    packing = make_packing(store, "best_fit", S, segments=False)
    assert packing.segmented
    seen = Counter()
    for sample in samples(packing):
        tokens, segments, positions = (sample[k] for k in ("tokens", "segments", "positions"))
        assert tokens[0] == EOD
        assert [array.dtype for array in sample.values()] == [np.int32] * 3
        targets = tokens[1:]
        for number in range(1, segments.max() + 1):
            (places,) = np.nonzero(segments == number)
            assert np.array_equal(np.diff(places), np.ones(len(places) - 1))
            assert np.array_equal(positions[places], np.arange(len(places)))
            document = targets[places]
            seen.update(document.tolist())
            assert len(set(document.tolist()) - {EOD}) <= 1
            if len(places) < S:  # the end of a document: eod is read first and predicted last
                assert document[-1] == EOD
                assert tokens[places[0]] == EOD
        padding = segments == 0
        assert not padding.any() or padding[-(padding.sum()) :].all()
        assert not positions[padding].any()
    assert seen == Counter({100 + n: n for n in range(1, 40)} | {EOD: 40})


def test_concat_segments_begin_at_every_eod(store):
    plain = make_packing(store, "concat", S, segments=False)
    marked = make_packing(store, "concat", S, segments=True)
    assert plain.windows == marked.windows
    assert not plain.segmented
    for window, sample in enumerate(samples(marked)):
        assert np.array_equal(sample["tokens"], plain.read("de", window)["tokens"])
        inputs = sample["tokens"][:-1]
        number, position = 1, 0
        for place, token in enumerate(inputs):
            if place and token == EOD:
                number, position = number + 1, 0
            assert (sample["segments"][place], sample["positions"][place]) == (number, position)
            position += 1


def test_concat_windows_are_strides_of_the_flat_ids(store):
    packing = make_packing(store, "concat", S, segments=False)
    flat = store.read("train", "de", 0, store.tokens("train", "de"))
    for window, sample in enumerate(samples(packing)):
        assert np.array_equal(sample["tokens"], flat[window * S : window * S + S + 1])
    assert packing.windows["de"] == (len(flat) - 1) // S


@pytest.mark.parametrize("name", ["concat", "best_fit"])
def test_a_language_of_the_held_out_split_only_has_no_windows(tmp_path, tokenizer, name):
    with StoreWriter(tmp_path / "store", tokenizer) as writer:
        for split, language in itertools.product(("train", "valid"), ("de", "fr")):
            if (split, language) != ("train", "fr"):
                ids = [np.full(40, 7, np.int32)]
                writer.append(split, language, ids=ids, sizes=[1])
        store = writer.finish()
    assert make_packing(store, name, S, segments=True).windows == {
        "de": 2 if name == "concat" else 3,
        "fr": 0,
    }
