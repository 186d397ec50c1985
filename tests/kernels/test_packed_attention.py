"""The attention kernel without a GPU: interpreted against the definition, and lowered for an H100.

The interpreter knows neither accumulators that start with a value nor products whose left side is
in registers; here they are plain arrays. Everything else (copies, barriers, masks, which blocks are
met) runs as it is written, and every output starts as NaN.
"""

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest
from h100 import on_an_h100
from tiny import eight_devices

from teukenjax.kernels import hopper
from teukenjax.kernels.attention import attention, pallas, pallas_backward, pallas_forward
from teukenjax.kernels.attention.reference import reference_attention
from teukenjax.model.remat import rematerialised

BF16 = jnp.bfloat16
N = 128


class Sums:
    """Stands for an accumulator."""

    def __init__(self, value):
        self.value = value


def with_sums(values, body):
    sums = [Sums(value) for value in values]
    body(sums)
    return [each.value for each in sums]


def multiply_add(sums, x, y_smem):
    sums.value += jnp.matmul(x[...], y_smem[...], preferred_element_type=jnp.float32)


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(hopper, "processors", lambda: 1)
    monkeypatch.setattr(hopper, "with_sums", with_sums)
    monkeypatch.setattr(hopper, "multiply_add", multiply_add)
    monkeypatch.setattr(hopper, "read", lambda sums, pending=0: sums.value)
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams()):
        yield


def draw(seed, S, heads, *, B=1):
    """q, k, v and a cotangent."""
    rng = np.random.default_rng(seed)
    H, K = heads
    return [jnp.asarray(rng.standard_normal((B, S, n, N)), BF16) for n in (H, K, K, H)]


def wide(x):
    return x.astype(jnp.float32)


def documents(*lengths):
    """Their numbers, the last one's 0: padding."""
    numbers = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return jnp.asarray(np.where(numbers == len(lengths), 0, numbers), jnp.int32)[None]


def passes(function, q, k, v, d_out):
    out, pull_back = jax.vjp(function, q, k, v)
    return out, *pull_back(d_out)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("segments", "heads"),
    [
        (None, (2, 1)),
        (documents(1, 60, 100, 33, 128, 62), (2, 1)),  # inside blocks, over them, at an edge
        (documents(30, 170), (2, 2)),  # 200 positions: padded to 256
    ],
)
def test_output_and_gradients_are_the_definition(segments, heads):
    S = 256 if segments is None else segments.shape[1]
    arguments = draw(S, S, heads)

    def ours(q, k, v):
        return attention(q, k, v, segments, implementation="pallas")

    def definition(q, k, v):
        return reference_attention(q, k, v, segments)

    found = passes(ours, *arguments)
    exact = passes(definition, *map(wide, arguments))
    for x, y in zip(found, exact, strict=True):
        assert x.dtype == BF16
        # Weights, dS and the result are rounded to bf16: 2⁻⁹ of each, at most, independently.
        assert jnp.linalg.norm(wide(x) - y) < 2**-8 * jnp.linalg.norm(y)
        np.testing.assert_allclose(wide(x), y, atol=2**-7 * np.abs(y).max())


@pytest.mark.usefixtures("interpreted")
def test_a_document_s_blocks_are_all_that_is_read():
    """NaN in the documents beside: a mask alone would let it through."""
    q, k, v, d_out = draw(1, 384, (1, 1))
    segments = jnp.repeat(jnp.arange(3, dtype=jnp.int32), 128)[None]
    own = slice(128, 256)

    def others(x):
        return jnp.full_like(x, jnp.nan).at[:, own].set(x[:, own])

    def ours(q, k, v):
        return attention(q, k, v, segments, implementation="pallas")

    def alone(q, k, v):
        return attention(q, k, v, implementation="pallas")

    found = passes(ours, *map(others, (q, k, v, d_out)))
    expected = passes(alone, *(x[:, own] for x in (q, k, v, d_out)))
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(wide(x)[:, own], wide(y))


