import functools

import jax
import numpy as np
import pytest
from letters import Letters
from tiny import model_of, place, proxy_config, random_params, tiny_config

from teukenjax.errors import UserError
from teukenjax.infer import Generator, Sampling
from teukenjax.infer.decoder import PIECE
from teukenjax.infer.layout import decoding_layout
from teukenjax.infer.sampling import Choice
from teukenjax.model import logits

GREEDY = Sampling(temperature=0.0)
CONFIGS = {"tied": tiny_config(context=20), "untied": proxy_config(context=20)}
CONFIG = CONFIGS["untied"]
PROMPTS = [(5,), (5, 9), (5, 9, 7, 30, 11), (6, 7) * 8, tuple(range(3, 20)), tuple(range(3, 22))]


@functools.cache
def params_of(config) -> dict:
    return random_params(config)


@functools.cache
def generator_of(config, eod_id: int = 36) -> Generator:
    return Generator(model_of(config), params_of(config), Letters(eod_id))


def greedy(config, params, ids, *, tokens, stops=()) -> list[int]:
    """Greedy generation by a whole forward pass a token, over ids padded to the context."""
    ids, given = list(ids), len(ids)
    while len(ids) < min(given + tokens, config.context):
        padded = np.zeros((1, config.context), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(np.argmax(logits(config, params, padded)[0, len(ids) - 1])))
        if ids[-1] in stops:
            ids.pop()
            break
    return ids[given:]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_generation_is_the_argmax_of_a_whole_forward_pass(config, prompt):
    generator = generator_of(config)
    found = list(generator.stream(list(prompt), tokens=8, sampling=GREEDY))
    assert found == greedy(config, params_of(config), prompt, tokens=8, stops=(2, 36))
    assert found


def test_generation_fills_the_context_and_no_more():
    generator = generator_of(CONFIG)
    for length in (1, 17, 19):
        found = list(generator.stream(list(range(3, 3 + length)), tokens=99, sampling=GREEDY))
        assert len(found) == CONFIG.context - length


def test_as_many_tokens_come_as_were_asked_for():
    generator = generator_of(CONFIG)
    for tokens in (0, 1, 6):
        assert len(list(generator.stream([5, 9], tokens=tokens, sampling=GREEDY))) == tokens


def first_new(ids: list[int]) -> int:
    """The position, not the first, of a token that has not come before."""
    return next(i for i, token in enumerate(ids) if i and token not in ids[:i] and token != 2)


def test_generation_ends_before_the_end_of_the_document():
    whole = list(generator_of(CONFIG).stream([5, 9], tokens=12, sampling=GREEDY))
    end = first_new(whole)
    cut = list(generator_of(CONFIG, whole[end]).stream([5, 9], tokens=12, sampling=GREEDY))
    assert cut == whole[:end]


def test_generation_ends_before_the_end_of_a_turn():
    """The scores of a token of the answer are given to id 2, </s>, and the reverse."""
    generator = generator_of(CONFIG)
    whole = list(generator.stream([5, 9], tokens=12, sampling=GREEDY))
    assert 2 not in whole
    end = first_new(whole)
    table = params_of(CONFIG)["head"]["table"]
    rows = np.array([2, whole[end]])
    table = table.at[rows].set(table[rows[::-1]])
    params = params_of(CONFIG) | {"head": {"table": table}}
    cut = Generator(generator.model, params, Letters()).stream([5, 9], tokens=12, sampling=GREEDY)
    assert list(cut) == whole[:end]


def test_text_is_continued_after_an_end_of_document_token():
    generator = generator_of(CONFIG)
    letters = generator.tokenizer
    continuation = generator("fjh", tokens=5, sampling=GREEDY)
    ids = [36, *letters.encode("fjh")]
    expected = greedy(CONFIG, params_of(CONFIG), ids, tokens=5, stops=(2, 36))
    assert continuation == letters.decode(expected)
    assert continuation


def test_an_empty_prompt_begins_a_document():
    generator = generator_of(CONFIG)
    expected = greedy(CONFIG, params_of(CONFIG), [36], tokens=5, stops=(2, 36))
    assert generator("", tokens=5, sampling=GREEDY) == generator.tokenizer.decode(expected)


def test_prompt_that_leaves_no_room_is_refused():
    generator = generator_of(CONFIG)
    generator("f" * 18, tokens=1, sampling=GREEDY)
    with pytest.raises(UserError) as caught:
        generator("f" * 19, tokens=1, sampling=GREEDY)
    assert str(caught.value) == "prompt: 20 tokens do not fit into a context of 20"


