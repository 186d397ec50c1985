from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teukenjax.data.mixture import Mixture, permuted
from teukenjax.data.stream import Stream
from teukenjax.errors import UserError
from teukenjax.recipe import DataConfig, MixtureConfig, validate

S = 16


def mix(store, *, seed: int = 0, **data) -> Mixture:
    return Stream(store, validate(DataConfig, data, "test"), sequence_length=S, seed=seed).mixture


def staged(store, *stages, seed: int = 0, **mixture) -> Mixture:
    return mix(store, seed=seed, mixture={"stages": list(stages)} | mixture)


def rows(mixture, count: int, start: int = 0) -> list[tuple[str, int]]:
    """Language and first token."""
    windows = (mixture.window(index) for index in range(start, start + count))
    return [(language, window * S) for language, window in windows]


def epochs(mixture) -> dict[str, float]:
    """Language → how often it is read by all the stages."""
    counts = Counter(language for language, _ in rows(mixture, mixture.rows))
    return {language: count / mixture.windows[language] for language, count in counts.items()}


def test_windows_are_strides_that_fit_with_their_shift(counting_store):
    store = counting_store(de=3 * S + 1, fr=3 * S, ga=S + 1)
    mixture = mix(store)
    assert mixture.windows == {"de": 3, "fr": 2, "ga": 1}
    for language, start in rows(mixture, 500):
        assert start % S == 0
        assert start + S + 1 <= store.tokens("train", language)


def test_shares_are_proportional_to_tokens_by_default(counting_store):
    mixture = mix(counting_store(de=3000, fr=1000))
    assert mixture.stages[0].share == {"de": 0.75, "fr": 0.25}


def test_temperature_flattens_the_shares(counting_store):
    store = counting_store(de=9000, fr=1000)
    shares = mix(store, temperature=2.0).stages[0].share
    assert shares["de"] / shares["fr"] == pytest.approx(3.0, rel=1e-3)
    flat = mix(store, temperature=1e9).stages[0].share
    assert flat == pytest.approx({"de": 0.5, "fr": 0.5})


def test_weights_are_the_shares_and_leave_out_the_others(counting_store):
    store = counting_store(de=9000, fr=1000, ga=500)
    mixture = mix(store, weights={"ga": 3.0, "fr": 1.0})
    assert mixture.stages[0].share == {"fr": 0.25, "ga": 0.75}
    assert mixture.stages[0].dropped == {"de": "it has no weight"}


def test_every_block_holds_exactly_the_shares(counting_store):
    mixture = mix(counting_store(de=5000, fr=2500, el=1777), seed=3)
    (stage,) = mixture.stages
    expected = stage.apportion(stage.block)
    assert sum(expected.values()) == stage.block == 4096
    for name, count in expected.items():
        assert abs(count - stage.share[name] * stage.block) < 1
    for block in (0, 1, 7, 10**6):
        drawn = rows(mixture, stage.block, start=block * stage.block)
        assert Counter(language for language, _ in drawn) == expected


def test_languages_are_spread_over_the_block(counting_store):
    mixture = mix(counting_store(de=4000, fr=4000), seed=3)
    for start in range(0, 4096, 256):
        counts = Counter(language for language, _ in rows(mixture, 256, start))
        assert 85 < counts["de"] < 171  # within five standard deviations of a half


def test_a_tiny_language_gets_its_share_in_a_larger_block(counting_store):
    store = counting_store(de=100_000, mt=40)
    mixture = mix(store)
    assert mixture.stages[0].share["mt"] == pytest.approx(40 / 100_040, rel=0.02)
    assert sum(mixture.stages[0].share.values()) == 1.0
    assert mixture.stages[0].block > 4096


def test_a_share_below_one_row_of_the_largest_block_is_said(counting_store):
    (stage,) = mix(counting_store(de=1000, mt=1000), weights={"de": 1.0, "mt": 1e-7}).stages
    assert stage.share == pytest.approx({"de": 1.0})
    assert stage.dropped == {"mt": "its share of 1.0e-07 is below one row in 1,048,576"}


def test_every_window_of_an_epoch_is_seen_exactly_once(counting_store):
    store = counting_store(de=S * 100 + 1, fr=S * 37 + 1)
    mixture = mix(store, seed=5)
    stream = rows(mixture, 2 * mixture.stages[0].block)
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
    first, same, other = (mix(store, seed=seed) for seed in (1, 1, 2))
    late_first = [rows(first, 1, start=index)[0] for index in reversed(range(300))][::-1]
    assert rows(same, 300) == late_first
    assert rows(other, 300) != late_first


