import functools
import itertools
import math

import jax
import numpy as np
import pytest
from tiny import eight_devices, model_of, one_device, place, proxy_config, random_params

from teukenjax.evaluate import Evaluator, Score, mean
from teukenjax.model import logits

CONTEXT, EOD = 80, 36
CONFIG = proxy_config(context=CONTEXT)
PARAMS = random_params(CONFIG)
# Each token's loss is right to some 1e-5 (see test_teuken); sums of up to 250 of them, of one sign.
FP32 = {"rtol": 2e-5, "atol": 0}

# Around the shortest window (64), the context (80), and two and three windows.
LENGTHS = {"de": (1, 63, 64, 65), "mt": (79, 80, 81, 0), "el": (160, 161, 250), "ga": (0, 7)}


def make_documents() -> dict[str, list[tuple[np.ndarray, int]]]:
    """Ids below the eod's, and a number of bytes that is not their number."""
    rng = np.random.default_rng(5)
    return {
        language: [(rng.integers(EOD, size=n, dtype=np.uint32), 3 * n) for n in lengths]
        for language, lengths in LENGTHS.items()
    }


DOCUMENTS = make_documents()


def direct_nats(ids: np.ndarray) -> float:
    """Each token predicted from the eod and what precedes it in its window, in float64.

    Window w predicts tokens w·C … w·C + C − 1 and begins with the token before the first of them.
    """
    read = np.concatenate([[EOD], ids]).astype(np.int32)
    nats = 0.0
    for start in range(0, len(ids), CONTEXT):
        targets = ids[start : start + CONTEXT]
        inputs = np.zeros((1, CONTEXT), np.int32)
        inputs[0, : targets.size] = read[start : start + targets.size]
        scores = np.asarray(logits(CONFIG, PARAMS, inputs), np.float64)[0, : targets.size]
        own = scores[np.arange(targets.size), targets]
        nats += (np.log(np.exp(scores).sum(-1)) - own).sum()
    return nats


@functools.cache
def scores_on(layout: str = "one", batch_tokens: int = 160) -> dict[str, Score]:
    model = model_of(CONFIG, one_device() if layout == "one" else eight_devices(layout))
    evaluate = Evaluator(model, eod=EOD, batch_tokens=batch_tokens)
    return evaluate(place(model, PARAMS), DOCUMENTS)


def test_nats_are_those_of_a_direct_computation():
    for language, score in scores_on().items():
        expected = sum(direct_nats(ids) for ids, _ in DOCUMENTS[language])
        np.testing.assert_allclose(score.nats, expected, **FP32)


def test_every_token_of_a_document_is_scored_once_and_the_eod_never():
    for language, score in scores_on().items():
        assert score.tokens == sum(LENGTHS[language])
        assert score.bytes == 3 * sum(LENGTHS[language])
        assert score.documents == len(LENGTHS[language])


def test_windows_overlap_by_one_token_and_cover_the_document():
    evaluate = Evaluator(model_of(CONFIG), eod=EOD, batch_tokens=1)
    for ids, _ in DOCUMENTS["el"]:
        windows = [window.ids for window in evaluate._windows({"el": [(ids, 1)]})]
        assert windows[0][0] == EOD
        assert all(window.size <= CONTEXT + 1 for window in windows)
        for one, following in itertools.pairwise(windows):
            assert one.size == CONTEXT + 1
            assert following[0] == one[-1]
        np.testing.assert_array_equal(np.concatenate([window[1:] for window in windows]), ids)


def test_windows_share_few_lengths_and_fit_them():
    evaluate = Evaluator(model_of(CONFIG), eod=EOD, batch_tokens=1)
    groups = dict(evaluate._by_length(evaluate._windows(DOCUMENTS)))
    assert set(groups) == {64, 80}
    for length, windows in groups.items():
        assert max(window.ids.size for window in windows) <= length + 1


@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
def test_batch_size_does_not_change_the_scores(batch_tokens):
    for language, score in scores_on(batch_tokens=batch_tokens).items():
        np.testing.assert_allclose(score.nats, scores_on()[language].nats, **FP32)
        assert score.tokens == sum(LENGTHS[language])


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_tp"])
def test_mesh_does_not_change_the_scores(strategy):
    for language, score in scores_on(strategy).items():
        np.testing.assert_allclose(score.nats, scores_on()[language].nats, **FP32)
        assert score.tokens == sum(LENGTHS[language])


def test_languages_keep_their_order_and_those_without_text_are_left_out():
    evaluate = Evaluator(model_of(CONFIG), eod=EOD, batch_tokens=160)
    empty = (np.zeros(0, np.uint32), 0)
    some = DOCUMENTS["ga"]
    scores = evaluate(PARAMS, {"mt": some, "sl": [], "de": [empty, empty], "bg": some})
    assert list(scores) == ["mt", "bg"]
    assert scores["mt"].nats == pytest.approx(scores["bg"].nats, rel=1e-6)
    assert not evaluate(PARAMS, {"de": [empty]})


def test_a_language_is_scored_the_same_alone():
    evaluate = Evaluator(model_of(CONFIG), eod=EOD, batch_tokens=160)
    alone = evaluate(PARAMS, {"de": DOCUMENTS["de"]})
    np.testing.assert_allclose(alone["de"].nats, scores_on()["de"].nats, **FP32)


def test_bits_per_byte_and_perplexity_follow_from_the_counts():
    score = Score(documents=2, bytes=100, tokens=20, nats=40 * math.log(2))
    assert score.bits_per_byte == pytest.approx(0.4, rel=1e-12)
    assert score.perplexity == pytest.approx(4.0, rel=1e-12)
    assert score.as_dict() == {
        "bits_per_byte": score.bits_per_byte,
        "perplexity": score.perplexity,
        "documents": 2,
        "bytes": 100,
        "tokens": 20,
    }


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity():
    params = jax.tree.map(np.zeros_like, PARAMS)
    evaluate = Evaluator(model_of(CONFIG), eod=EOD, batch_tokens=160)
    score = evaluate(params, {"de": DOCUMENTS["de"]})["de"]
    assert score.perplexity == pytest.approx(37, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(math.log2(37) / 3, rel=1e-5)


def test_mean_counts_each_language_the_same():
    scores = {"de": Score(1, 1000, 1, 1000 * math.log(2)), "mt": Score(1, 1, 1, 3 * math.log(2))}
    assert mean(scores) == pytest.approx(2.0, rel=1e-12)
