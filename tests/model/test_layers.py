import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MESHES, eight_devices, one_device

from teukenjax.kernels.rms_norm.reference import reference_rms_norm as rms_norm
from teukenjax.model.layers import apply_rope, embed, rope_angles

# One rounding each of a mean of squares, a reciprocal root and two products: 4·2⁻²⁴.
FP32 = {"rtol": 3e-7, "atol": 0}


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def normed(x, gain, epsilon):
    return rms_norm(jnp.asarray(x), None if gain is None else jnp.asarray(gain), epsilon)


def norm_oracle(x, gain, epsilon):
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * np.asarray(gain, np.float64)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rms_norm_is_the_oracle_at_every_scale(scale):
    x, gain = scale * normal(0, 2, 3, 16), 1 + 0.3 * normal(1, 16)
    np.testing.assert_allclose(normed(x, gain, 1e-5), norm_oracle(x, gain, 1e-5), **FP32)


def test_rms_norm_without_gain_has_a_gain_of_one():
    x = normal(2, 2, 3, 16)
    np.testing.assert_allclose(normed(x, None, 1e-5), norm_oracle(x, 1.0, 1e-5), **FP32)


def test_rms_norm_of_zeros_is_zero():
    assert not np.any(rms_norm(jnp.zeros((2, 16)), None, 1e-20))


def test_rms_norm_rounds_to_bfloat16_once_and_after_the_gain():
    """As the Apex kernel that Teuken was trained with; rounding before it differs."""
    x, gain = jnp.bfloat16(normal(3, 64, 16)), 1 + 0.3 * normal(4, 16)
    result = normed(x, gain, 1e-5)
    exact = norm_oracle(x.astype(np.float32), gain, 1e-5)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, jnp.bfloat16(exact.astype(np.float32)))
    early = jnp.bfloat16(norm_oracle(x.astype(np.float32), 1.0, 1e-5).astype(np.float32))
    assert np.mean(early * jnp.bfloat16(gain)[None] != result) > 0.1


def rotate(x: np.ndarray, positions: np.ndarray, theta: float = 10_000.0) -> np.ndarray:
    rope = rope_angles(jnp.asarray(positions)[None], head_dim=x.shape[-1], theta=theta)
    return np.asarray(apply_rope(jnp.asarray(x), rope))


def test_rope_is_a_complex_rotation_of_dimension_i_with_i_plus_half():
    x, positions = normal(5, 2, 7, 3, 8), np.arange(7)
    pairs = x[..., :4].astype(np.complex128) + 1j * x[..., 4:]
    angles = positions[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    turned = pairs * np.exp(1j * angles)[None, :, None]
    # Angles up to 7 carry 7·2⁻²⁴ from fp32 and twice that from the power.
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(rotate(x, positions), expected, rtol=0, atol=3e-6)


def test_rope_keeps_norms_and_leaves_position_zero_alone():
    x, positions = normal(6, 1, 4, 2, 128), np.array([0, 1, 100, 4095])
    turned = rotate(x, positions)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6
    )
    assert np.abs(turned[:, 1:] - x[:, 1:]).max() > 0.5


def test_rope_makes_scores_depend_on_relative_position_only():
    q, k = (np.repeat(normal(seed, 1, 1, 1, 16), 3, axis=1) for seed in (7, 8))
    scores = np.sum(rotate(q, np.array([5, 105, 905])) * rotate(k, np.array([2, 102, 902])), -1)
    # An angle of 905 is known to 905·2·2⁻²⁴ = 1e-4; scores are sums of 16 terms.
    np.testing.assert_allclose(scores, np.full_like(scores, scores[0, 0, 0]), atol=1e-3)
    other = np.sum(rotate(q, np.array([5, 105, 905])) * rotate(k, np.array([1, 101, 901])), -1)
    assert np.abs(other - scores).min() > 1e-2


def test_rope_angles_at_the_last_position_are_exact_in_float32():
    """The public training code's bf16 angles are off by up to 2 here."""
    positions = np.array([1, 769, 4094, 4095])
    cos, sin = rope_angles(jnp.asarray(positions)[None], head_dim=128, theta=10_000.0)
    angles = positions[:, None] * 10_000.0 ** (-np.arange(0, 128, 2) / 128)
    tolerance = 4095 * 2**-22  # the angle's last bits: of the frequency, and of the product
    np.testing.assert_allclose(cos[0], np.cos(angles), rtol=0, atol=tolerance)
    np.testing.assert_allclose(sin[0], np.sin(angles), rtol=0, atol=tolerance)


def looked_up(layout, dtype="float32"):
    """(table, tokens, cotangent) → rows and the table's gradient, compiled for a mesh."""

    def lookup(table, tokens):
        return embed(layout.each(table), tokens, layout=layout, dtype=dtype)

    def run(table, tokens, cotangent):
        rows, pull_back = jax.vjp(lambda table: lookup(table, tokens), table)
        return rows, pull_back(cotangent)[0]

    table = layout.sharding(("vocab", "table_width"), layout.row.parameters)
    places = (table, layout.batch(trailing=1), layout.batch(trailing=2))
    return jax.jit(run, in_shardings=places)


@pytest.mark.parametrize("strategy", [*MESHES, "one device"])
def test_embedding_is_the_rows_of_the_table_and_its_gradient_the_scatter_add(strategy):
    layout = one_device() if strategy == "one device" else eight_devices(strategy)
    rng = np.random.default_rng(9)
    table = normal(10, 40, 6)
    tokens = rng.integers(40, size=(8, 5), dtype=np.int32)
    assert len(np.unique(tokens)) < tokens.size  # some rows are used more than once
    cotangent = rng.integers(-8, 8, (8, 5, 6)).astype(np.float32)  # sums of integers are exact
    rows, gradient = looked_up(layout)(table, tokens, cotangent)
    expected = np.zeros_like(table)
    np.add.at(expected, tokens, cotangent)
    np.testing.assert_array_equal(rows, table[tokens])
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp_tp"])
def test_embedding_rounds_rows_and_sums_gradients_in_float32(strategy):
    """A sum of 513 ones in bf16 stops at 256."""
    table, tokens = normal(11, 40, 6), np.full((8, 65), 3, np.int32)
    tokens[:, 64] = np.arange(8) + 2  # once more on one device: 513 times in all
    run = looked_up(eight_devices(strategy), "bfloat16")
    rows, gradient = run(table, tokens, jnp.ones((8, 65, 6), jnp.bfloat16))
    np.testing.assert_array_equal(rows, jnp.bfloat16(table)[tokens])
    assert gradient.dtype == np.float32
    np.testing.assert_array_equal(gradient[3], 513)