def test_the_order_is_the_one_that_old_runs_were_trained_in(counting_store):
    """A golden: a change here changes the data of every resumed run."""
    mixture = mix(counting_store(de=5000, fr=2500), seed=42)
    assert rows(mixture, 4) == [("de", 4720), ("de", 1328), ("de", 2160), ("de", 2240)]
    assert rows(mixture, 2, start=10**9) == [("fr", 32), ("de", 640)]


def test_a_language_without_a_window_is_dropped_with_the_reason(counting_store):
    mixture = mix(counting_store(de=1000, mt=S))
    assert mixture.stages[0].share == {"de": 1.0}
    assert mixture.stages[0].dropped == {"mt": f"{S} tokens, and one window takes {S + 1}"}


def test_a_weighted_language_without_a_window_is_an_error(counting_store):
    store = counting_store(de=1000, mt=S)
    with pytest.raises(UserError, match=f"language 'mt' cannot be weighted: it has {S} tokens"):
        mix(store, weights={"de": 1.0, "mt": 1.0})


def test_an_unknown_language_is_an_error_with_the_nearest(counting_store):
    store = counting_store(eng=1000, de=1000)
    with pytest.raises(UserError, match="weights: no language 'engl': did you mean 'eng'"):
        mix(store, weights={"engl": 1.0})


def test_text_too_short_for_any_window_is_an_error_that_tells_both_numbers(counting_store):
    with pytest.raises(UserError, match="takes 17 tokens, the largest language has 16"):
        mix(counting_store(de=16, fr=2))


def test_stages_switch_at_their_token_counts(counting_store):
    store = counting_store(de=5000, fr=2500)
    mixture = staged(
        store,
        {"tokens": 1000 * S, "weights": {"de": 1}},
        {"tokens": 500 * S + S // 2, "weights": {"fr": 1}},
        {"weights": {"de": 1, "fr": 1}},
    )
    languages = [language for language, _ in rows(mixture, 2500)]
    assert languages[:1500] == ["de"] * 1000 + ["fr"] * 500
    assert set(languages[1500:]) == {"de", "fr"}
    assert [stage.rows for stage in mixture.stages] == [1000, 500, None]
    assert mixture.rows is None


def test_epochs_go_on_over_stages(counting_store):
    """A language that is in the middle of an epoch finishes it in the next stage."""
    store = counting_store(de=100 * S + 1, fr=100 * S + 1)
    one = staged(store, {"weights": {"de": 1}})
    two = staged(store, {"tokens": 130 * S, "weights": {"de": 1}}, {"temperature": 2.0})
    german = [window for window in rows(two, 1000) if window[0] == "de"]
    assert german == rows(one, len(german))


def test_the_rows_of_later_stages_are_found_without_those_before(counting_store):
    store = counting_store(de=5000, fr=2500)
    stages = [{"tokens": 10_000 * S}, {"tokens": 9_001 * S, "temperature": 3.0}, {}]
    through, straight = staged(store, *stages), staged(store, *stages)
    everything = rows(through, 20_000)
    for index in (19_999, 19_001, 19_000, 10_000, 9_999, 0):
        assert rows(straight, 1, start=index) == [everything[index]]
    assert rows(straight, 1, start=10**12)


def test_factors_change_a_share_against_the_others(counting_store):
    store = counting_store(en=8000, de=4000, fr=4000)
    (stage,) = staged(store, {"factors": {"en": 0.25}}).stages
    assert stage.share == {"de": 0.4, "en": 0.2, "fr": 0.4}
    (without,) = staged(store, {"factors": {"en": 0}}).stages
    assert without.share == {"de": 0.5, "fr": 0.5}
    assert without.dropped == {"en": "its weight is 0"}


def test_a_cap_is_kept_spread_over_the_stages_and_given_to_the_others(counting_store):
    store = counting_store(de=4000 * S, fr=4000 * S, mt=10 * S + 1)
    stages = [{"tokens": 900 * S, "temperature": 1e9}, {"tokens": 1800 * S, "temperature": 1e9}]
    assert epochs(staged(store, *stages))["mt"] > 50
    mixture = staged(store, *stages, max_epochs_of={"mt": 4})
    assert [stage.capped for stage in mixture.stages] == [{"mt"}] * 2
    maltese = [index for index in range(2700) if mixture.window(index)[0] == "mt"]
    assert 37 <= len(maltese) <= 40
    assert 11 <= sum(index < 900 for index in maltese) <= 13
    shares = [stage.share for stage in mixture.stages]
    assert all(share["de"] == share["fr"] for share in shares)


@given(
    sizes=st.lists(st.integers(1, 200), min_size=2, max_size=5),
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=3),
    temperature=st.sampled_from([1.0, 2.0, 1e9]),
    cap=st.floats(0.1, 30),
)
@settings(max_examples=60, deadline=None)
def test_no_language_is_read_more_often_than_its_cap(sizes, lengths, temperature, cap):
    windows = {f"l{number}": size for number, size in enumerate(sizes)}
    stages = [{"tokens": length * S, "temperature": temperature} for length in lengths]
    config = validate(MixtureConfig, {"stages": stages, "max_epochs": cap}, "test")
    sizes = {"windows": windows, "tokens": {n: size * S + 1 for n, size in windows.items()}}
    try:
        mixture = Mixture(config, **sizes, sequence_length=S, seed=0)
    except UserError as error:
        assert "raise max_epochs" in str(error)  # noqa: PT017
        assert sum(lengths) > cap * sum(windows.values()) * 0.9
    else:
        assert mixture.rows == sum(lengths)
        for language, found in epochs(mixture).items():
            assert found * windows[language] <= cap * windows[language] + len(lengths)


