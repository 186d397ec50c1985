"""Our GPU kernels without a GPU: interpreted against the definition, and lowered for an H100.

The interpreter starts every output as NaN, so what a kernel forgets to write shows.
"""

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from h100 import on_an_h100
from tiny import model_of, one_device, tiny_config

from teukenjax.kernels import hopper
from teukenjax.kernels.cross_entropy import linear_cross_entropy
from teukenjax.kernels.cross_entropy import pallas as head
from teukenjax.kernels.rms_norm import add_rms_norm, rms_norm
from teukenjax.kernels.rms_norm import pallas as norm
from teukenjax.kernels.symmetric_matmul import gram, symmetric_product
from teukenjax.kernels.symmetric_matmul import pallas as symmetric
from teukenjax.optim import orthogonalise
from teukenjax.optim.coefficients import steps_of
from teukenjax.recipe import ShardingConfig
from teukenjax.sharding import make_layout

BF16, FP16 = jnp.bfloat16, jnp.float16
EPSILON = 1e-5


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels run on a CPU, as three programs, so that each has more than one tile or row."""
    monkeypatch.setattr(hopper, "processors", lambda: 3)
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams()):
        yield


def draw(seed, *shape, dtype=BF16, scale=1.0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(scale * rng.standard_normal(shape), dtype)


def sharded(devices):
    return make_layout(ShardingConfig(strategy="fsdp"), jax.devices()[:devices])


def wide(x):
    return np.asarray(x, np.float64)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("shape", [(2, 512, 192), (300, 100), (1, 2, 256, 64)])
def test_a_gram_matrix_is_exact_to_a_rounding_and_symmetric(shape, dtype):
    x = draw(0, *shape, dtype=dtype, scale=0.1)
    out = gram(x, implementation="pallas")
    expected = wide(x) @ wide(x).swapaxes(-1, -2)
    np.testing.assert_array_equal(out, out.mT)
    # One rounding of the result, and sums of at most 192 products in fp32.
    np.testing.assert_allclose(wide(out), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-5)


@pytest.mark.usefixtures("interpreted")
def test_a_product_of_commuting_matrices_with_an_addend():
    a = gram(draw(1, 2, 300, 100, dtype=FP16, scale=0.05), implementation="pallas")
    square = symmetric_product(a, a, a, alpha=0.5, beta=-2.0, implementation="pallas")
    expected = 0.5 * wide(a) @ wide(a) - 2 * wide(a)
    np.testing.assert_array_equal(square, square.mT)
    np.testing.assert_allclose(wide(square), expected, rtol=2**-10, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_dtype_that_pallas_does_not_take(dtype):
    x = jnp.ones((256, 64), dtype)
    with pytest.raises((ValueError, TypeError), match=r"float16|Float"):
        gram(x, implementation="pallas")


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("form", [orthogonalise.newton_schulz, orthogonalise.gram_newton_schulz])
def test_newton_schulz_by_the_kernel_is_as_near_to_the_polynomial(form, monkeypatch):
    monkeypatch.setattr(orthogonalise, "PALLAS_PAYS_FROM", 1)
    x = draw(2, 64, 160, dtype=jnp.float32)
    x16 = wide(x.astype(BF16))
    u, sigma, vt = np.linalg.svd(x16 / np.linalg.norm(x16), full_matrices=False)
    for a, b, c in steps_of("kj", None):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    exact = (u * sigma) @ vt

    def distance(kernel):
        return np.linalg.norm(wide(form(x, symmetric_matmul=kernel)) - exact)

    assert distance("pallas") < 1.2 * distance("reference") < 0.05 * np.linalg.norm(exact)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("V", "valid"), [(640, 600), (512, 512), (392, 100)])
def test_exponentials_are_the_softmax_by_parts(V, valid):
    hidden, table = draw(3, 256, 128, scale=0.3), draw(4, V, 128)
    kept, top, total = head.exponentials(hidden, table, jnp.int32(valid))
    logits = wide(hidden) @ wide(table).T
    logits[:, valid:] = -np.inf
    log_sum = np.log(np.exp(logits).sum(axis=1))
    of_parts = np.log((wide(total) * np.exp(wide(top))).sum(axis=0))
    np.testing.assert_allclose(of_parts, log_sum, atol=1e-5)
    exact = np.exp(logits - np.repeat(wide(top).T, 128, axis=1)[:, :V])
    np.testing.assert_allclose(wide(kept), exact, rtol=2**-8, atol=1e-6)
    bare = head.exponentials(hidden, table, jnp.int32(valid), keep=False)
    assert bare[0] is None
    np.testing.assert_allclose(bare[2], total, rtol=1e-6)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("rows", "devices", "z_loss"),
    [(512, 1, 0.0), (512, 1, 1e-2), (392, 1, 0.0), (784, 2, 0.0)],
    ids=["whole parts", "z-loss", "a part of 8 columns", "such parts on two devices"],
)
def test_the_head_by_the_kernel_has_the_loss_and_gradients_of_the_reference(rows, devices, z_loss):
    hidden, table = draw(5, 2, 100, 64, scale=0.5), draw(6, rows, 64, dtype=jnp.float32)
    rng = np.random.default_rng(7)
    labels = jnp.asarray(rng.integers(rows - 12, size=(2, 100)), jnp.int32)
    weights = jnp.asarray(rng.uniform(0, 1, (2, 100)) / 100, jnp.float32)

    layout = sharded(devices)

    def results(implementation):
        def loss(hidden, table):
            return linear_cross_entropy(
                hidden, layout.each(table), labels, weights, vocab_size=rows - 12, chunk=70,
                layout=layout, z_loss=z_loss, implementation=implementation,
            )  # fmt: skip

        gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (total, losses), (dx, dw) = gradients(hidden, table)
        return total, losses, dx, dw

    ours, reference = results("pallas"), results("reference")
    np.testing.assert_allclose(ours[0], reference[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], reference[1], atol=1e-5)
    for x, y in zip(ours[2:], reference[2:], strict=True):
        # Both round d-logits to bf16, each from another side: 2⁻⁸ of the largest.
        np.testing.assert_allclose(wide(x), wide(y), atol=2**-7 * np.abs(wide(y)).max())


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("devices", [1, 2])
def test_norm_and_its_gradients_are_the_reference(residual, devices):
    x, r, dh, dy = (draw(seed, 4, 5, 1024) for seed in range(8, 12))
    gain = jnp.asarray(np.random.default_rng(12).uniform(0.5, 1.5, 1024), jnp.float32)

    def results(implementation):
        how = {"layout": sharded(devices), "implementation": implementation, "saved_as": "h"}

        def norm(x, *rest):
            return add_rms_norm(x, *(rest if residual else (None, *rest)), EPSILON, **how)

        # Not as one program: there XLA would not round the reference's sum to bf16.
        (h, y), pull_back = jax.vjp(norm, *((x, r, gain) if residual else (x, gain)))
        return h, y, *pull_back((dh, dy))

    for ours, reference in zip(results("pallas"), results("reference"), strict=True):
        bit = 2**-7 if ours.dtype == BF16 else 1e-5  # the last bit, of the largest
        np.testing.assert_allclose(wide(ours), wide(reference), atol=bit * 4, rtol=bit)


@pytest.mark.usefixtures("interpreted")
def test_the_norm_at_the_end_of_the_stream():
    x, dy, gain = draw(13, 1, 4, 1024), draw(14, 1, 4, 1024), jnp.ones(1024, jnp.float32)

    def results(implementation):
        how = {"layout": one_device(), "implementation": implementation}
        y, pull_back = jax.vjp(lambda x, g: rms_norm(x, g, EPSILON, **how), x, gain)
        return y, *pull_back(dy)

    for ours, reference in zip(results("pallas"), results("reference"), strict=True):
        np.testing.assert_allclose(wide(ours), wide(reference), atol=2**-6, rtol=2**-7)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.ones((1, 4, 1000), BF16), "width=1000 is not a multiple of 1024"),
        (jnp.ones((1, 4, 1024), jnp.float32), "compute.dtype is float32, not bfloat16"),
    ],
)
def test_what_the_norm_does_not_take(x, message):
    gain = jnp.ones(x.shape[-1], jnp.float32)
    with pytest.raises(ValueError, match=message):
        add_rms_norm(x, None, gain, EPSILON, layout=one_device(), implementation="pallas")


def bf16(*shape):
    return jax.ShapeDtypeStruct(shape, BF16)


TEUKEN = {  # each kernel at the shapes of Teuken-7B
    "gram of up": (
        lambda x: symmetric.symmetric_product(x, x, None, alpha=1.0, beta=0.0),
        [bf16(96, 4096, 13440)],
    ),
    "square": (
        lambda a: symmetric.symmetric_product(a, a, a, alpha=2.0, beta=-4.7),
        [bf16(64, 4096, 4096)],
    ),
    "head": (
        lambda h, w, n: head.exponentials(h, w, n),
        [bf16(2048, 4096), bf16(250_880, 4096), jax.ShapeDtypeStruct((), jnp.int32)],
    ),
    "head, an eighth of the vocabulary": (
        lambda h, w, n: head.exponentials(h, w, n, keep=False),
        [bf16(2048, 4096), bf16(31_360, 4096), jax.ShapeDtypeStruct((), jnp.int32)],
    ),
    "head, a sixty-fourth of the vocabulary": (
        lambda h, w, n: head.exponentials(h, w, n),
        [bf16(2048, 4096), bf16(3920, 4096), jax.ShapeDtypeStruct((), jnp.int32)],
    ),
    "norm": (
        lambda x, g: norm.forward(x, g, EPSILON),
        [bf16(16_384, 4096), jax.ShapeDtypeStruct((4096,), jnp.float32)],
    ),
    "norm, backward": (
        lambda x, g: norm.backward(x, g, x, x, EPSILON),
        [bf16(16_384, 4096), jax.ShapeDtypeStruct((4096,), jnp.float32)],
    ),
}


@pytest.mark.parametrize("name", TEUKEN)
def test_every_kernel_lowers_for_an_h100(name):
    """That traces it, lays out registers and checks shared memory; only ptxas does not run."""
    function, shapes = TEUKEN[name]
    assert on_an_h100(function, *shapes).count("mosaic_gpu_v2") == 1


@pytest.mark.parametrize("name", TEUKEN)
def test_a_kernel_that_is_called_again_is_not_compiled_again(name):
    """Mosaic would compile two calls apart, a second or more each, if each were traced anew."""
    function, shapes = TEUKEN[name]
    text = on_an_h100(lambda *given: (function(*given), function(*given)), *shapes)
    assert text.count("mosaic_gpu_v2") == 1


def products_of_a_step(**compute) -> int:
    """Matrix products in the loss and its gradient of a model in bf16, as traced."""
    kernels = {"attention": "pallas", "cross_entropy": "reference", "symmetric_matmul": "reference"}
    kernels |= {"rms_norm": compute.pop("rms_norm")}
    config = tiny_config(width=1024, head_dim=128, context=64)
    choice = {"dtype": "bfloat16", "remat": "save_projections", "kernels": kernels}
    model = model_of(config, unroll=config.layers, **(choice | compute))
    tokens = jax.ShapeDtypeStruct((1, config.context + 1), jnp.int32)
    weights = jax.ShapeDtypeStruct((1, config.context), jnp.float32)

    def loss(params, tokens, weights):
        return model.bind(params).loss(tokens, weights)[0]

    return products_in(jax.make_jaxpr(jax.grad(loss))(model.abstract, tokens, weights).jaxpr)


def products_in(jaxpr) -> int:
    inner = (
        products_in(sub)
        for eqn in jaxpr.eqns
        for sub in jax.extend.core.jaxprs_in_params(eqn.params)
    )
    return sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns) + sum(inner)


def test_what_is_kept_for_the_backward_pass_is_not_multiplied_again(monkeypatch):
    """A norm that is recomputed must not need the product whose sum was kept."""
    monkeypatch.setattr(hopper, "processors", lambda: 132)
    layers = 3
    plain = products_of_a_step(rms_norm="reference", remat="none")
    assert plain > layers * 3 * 7
    for implementation in ("reference", "pallas"):
        assert products_of_a_step(rms_norm=implementation) == plain
        assert products_of_a_step(rms_norm=implementation, remat="save_attention") == (
            plain + layers * 2  # gate and up
        )