def test_starts_are_those_of_runs_of_equal_numbers():
    segments = jnp.asarray([[3, 3, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]], jnp.int32)
    expected = [[0, 0, 2, 2, 2, 5], [0] * 6, list(range(6))]
    np.testing.assert_array_equal(pallas.starts_of(segments), expected)


@pytest.mark.parametrize(
    ("group", "programs", "parts"),
    [(16, 256, 4), (16, 64, 16), (16, 4096, 1), (1, 8, 1), (12, 300, 3), (16, 1, 16)],
)
def test_few_blocks_of_keys_are_split_by_heads(group, programs, parts, monkeypatch):
    monkeypatch.setattr(hopper, "processors", lambda: 132)
    assert pallas_backward.parts_of_group(group, programs) == parts


def test_each_device_has_its_sequences_and_heads(monkeypatch):
    monkeypatch.setattr(pallas, "attention", reference_attention)  # starts number documents too
    arguments = draw(2, 128, (4, 2), B=8)
    segments = jnp.asarray(np.sort(np.random.default_rng(2).integers(5, size=(8, 128))), jnp.int32)

    def ours(q, k, v):
        how = {"implementation": "pallas", "layout": eight_devices("fsdp_tp")}
        return attention(q, k, v, segments, **how)

    found = jax.jit(lambda *a: passes(ours, *a))(*arguments)
    assert found[0].sharding.shard_shape(found[0].shape) == (2, 128, 2, N)
    expected = passes(lambda *qkv: reference_attention(*qkv, segments), *arguments)
    for x, y in zip(found, expected, strict=True):
        # The last bit of bf16: a program for shards may sum in another order.
        np.testing.assert_allclose(wide(x), wide(y), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 128, 2, 64), BF16, "head_dim=64 is not 128"),
        ((1, 128, 2, N), jnp.float32, "compute.dtype is float32, not bfloat16"),
    ],
)
def test_what_the_kernel_does_not_take(shape, dtype, message):
    x = jnp.ones(shape, dtype)
    with pytest.raises(ValueError, match=message):
        attention(x, x, x, implementation="pallas")


def teuken(B=4, S=4096):
    q, k = (jax.ShapeDtypeStruct((B, S, heads, N), BF16) for heads in (32, 2))
    return q, k, k, q


@pytest.mark.parametrize("segments", [None, jax.ShapeDtypeStruct((4, 4096), jnp.int32)])
def test_all_three_kernels_lower_for_an_h100(segments):
    """That traces them, lays out registers and checks shared memory; only ptxas does not run."""

    def both(q, k, v, d_out, segments=None):
        return passes(
            lambda *qkv: attention(*qkv, segments, implementation="pallas"), q, k, v, d_out
        )

    shapes = teuken() if segments is None else (*teuken(), segments)

    def layers(*given):
        return both(*given), both(*given)

    for function in (both, layers):  # a second layer's kernels are those of the first
        assert on_an_h100(function, *shapes).count("mosaic_gpu_v2") == 3


@pytest.mark.parametrize(("policy", "kernels"), [("full", 4), ("save_attention", 3)])
def test_a_remat_policy_that_keeps_attention_does_not_run_it_again(policy, kernels):
    def layer(q, k, v):
        return attention(q, k, v, implementation="pallas")

    kept = rematerialised(layer, policy, attention="pallas", scanned=True)
    text = on_an_h100(lambda q, k, v, d: passes(kept, q, k, v, d), *teuken(1, 256))
    assert text.count("mosaic_gpu_v2") == kernels


def test_forward_alone_is_one_kernel():
    q, k, v, _ = teuken()
    starts = jax.ShapeDtypeStruct((4, 4096), jnp.int32)
    text = on_an_h100(pallas_forward.forward, q, k, v, starts)
    assert text.count("mosaic_gpu_v2") == 1