@pytest.mark.parametrize("rows", [295, 300])  # near to two epochs of all languages; just two
def test_a_stage_may_have_all_that_its_languages_may_give(counting_store, rows):
    store = counting_store(de=100 * S + 1, fr=50 * S + 1)
    mixture = staged(store, {"tokens": rows * S}, max_epochs=2)
    assert mixture.rows == rows
    assert all(found <= 2 for found in epochs(mixture).values())


def test_caps_that_cannot_fill_a_stage_are_an_error_with_both_numbers(counting_store):
    store = counting_store(de=100 * S + 1, fr=50 * S + 1)
    with pytest.raises(UserError, match=r"stage of 4,816 tokens needs more .* may give, 4,800"):
        staged(store, {"tokens": 301 * S}, max_epochs=2)
    with pytest.raises(UserError, match=r"stage of 6,400 tokens needs more .* may give, 4,800"):
        staged(store, {"tokens": 400 * S}, max_epochs=2)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"stages": [{"factors": {"eng": 1}}]}, "factors: no language 'eng': did you mean 'en'"),
        ({"stages": [{"weights": {"mt": 1}}]}, "weights: no language 'mt': allowed: de, en"),
        (
            {"stages": [{"tokens": 10**6}], "max_epochs_of": {"mt": 1}},
            "max_epochs_of: no language 'mt'",
        ),
        ({"stages": [{"factors": {"de": 0, "en": 0}}]}, "every language of the store is left out"),
        ({"stages": [{"tokens": S - 1}]}, "stages.0.tokens=15: shorter than one sequence"),
        ({"stages": [{"weights": {"de": 0, "en": 0}}]}, "weights: all are zero"),
        ({"stages": [{"weights": {"de": -1}}]}, "'mixture.stages.0.weights.de' is -1"),
        ({"stages": [{}, {}]}, "stages.0.tokens: only the last stage can be endless"),
        ({"stages": [{}], "max_epochs": 4}, "max_epochs is spread over stages"),
    ],
)
def test_a_mixture_that_cannot_be_is_one_line(counting_store, mixture, message):
    store = counting_store(de=1000, en=1000)
    with pytest.raises(UserError, match=message) as error:
        mix(store, mixture=mixture)
    assert "\n" not in str(error.value)


def test_a_mixture_and_single_weights_exclude_each_other(counting_store):
    with pytest.raises(UserError, match="mixture: its stages have weights and temperature"):
        mix(counting_store(de=1000), mixture={}, temperature=2.0)


def test_the_rows_seen_are_those_of_the_stream(counting_store):
    store = counting_store(de=5000, fr=2500, mt=100)
    mixture = staged(store, {"tokens": 9000 * S}, {"tokens": 777 * S, "temperature": 2.0})
    stream = [language for language, _ in rows(mixture, mixture.rows)]
    for stop in (0, 1, 4096, 5000, 9000, 9001, 9777):
        expected = [Counter(stream[: min(stop, 9000)]), Counter(stream[9000 : max(stop, 9000)])]
        assert [Counter(counts) for counts in mixture.seen(stop)] == expected
