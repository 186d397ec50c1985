import tracemalloc

import pytest

from teukenjax.data.documents import Document
from teukenjax.data.sampling import TextSample
from teukenjax.errors import UserError
from teukenjax.recipe import MixtureConfig, validate


def lines(language: str, count: int):
    """Documents of one line of ten bytes each."""
    return (Document(f"{language}{number:08}", language, "x") for number in range(count))


def sample(limit: int, **counts: int) -> TextSample:
    made = TextSample(limit)
    for language, count in counts.items():
        made.add(lines(language, count))
    return made


def sizes(chosen: dict[str, list[str]]) -> dict[str, int]:
    return {name: 10 * len(found) for name, found in chosen.items()}


def mixture(**stage) -> MixtureConfig:
    return validate(MixtureConfig, {"stages": [stage]}, "test")


def test_a_reservoir_is_uniform_over_a_stream_of_any_length():
    kept = sample(5_000, de=20_000).kept()["de"]
    numbers = sorted(int(line[2:]) for line in kept)
    assert len(numbers) == 500
    assert numbers[-1] < 20_000
    for tenth in range(10):
        inside = sum(tenth * 2000 <= number < (tenth + 1) * 2000 for number in numbers)
        assert 25 < inside < 80  # of 50


def test_memory_is_bounded_by_the_reservoir():
    tracemalloc.start()
    sample(10_000, de=100_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # ten megabytes went past


def test_what_a_language_keeps_does_not_depend_on_the_others():
    assert sample(1000, de=500).kept()["de"] == sample(1000, fr=900, de=500).kept()["de"]


def test_temperature_and_factors_shape_the_sample():
    made = sample(10_000, de=9000, en=9000, mt=1000)
    found = sizes(made.mixed(mixture(temperature=2.0, factors={"en": 0.5})))
    assert found == {"de": 10_000, "en": 5_000, "mt": 3_330}
    assert made.sizes == {"de": 90_000, "en": 90_000, "mt": 10_000}


def test_weights_shape_the_sample_and_leave_others_out():
    made = sample(10_000, de=9000, en=9000, mt=100)
    assert sizes(made.mixed(mixture(weights={"de": 1, "mt": 2}))) == {"de": 5_000, "mt": 1_000}


def test_a_trimmed_sample_is_the_beginning_of_the_whole():
    made = sample(10_000, de=9000, en=9000)
    german = made.mixed(mixture(weights={"de": 1, "en": 4}))["de"]
    assert german == made.kept()["de"][: len(german)]
    assert len(german) == 250


def test_a_language_that_the_text_lacks_is_an_error():
    with pytest.raises(UserError, match="weights: no language 'fr': allowed: de"):
        sample(1000, de=5).mixed(mixture(weights={"fr": 1}))
