from collections import Counter

import numpy as np
import pytest

from teukenjax.data.mixture import Mixture, permuted
from teukenjax.errors import UserError

S = 16


def rows(mixture, count: int, start: int = 0) -> list[tuple[str, int]]:
    return [mixture.window(index) for index in range(start, start + count)]


def test_windows_are_strides_that_fit_with_their_shift(counting_store):
    store = counting_store(de=3 * S + 1, fr=3 * S, ga=S + 1)
    mixture = Mixture(store, sequence_length=S, seed=0)
    assert mixture.windows == {"de": 3, "fr": 2, "ga": 1}
    for language, start in rows(mixture, 500):
        assert start % S == 0
        assert start + S + 1 <= store.tokens("train", language)


def test_shares_are_proportional_to_tokens_by_default(counting_store):
    mixture = Mixture(counting_store(de=3000, fr=1000), sequence_length=S, seed=0)
    assert mixture.shares == {"de": 0.75, "fr": 0.25}


def test_temperature_flattens_the_shares(counting_store):
    store = counting_store(de=9000, fr=1000)
    shares = Mixture(store, sequence_length=S, seed=0, temperature=2.0).shares
    assert shares["de"] / shares["fr"] == pytest.approx(3.0, rel=1e-3)
    flat = Mixture(store, sequence_length=S, seed=0, temperature=1e9).shares
    assert flat == {"de": 0.5, "fr": 0.5}


def test_weights_are_the_shares_and_leave_out_the_others(counting_store):
    store = counting_store(de=9000, fr=1000, ga=500)
    mixture = Mixture(store, sequence_length=S, seed=0, weights={"ga": 3.0, "fr": 1.0})
    assert mixture.shares == {"fr": 0.25, "ga": 0.75}
    assert mixture.dropped == {"de": "it has no weight"}


def test_every_block_holds_exactly_the_shares(counting_store):
    mixture = Mixture(counting_store(de=5000, fr=2500, el=1777), sequence_length=S, seed=3)
    expected = {name: share * mixture.block for name, share in mixture.shares.items()}
    assert sum(expected.values()) == mixture.block == 4096
    for block in (0, 1, 7, 10**6):
        drawn = rows(mixture, mixture.block, start=block * mixture.block)
        assert Counter(language for language, _ in drawn) == expected


def test_languages_are_spread_over_the_block(counting_store):
    mixture = Mixture(counting_store(de=4000, fr=4000), sequence_length=S, seed=3)
    for start in range(0, 4096, 256):
        counts = Counter(language for language, _ in rows(mixture, 256, start))
        assert 85 < counts["de"] < 171  # within five standard deviations of a half


def test_a_tiny_language_gets_its_share_in_a_larger_block(counting_store):
    store = counting_store(de=100_000, mt=40)
    mixture = Mixture(store, sequence_length=S, seed=0)
    assert mixture.shares["mt"] == pytest.approx(40 / 100_040, rel=0.02)
    assert sum(mixture.shares.values()) == 1.0
    assert mixture.block > 4096


def test_every_window_of_an_epoch_is_seen_exactly_once(counting_store):
    store = counting_store(de=S * 100 + 1, fr=S * 37 + 1)
    mixture = Mixture(store, sequence_length=S, seed=5)
    stream = rows(mixture, 2 * mixture.block)
    for language, windows in (("de", 100), ("fr", 37)):
        starts = [start for name, start in stream if name == language]
        epochs = [starts[at : at + windows] for at in range(0, len(starts) - windows, windows)]
        assert len(epochs) > 5
        assert all(sorted(epoch) == list(range(0, windows * S, S)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_permuted_is_a_permutation(size):
    keys = (1, 2**64 - 1, 7)
    assert sorted(permuted(index, size, keys=keys) for index in range(size)) == list(range(size))


def test_all_orders_of_a_few_windows_are_about_equally_frequent():
    random = np.random.default_rng(0)
    draws = (random.integers(0, 2**63, 6).tolist() for _ in range(6000))
    orders = Counter(tuple(permuted(i, 3, keys=keys) for i in range(3)) for keys in draws)
    assert len(orders) == 6
    assert all(800 < count < 1200 for count in orders.values())


def test_the_order_depends_on_the_seed_alone(counting_store):
    store = counting_store(de=5000, fr=2500)
    first, same, other = (Mixture(store, sequence_length=S, seed=seed) for seed in (1, 1, 2))
    late_first = [first.window(index) for index in reversed(range(300))][::-1]
    assert rows(same, 300) == late_first
    assert rows(other, 300) != late_first


def test_the_order_is_the_one_that_old_runs_were_trained_in(counting_store):
    """A golden: a change here changes the data of every resumed run."""
    mixture = Mixture(counting_store(de=5000, fr=2500), sequence_length=S, seed=42)
    assert rows(mixture, 4) == [("de", 4720), ("de", 1328), ("de", 2160), ("de", 2240)]
    assert rows(mixture, 2, start=10**9) == [("fr", 32), ("de", 640)]


def test_a_language_without_a_window_is_dropped_with_the_reason(counting_store):
    mixture = Mixture(counting_store(de=1000, mt=S), sequence_length=S, seed=0)
    assert mixture.shares == {"de": 1.0}
    assert mixture.dropped == {"mt": f"{S} tokens, and one window takes {S + 1}"}


def test_a_weighted_language_without_a_window_is_an_error(counting_store):
    store = counting_store(de=1000, mt=S)
    with pytest.raises(UserError, match=f"language 'mt' cannot be weighted: it has {S} tokens"):
        Mixture(store, sequence_length=S, seed=0, weights={"de": 1.0, "mt": 1.0})


def test_an_unknown_language_is_an_error_with_the_nearest(counting_store):
    store = counting_store(eng=1000, de=1000)
    with pytest.raises(UserError, match="weights: no language 'engl': did you mean 'eng'"):
        Mixture(store, sequence_length=S, seed=0, weights={"engl": 1.0})


def test_text_too_short_for_any_window_is_an_error_that_tells_both_numbers(counting_store):
    with pytest.raises(UserError, match="takes 17 tokens, the largest language has 16"):
        Mixture(counting_store(de=16, fr=2), sequence_length=S, seed=0)
