import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import polynomial

from teukenjax.errors import UserError
from teukenjax.optim.coefficients import COEFFICIENTS, steps_of
from teukenjax.optim.orthogonalise import newton_schulz

# p(σ) after a whole schedule, evaluated by others in float64, and its range on [0.01, 1].
SIGMA = np.array([1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 0.5, 0.9, 1])
PUBLISHED = {
    ("kj", 5): [0.0485, 0.4705, 1.1104, 0.6989, 1.1223, 0.7121, 1.0796, 0.7654, 0.6820, 0.6964],
    ("you", 5): [0.0493, 0.4750, 1.0751, 1.0180, 0.9857, 1.0190, 0.9962, 0.9859, 0.9799, 0.9783],
    ("polar_express", 5): [
        0.0975, 0.8462, 0.9650, 1.0660, 1.0334, 0.8749, 0.9105, 0.9343, 0.9852, 1.0288,
    ],
    ("polar_express", 8): [0.5747, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ("polar_express_cushioned", 5): [
        0.0988, 0.8589, 0.9664, 1.0271, 1.0605, 1.0592, 0.9831, 0.9106, 0.8749, 0.8591,
    ],
    ("cans", 5): [0.1047, 0.8865, 0.9226, 1.1132, 0.8883, 0.9163, 1.0106, 1.0964, 0.9217, 1.0051],
    ("modula", 6): [0.1134, 0.8663, 0.9987, 0.9988, 0.9992, 0.9961, 0.9956, 0.9962, 0.9963, 0.9984],
    ("cubic", 5): [0.0119, 0.1191, 0.3530, 1.0216, 0.9643, 0.8020, 1.1123, 1.0971, 1.1801, 0.7741],
}  # fmt: skip
RANGES = {
    ("kj", 5): (0.6818, 1.1344),
    ("you", 5): (0.9778, 1.0318),
    ("polar_express", 5): (0.8703, 1.1236),
    ("polar_express", 8): (1.0, 1.0),
    ("polar_express_cushioned", 5): (0.8589, 1.1411),
    ("cans", 5): (0.8844, 1.1198),
    ("modula", 6): (0.9956, 0.9993),
    ("deepseek_v4", 10): (1.0, 1.0005),
    ("cubic", 5): (0.7741, 1.30),
}


def as_published(name, iterations):
    """Our steps without what we divide them by, where the published numbers have it apart."""
    steps = steps_of(name, iterations)
    if name == "cans":
        safe = [(a * 1.01, b * 1.01**3, c * 1.01**5) for a, b, c in steps[:-1]]
        return [*safe, steps[-1]]
    if name == "polar_express_cushioned":  # there, the norm that divides the input is multiplied
        a, b, c = steps[0]
        return [(a * 1.02, b * 1.02**3, c * 1.02**5), *steps[1:]]
    return steps


@pytest.mark.parametrize(("name", "iterations"), PUBLISHED)
def test_values_as_published(name, iterations):
    result = polynomial(as_published(name, iterations), SIGMA)
    np.testing.assert_allclose(result, PUBLISHED[name, iterations], atol=6e-5)


@pytest.mark.parametrize(("name", "iterations"), RANGES)
def test_range_as_published(name, iterations):
    result = polynomial(as_published(name, iterations), np.geomspace(0.01, 1, 100_000))
    np.testing.assert_allclose([result.min(), result.max()], RANGES[name, iterations], atol=6e-5)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_newton_schulz_is_the_polynomial_on_singular_values(name):
    partners = np.sqrt(1 - SIGMA**2)  # the Frobenius norm is then 1
    with jax.enable_x64(True):
        x = jnp.asarray(np.stack([SIGMA, partners], -1)[:, :, None] * np.eye(2))
        result = newton_schulz(x, coefficients=name, dtype=jnp.float64, epsilon=0.0)
    expected = polynomial(steps_of(name), SIGMA)
    np.testing.assert_allclose(result[:, 0, 0], expected, rtol=1e-9)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_rounding_does_not_throw_a_singular_value_out_of_the_interval(name):
    """A matrix of rank one starts at σ = 1, the end of the interval; cans needs its factor."""
    x = np.outer(np.cos(np.arange(64.0)), np.sin(np.arange(176.0)))
    result = newton_schulz(jnp.asarray(x, jnp.float32), coefficients=name)
    assert np.linalg.norm(result, 2) < 1.3


def test_published_length_is_the_default():
    lengths = {name: len(steps_of(name)) for name in COEFFICIENTS}
    longer = {"polar_express": 8, "modula": 6, "deepseek_v4": 10}
    assert lengths == {name: longer.get(name, 5) for name in COEFFICIENTS}


def test_further_iterations_repeat_the_last_step():
    assert steps_of("kj", 7) == steps_of("kj", 1) * 7
    assert steps_of("you", 7)[4:] == steps_of("you")[4:] * 3
    assert steps_of("you", 2) == steps_of("you")[:2]


def test_unknown_name():
    with pytest.raises(UserError, match=r"coefficients='polarexpress': did you mean 'polar_exp"):
        steps_of("polarexpress")
