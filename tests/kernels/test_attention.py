import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from teukenjax.kernels.attention import attention
from teukenjax.kernels.attention.api import cached_attention
from teukenjax.kernels.attention.reference import reference_attention

# fp32 sums of at most 24 products of order 1, twice, and exponentials: 24·2⁻²⁴ = 1.4e-6 each.
FP32 = {"rtol": 1e-5, "atol": 3e-6}
HEADS = [(4, 4), (4, 2), (32, 2)]  # H, K; the last has 16 query heads a KV head, as Teuken


xla = jax.jit(functools.partial(attention, implementation="reference"))
reference = jax.jit(reference_attention)
cached = jax.jit(cached_attention)


def random_qkv(seed, heads, *, B=2, S=9, N=8):
    rng = np.random.default_rng(seed)
    H, K = heads
    return tuple(rng.standard_normal((B, S, n, N), dtype=np.float32) for n in (H, K, K))


def oracle(q, k, v, segments=None):
    """One query at a time, in float64."""
    if segments is None:
        segments = np.ones(q.shape[:2], np.int32)
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    B, S, H, N = q.shape
    out = np.zeros_like(q)
    for b, s, h in np.ndindex(B, S, H):
        shared = h // (H // k.shape[2])
        seen = np.flatnonzero(segments[b, : s + 1] == segments[b, s])
        scores = k[b, seen, shared] @ q[b, s, h] / np.sqrt(N)
        weights = np.exp(scores - scores.max())
        out[b, s, h] = weights @ v[b, seen, shared] / weights.sum()
    return out


@pytest.mark.parametrize("heads", HEADS)
def test_xla_and_reference_are_the_oracle(heads):
    q, k, v = random_qkv(0, heads)
    expected = oracle(q, k, v)
    np.testing.assert_allclose(xla(q, k, v), expected, **FP32)
    np.testing.assert_allclose(reference(q, k, v), expected, **FP32)


@pytest.mark.parametrize("heads", HEADS)
def test_a_position_sees_its_own_segment_only(heads):
    q, k, v = random_qkv(7, heads)
    segments = np.array([[1, 1, 1, 2, 3, 3, 3, 0, 0], [4] * 9], np.int32)
    expected = oracle(q, k, v, segments)
    np.testing.assert_allclose(xla(q, k, v, segments), expected, **FP32)
    np.testing.assert_allclose(reference(q, k, v, segments), expected, **FP32)


def test_gradients_of_xla_are_those_of_the_reference():
    q, k, v = random_qkv(1, (32, 2))
    cotangent = random_qkv(2, (32, 2))[0]

    def pull_back(function):
        return jax.jit(lambda *qkv: jax.vjp(function, *qkv)[1](cotangent))(q, k, v)

    for x, y in zip(pull_back(xla), pull_back(reference), strict=True):
        # Each KV head sums over 16 query heads and 9 queries.
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("run", [xla, reference])
def test_later_positions_change_nothing(run):
    q, k, v = random_qkv(3, (4, 2))
    for x in (k, v):
        x[:, 5:] = 1e30
    changed = run(q, k, v)
    for x in (k, v):
        x[:, 5:] = 0
    np.testing.assert_array_equal(changed[:, :5], run(q, k, v)[:, :5])


def test_bfloat16_softmax_is_computed_in_float32():
    """With 512 near-equal weights, a softmax in bf16 (steps of 2⁻⁸) could not sum to one."""
    q, k, v = random_qkv(4, (2, 1), B=1, S=512)
    q, k, v = (jnp.bfloat16(x) for x in (q * 0.01, k, np.ones_like(v)))
    mixed = xla(q, k, v)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed.astype(np.float32), 1.0, atol=2**-8)  # one last bit


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("start", "new"), [(0, 9), (6, 3), (8, 1), (0, 1)])
def test_cached_attention_is_the_last_rows_of_full_attention(heads, start, new):
    q, k, v = random_qkv(5, heads)
    end = start + new
    cache = (np.concatenate([x, np.full_like(x, 1e30)], axis=1) for x in (k, v))
    mixed = cached(q[:, start:end], *cache, jnp.full(2, start, jnp.int32))
    np.testing.assert_allclose(mixed, oracle(q, k, v)[:, start:end], **FP32)


def test_cache_after_a_query_is_not_read():
    q, k, v = random_qkv(6, (4, 2))
    for x in (k, v):
        x[:, 5:] = 1e30
    poisoned = cached(q[:, 3:5], k, v, np.full(2, 3, np.int32))
    for x in (k, v):
        x[:, 5:] = 0
    np.testing.assert_array_equal(poisoned, cached(q[:, 3:5], k, v, np.full(2, 3, np.int32)))
