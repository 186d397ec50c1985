"""The stream as a whole: the same on any number of processes, at any start, at any size."""

import numpy as np
import pytest
import tensorstore as ts

from teukenjax.data.fingerprint import fingerprint, row_digests
from teukenjax.data.location import Location
from teukenjax.data.store import Counts, Manifest, TokenStore
from teukenjax.data.stream import Stream
from teukenjax.data.writer import StoreWriter
from teukenjax.errors import UserError
from teukenjax.recipe import DataConfig, Recipe, validate

S = 32
STAGES = [
    {"tokens": 100 * S, "temperature": 2.0, "factors": {"en": 0.5}},
    {"tokens": 150 * S, "weights": {"de": 1, "mt": 2}},
    {"tokens": 10_000_000 * S, "temperature": 1.0},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory, tokenizer):
    """Four languages of 20 to 400 documents of 1 to 100 random ids."""
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path_factory.mktemp("stream") / "store", tokenizer) as writer:
        for language, count in {"de": 400, "en": 300, "fr": 100, "mt": 20}.items():
            ids = [rng.integers(5, 1500, size, np.int32) for size in rng.integers(1, 100, count)]
            writer.append("train", language, ids=ids, sizes=[1] * count)
        return writer.finish()


def make_recipe(store, **changes) -> Recipe:
    values = {
        "out": "unused",
        "steps": 40,
        "seed": 7,
        "model": {
            **{"width": 32, "layers": 1, "heads": 2, "kv_heads": 1},
            **{"head_dim": 8, "ffn": 32, "context": S},
        },
        "data": {
            "store": str(store.path),
            "packing": "best_fit",
            "mixture": {"stages": STAGES, "max_epochs_of": {"mt": 1_000_000}},
        },
        "batch": {"sequences": 8},
        "optimizer": {"name": "scion"},
    }
    return validate(Recipe, values | changes, "test")


def test_the_stream_is_the_same_on_any_number_of_processes_and_over_a_resume(store):
    """With mixing, packing and two changes of stage (at steps 12.5 and 31.25) in the hash."""
    recipe = make_recipe(store)
    whole = row_digests(recipe, store, start=0, steps=40, processes=1)
    assert len(whole) == 40 * 8
    assert len(set(whole)) > 200  # rows differ, but for repeats of small languages
    for processes in (2, 4, 8):
        assert row_digests(recipe, store, start=0, steps=40, processes=processes) == whole
    begun = row_digests(recipe, store, start=0, steps=17, processes=2)
    resumed = row_digests(recipe, store, start=17, steps=23, processes=4)
    assert begun + resumed == whole


def test_the_fingerprint_is_one_hash_that_changes_with_what_is_read(store):
    def of(start=0, steps=5, **changes):
        recipe = make_recipe(store, **changes)
        return fingerprint(recipe, store, start=start, steps=steps, processes=1)

    first = of()
    assert len(first) == 32
    assert first == of()
    concat = make_recipe(store).data.model_dump(mode="json") | {"packing": "concat"}
    changed = [of(start=1), of(steps=6), of(seed=8), of(batch={"sequences": 4}), of(data=concat)]
    assert len({first, *changed}) == 6


def test_processes_must_divide_the_batch(store):
    with pytest.raises(UserError, match=r"processes=3: batch\.sequences=8 is not a multiple"):
        fingerprint(make_recipe(store), store, start=0, steps=1, processes=3)


def test_a_run_longer_than_its_mixture_is_refused_with_the_steps_it_allows(store):
    data = {"mixture": {"stages": [{"tokens": 300 * S}]}}
    with pytest.raises(UserError, match=r"steps=40: takes 10,240 tokens, .* after 9,600: .* 37 st"):
        Stream.of(make_recipe(store, data=data), store)
    Stream.of(make_recipe(store, data=data, steps=37), store)


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_step_a_million_is_found_as_fast_as_step_zero(store, packing, monkeypatch):
    """In the number of random permutations that are drawn, of which each block needs one."""
    data = make_recipe(store).data.model_dump(mode="json") | {"packing": packing}
    stream = Stream.of(make_recipe(store, data=data), store)
    drawn = []
    philox = np.random.Philox
    monkeypatch.setattr(np.random, "Philox", lambda key: (drawn.append(key), philox(key=key))[1])
    assert stream.sample(8_000_000)["tokens"].shape == (S + 1,)
    assert len(drawn) == 1


class _Virtual(TokenStore):
    """A store of 2³³ + 11 ids in German without any bytes: id k is k's own number, folded."""

    SIZE = 2**33 + 11

    def __init__(self, tokenizer):
        counts = Counts(documents=1, tokens=self.SIZE, bytes=self.SIZE, sha256="")
        manifest = Manifest(
            tokenizer=tokenizer.digest,
            vocab_size=1500,
            eod_id=4,
            holdout=0.0,
            lines=1,
            rejects=0,
            splits={"train": {"de": counts}, "valid": {}},
            sources=[],
        )

        def fill(domain, array, parameters):
            (start,), (stop,) = domain.inclusive_min, domain.exclusive_max
            places = np.arange(start, stop, dtype=np.uint64)
            array[...] = (places % 2**32 + places // 2**32).astype(np.uint32)

        ids = ts.virtual_chunked(fill, dtype=ts.uint32, domain=ts.IndexDomain(shape=[self.SIZE]))
        ends = ts.array(np.array([self.SIZE]))
        super().__init__(Location("virtual"), manifest, {("train", "de", "ids"): ids} | {
            ("train", "de", name): ends for name in ("ends", "bytes")
        })  # fmt: skip


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_places_beyond_two_to_the_32_are_read_as_they_are(tokenizer, packing):
    store = _Virtual(tokenizer)
    data = validate(DataConfig, {"packing": packing}, "test")
    stream = Stream(store, data, sequence_length=4096, seed=0)
    assert stream.mixture.windows["de"] == 2**33 // 4096 + (packing == "best_fit")
    seen = set()
    for index in range(64):
        _, window = stream.mixture.window(index)
        places = np.arange(window * 4096, min(window * 4096 + 4096, store.SIZE), dtype=np.uint64)
        expected = (places % 2**32 + places // 2**32).astype(np.uint32).astype(np.int32)
        tokens = stream.sample(index)["tokens"]
        first = int(packing == "best_fit")  # after the eod that begins the window
        assert np.array_equal(tokens[first : first + len(places)], expected)
        seen.add(window * 4096 >> 32)
    assert seen == {0, 1}