def test_seeds_reproduce_a_text_and_differ():
    generator = generator_of(CONFIG)
    texts = [
        generator("fj", tokens=12, sampling=Sampling(temperature=1.0, seed=seed))
        for seed in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_one_text_leaves_nothing_behind_for_the_next():
    generator = generator_of(CONFIG)
    first = generator("fj", tokens=6, sampling=GREEDY)
    generator("zzzzzzzzzz", tokens=6, sampling=GREEDY)
    assert generator("fj", tokens=6, sampling=GREEDY) == first


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_scores_with_a_cache_are_those_of_whole_forward_passes(config):
    """Three prompts of different lengths in one batch, each followed for five tokens."""
    decoder, choice = generator_of(config).decoder, Choice.of([GREEDY] * 3)
    rows = [[5], list(range(3, 14)), [30, 9, 7, 11]]
    state = decoder.read(decoder.start(3, 16), rows)
    for _ in range(5):
        for found, row in zip(state.logits, rows, strict=True):
            padded = np.zeros((1, config.context), np.int32)
            padded[0, : len(row)] = row
            expected = logits(config, params_of(config), padded)[0, len(row) - 1]
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)  # other sums in fp32
        state, tokens = decoder.step(decoder.params, state, choice)
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]


def test_prompts_longer_than_a_piece_are_read_in_several():
    config = tiny_config(context=2 * PIECE, layers=1)
    generator = generator_of(config)
    for length in (PIECE, PIECE + 1):
        prompt = np.random.default_rng(length).integers(3, 36, length).tolist()
        found = list(generator.stream(prompt, tokens=3, sampling=GREEDY))
        assert found == greedy(config, params_of(config), prompt, tokens=3, stops=(2, 36))


def test_a_row_does_not_depend_on_the_rows_beside_it():
    generator = generator_of(CONFIG)
    prompts = [[5, 9], list(range(3, 15)), [7]]
    how = [Sampling(temperature=1.0, seed=3), GREEDY, Sampling(repetition_penalty=2.0, seed=9)]
    steps = list(generator.batch(prompts, tokens=10, sampling=how))
    for row, (prompt, sampling) in enumerate(zip(prompts, how, strict=True)):
        together = [step[row] for step in steps if step[row] is not None]
        assert together == list(generator.stream(prompt, tokens=10, sampling=sampling))
    assert generator.speed.new_tokens > 0


@pytest.mark.parametrize("devices", [2, 8])
def test_a_model_spread_over_devices_writes_the_same_text(devices):
    """Heads and vocabulary over two of them, rows of the batch and of weights over the rest."""
    config = proxy_config(context=20, layers=1)
    layout = decoding_layout(config, jax.devices()[:devices])
    assert dict(layout.mesh.shape)["tensor"] == 2
    model = model_of(config, layout)
    spread = Generator(model, place(model, params_of(config)), Letters())
    prompts, how = [[5, 9], list(range(3, 15)), [7]], [GREEDY, Sampling(seed=1), GREEDY]
    found = list(spread.batch(prompts, tokens=8, sampling=how))
    assert found == list(generator_of(config).batch(prompts, tokens=8, sampling=how))
    keys, _ = spread.decoder.start(4, 9).cache[0]
    assert keys.sharding.shard_shape(keys.shape)[2] == CONFIG.kv_heads // 2


def test_a_penalty_keeps_a_token_from_coming_again():
    found = list(
        generator_of(CONFIG).stream(
            [5, 9], tokens=15, sampling=Sampling(temperature=0.0, repetition_penalty=1e6)
        )
    )
    assert len({5, 9, *found}) == len(found) + 2


def test_an_empty_list_of_tokens_is_refused():
    with pytest.raises(UserError, match="prompt: has no token"):
        list(generator_of(CONFIG).stream([], tokens=1, sampling=GREEDY))


def test_bfloat16_cache_holds_two_values_a_layer_head_and_dimension():
    decoder = Generator(model_of(CONFIG, dtype="bfloat16"), params_of(CONFIG), Letters()).decoder
    cache = decoder.start(1, 1).cache
    assert sum(x.nbytes for layer in cache for x in layer) == 2 * 2 * 3 * 2 * 8 * PIECE
    assert decoder.params["embed"]["table"].dtype == jax.numpy.bfloat16


def test_a_step_keeps_the_cache_where_it_is():
    """The compiled step aliases every input of the batch to an output: nothing is copied."""
    decoder = generator_of(CONFIG).decoder
    state, choice = decoder.start(2, 16), Choice.of([GREEDY] * 2)
    memory = decoder.step.lower(decoder.params, state, choice).compile().memory_analysis()
    held = sum(x.nbytes for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes == held
