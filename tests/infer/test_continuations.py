"""Many prompts at once give what each gives alone."""

import functools

import jax
import numpy as np
import pytest
from letters import Letters
from tiny import eight_devices, model_of, place, proxy_config, random_params

from teukenjax.errors import UserError
from teukenjax.infer import Generator, Sampling
from teukenjax.infer.continuations import Continuation, Prompt, _batches, continuations
from teukenjax.infer.decoder import PIECE

CONFIG = proxy_config(context=PIECE + 44, layers=1)
PARAMS = random_params(CONFIG)
RANDOM = np.random.default_rng(0)
STOPS = (("q", "Bx"), ())
LENGTHS = (
    5,
    299,
    1,
    260,
    12,
    17,
    298,
    2,
    40,
    3,
    9,
)  # of both capacities


def ids_of(length: int) -> list[int]:
    return RANDOM.integers(3, 36, length).tolist()


PROMPTS = [
    *(Prompt(ids_of(n), tokens=1 + i, stops=STOPS[i % 2]) for i, n in enumerate(LENGTHS)),
    Prompt(ids_of(7), tokens=9, sampling=Sampling(temperature=1.0, seed=5)),
    Prompt([5, 9], tokens=0),
]


@functools.cache
def alone() -> list[Continuation]:
    """One prompt after the other, on one device."""
    generator = Generator(model_of(CONFIG), PARAMS, Letters())
    found = []
    for prompt in PROMPTS:
        new = list(generator.stream(prompt.ids, tokens=prompt.tokens, sampling=prompt.sampling))
        text = generator.tokenizer.decode(new)
        cut = min((text.find(stop) for stop in prompt.stops if stop in text), default=None)
        room = min(prompt.tokens, CONFIG.context - len(prompt.ids))
        found.append(Continuation(text[:cut], cut is not None or len(new) < room))
    return found


def generator_on(strategy: str | None) -> Generator:
    layout = None if strategy is None else eight_devices(strategy)
    model = model_of(CONFIG, layout)
    return Generator(model, place(model, PARAMS), Letters())


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_tp"])
def test_each_is_continued_as_if_it_were_alone(strategy):
    found = continuations(generator_on(strategy), PROMPTS, batch_tokens=4 * 2 * PIECE)
    assert found == alone()
    assert {one.ended for one in found} == {True, False}


def test_batches_are_few_shapes_of_one_capacity_and_split_over_the_mesh():
    generator = generator_on("fsdp_tp")
    batches = list(_batches(generator, PROMPTS, batch_tokens=8 * PIECE))
    assert sorted(number for numbers, _ in batches for number in numbers) == [*range(len(PROMPTS))]
    for numbers, rows in batches:
        capacities = {
            generator.decoder.capacity(len(PROMPTS[n].ids) + PROMPTS[n].tokens) for n in numbers
        }
        assert len(capacities) == 1
        assert rows * capacities.pop() <= 8 * PIECE
        assert rows in (4, 8)
        assert len(numbers) <= rows
    lengths = [len(PROMPTS[number].ids) for numbers, _ in batches for number in numbers]
    assert lengths == sorted(lengths, reverse=True)


def test_other_parameters_are_decoded_by_the_same_programs():
    generator = generator_on("fsdp")
    prompts = [Prompt([5, 9], 6)]
    before = continuations(generator, prompts, batch_tokens=1)
    other = jax.tree.map(lambda x: x[..., ::-1], PARAMS)
    generator.decoder.load(place(generator.model, other))
    assert continuations(generator, prompts, batch_tokens=1) != before
    generator.decoder.load(place(generator.model, PARAMS))
    assert continuations(generator, prompts, batch_tokens=1) == before
    assert generator.decoder.step._cache_size() == 1


def test_a_prompt_without_room_is_refused():
    with pytest.raises(UserError, match="do not fit into a context of 300"):
        continuations(generator_on(None), [Prompt([5] * 300, 1)], batch_tokens=1)
