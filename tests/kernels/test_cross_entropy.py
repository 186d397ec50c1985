import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from teukenjax.kernels.cross_entropy import linear_cross_entropy
from teukenjax.kernels.cross_entropy.reference import reference_cross_entropy
from teukenjax.recipe import ShardingConfig
from teukenjax.sharding import Layout, abstract_layout, make_layout

MESHES = {
    "ddp": {},
    "zero2": {},
    "fsdp": {},
    "hsdp": {"replica": 2},
    "fsdp_tp": {"tensor": 2},
}
B, S, D, V, ROWS = 8, 5, 12, 41, 56  # over eight devices the last two hold padding only

# fp32 sums of at most V·D = 492 terms of order 1, in another order than NumPy's: 492·2⁻²⁴ = 3e-5
# at worst, a tenth of it in practice. Sums over all 40 tokens (d_table, total) are no worse.
FP32 = {"rtol": 1e-5, "atol": 3e-6}


class Case(NamedTuple):
    """The arguments of the kernel."""

    hidden: np.ndarray
    table: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class Result(NamedTuple):
    """What the kernel gives, and the gradients of its total."""

    total: np.ndarray
    losses: np.ndarray
    d_hidden: np.ndarray
    d_table: np.ndarray


def make_case(seed: int, *, scale: float = 1.0) -> Case:
    """Padding rows hold 1e30: wherever one is used, it shows."""
    rng = np.random.default_rng(seed)
    table = np.full((ROWS, D), 1e30, np.float32)
    table[:V] = rng.standard_normal((V, D))
    weights = rng.uniform(0.1, 3, (B, S)).astype(np.float32)
    weights[rng.random((B, S)) < 0.3] = 0
    hidden = (scale * rng.standard_normal((B, S, D))).astype(np.float32)
    return Case(hidden, table, rng.integers(V, size=(B, S), dtype=np.int32), weights)


def oracle(case: Case, z_loss: float = 0.0) -> Result:
    """The definition and its derivative, in float64."""
    hidden, table, labels, weights = case
    hidden, table = hidden.astype(np.float64), table[:V].astype(np.float64)
    logits = hidden @ table.T
    top = logits.max(-1, keepdims=True)
    log_sum = top + np.log(np.exp(logits - top).sum(-1, keepdims=True))
    log_p = logits - log_sum
    losses = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    total = ((losses + z_loss * log_sum[..., 0] ** 2) * weights).sum()
    d_log_sum = 1 + 2 * z_loss * log_sum
    d_logits = (d_log_sum * np.exp(log_p) - np.eye(V)[labels]) * weights[..., None]
    d_table = np.zeros((ROWS, D))
    d_table[:V] = np.einsum("bsv,bsd->vd", d_logits, hidden)
    return Result(total, losses, d_logits @ table, d_table)


def layout_of(strategy: str) -> Layout:
    return make_layout(ShardingConfig(strategy=strategy, **MESHES[strategy]))


def program(layout: Layout, *, chunk: int, vocab_size: int = V, scale: float = 1.0, z_loss=0.0):
    """(hidden, table, labels, weights) → ((total, losses), (d_hidden, d_table))."""

    def loss(hidden, table, labels, weights):
        total, losses = linear_cross_entropy(
            hidden, layout.each(table), labels, weights,
            vocab_size=vocab_size, chunk=chunk, layout=layout, z_loss=z_loss,
        )  # fmt: skip
        return scale * total, losses

    batch, rows = layout.batch(trailing=1), table_sharding(layout)
    return jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
        in_shardings=(layout.batch(trailing=2), rows, batch, batch),
    )


def table_sharding(layout: Layout):
    return layout.sharding(("vocab", "table_width"), layout.row.parameters)


def run(layout: Layout, case: Case, **options) -> Result:
    (total, losses), (d_hidden, d_table) = program(layout, **options)(*case)
    return Result(*map(np.asarray, (total, losses, d_hidden, d_table)))


def assert_close(result: Result, expected: Result, **tolerance):
    for name, x, y in zip(Result._fields, result, expected, strict=True):
        np.testing.assert_allclose(x, y, err_msg=name, **(tolerance or FP32))


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("strategy", MESHES)
def test_loss_and_gradients_are_the_oracles_on_every_mesh(strategy, z_loss):
    case = make_case(1)
    assert (case.weights == 0).any()
    assert len(np.unique(case.weights)) > 10
    result = run(layout_of(strategy), case, chunk=3, z_loss=z_loss)
    assert_close(result, oracle(case, z_loss))


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
def test_chunk_does_not_change_the_result(chunk):
    """One token, a divisor's neighbour, all five tokens of a device, more than it has."""
    case = make_case(2)
    assert_close(run(layout_of("fsdp"), case, chunk=chunk), oracle(case))


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_reference_is_the_oracle(z_loss):
    case = make_case(3)
    hidden, table, labels, weights = map(jnp.asarray, case)

    def loss(hidden, table):
        how = {"vocab_size": V, "z_loss": z_loss}
        return reference_cross_entropy(hidden, table, labels, weights, **how)

    (total, losses), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, table)
    assert_close(Result(total, losses, *gradients), oracle(case, z_loss))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_padding_rows_change_nothing_and_get_no_gradient(strategy):
    poisoned = make_case(4)
    clean = poisoned._replace(table=np.where(np.arange(ROWS)[:, None] < V, poisoned.table, 0))
    layout = layout_of(strategy)
    results = run(layout, poisoned, chunk=3), run(layout, clean, chunk=3)
    for x, y in zip(*results, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not results[0].d_table[V:].any()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp_tp"])
def test_logits_of_ten_thousand_stay_finite_and_right(strategy):
    case = make_case(5, scale=3e3)
    logits = case.hidden @ case.table[:V].T
    assert logits.max() > 1e4
    assert logits.min() < -1e4
    result = run(layout_of(strategy), case, chunk=3)
    # A logit of 1e4 has an absolute error of 1e4·12·2⁻²⁴ = 7e-3, which is that of a loss, and the
    # relative error of a probability.
    expected = oracle(case)
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-5, atol=1e-2)
    for x, y in zip(result[2:], expected[2:], strict=True):
        assert np.linalg.norm(x - y) < 1e-2 * np.linalg.norm(y)


def test_token_of_weight_zero_has_a_loss_and_no_gradient():
    case = make_case(6)
    result = run(layout_of("fsdp"), case, chunk=2)
    assert not result.d_hidden[case.weights == 0].any()
    assert (result.losses > 0).all()
    other = case._replace(hidden=np.where(case.weights[..., None] == 0, 7, case.hidden))
    np.testing.assert_array_equal(run(layout_of("fsdp"), other, chunk=2).d_hidden, result.d_hidden)


def test_gradients_scale_with_the_cotangent_of_the_total():
    case = make_case(7)
    once, thrice = (run(layout_of("fsdp"), case, chunk=3, scale=s) for s in (1.0, -3.0))
    np.testing.assert_allclose(thrice.d_hidden, -3 * once.d_hidden, **FP32)
    np.testing.assert_allclose(thrice.d_table, -3 * once.d_table, **FP32)


def test_losses_of_tokens_carry_no_gradient():
    hidden, table, labels, weights = map(jnp.asarray, make_case(8))
    layout = layout_of("ddp")

    def mean(hidden, table):
        return jnp.mean(
            linear_cross_entropy(
                hidden, layout.each(table), labels, weights, vocab_size=V, chunk=3, layout=layout
            )[1]
        )

    for gradient in jax.jit(jax.grad(mean, (0, 1)))(hidden, table):
        assert not np.any(gradient)


def test_bfloat16_products_are_summed_in_float32():
    """Inputs that bf16 holds exactly: the loss is then right to fp32, gradients to bf16's 2⁻⁸."""
    case = make_case(9)
    rounded = [np.asarray(jnp.bfloat16(x).astype(jnp.float32)) for x in case[:2]]
    case = case._replace(hidden=rounded[0], table=rounded[1])
    expected = oracle(case)
    result = run(layout_of("fsdp"), case._replace(hidden=jnp.bfloat16(case.hidden)), chunk=3)
    assert result.d_hidden.dtype == jnp.bfloat16
    assert result.d_table.dtype == np.float32
    np.testing.assert_allclose(result.losses, expected.losses, **FP32)
    for x, y in zip(result[2:], expected[2:], strict=True):
        assert np.linalg.norm(x - y) < 2**-8 * np.linalg.norm(y)


def test_result_is_independent_of_how_the_batch_is_ordered_over_devices():
    """Each device's tokens come back to it: no two devices' tokens are exchanged."""
    case = make_case(10)
    order = np.random.default_rng(0).permutation(B)
    shuffled = Case(case.hidden[order], case.table, case.labels[order], case.weights[order])
    one, other = (run(layout_of("hsdp"), c, chunk=2) for c in (case, shuffled))
    np.testing.assert_allclose(other.losses, one.losses[order], **FP32)
    np.testing.assert_allclose(other.d_hidden, one.d_hidden[order], **FP32)


def big_program(strategy: str, *, rows: int):
    """Compiled for 8 × 256 tokens and a vocabulary that outweighs them."""
    layout = layout_of(strategy)
    shapes = (
        jax.ShapeDtypeStruct((8, 256, 16), "float32"),
        jax.ShapeDtypeStruct((rows, 16), "float32"),
        jax.ShapeDtypeStruct((8, 256), "int32"),
        jax.ShapeDtypeStruct((8, 256), "float32"),
    )
    return program(layout, chunk=16, vocab_size=rows - 8).lower(*shapes).compile()


@pytest.mark.parametrize(("strategy", "shards"), [("ddp", 1), ("fsdp", 8), ("fsdp_tp", 8)])
def test_compiled_program_never_holds_the_logits(strategy, shards):
    """Per device: T/8 tokens × V for a whole table, T × V/8 for a split one: 32 MiB either way."""
    rows = 32_768
    logits_bytes = 8 * 256 * rows * 4 // 8
    temporary = big_program(strategy, rows=rows).memory_analysis().temp_size_in_bytes
    chunk_bytes = logits_bytes // 16  # 16 of 256 tokens
    table_bytes = rows * 16 * 4 // shards
    # One chunk's logits, probabilities and their like, and the table's gradient twice.
    assert temporary < 4 * chunk_bytes + 3 * table_bytes
    assert temporary < logits_bytes / 2


def test_the_bound_on_memory_is_one_that_whole_logits_break():
    rows = 32_768

    def loss(hidden, table, labels, weights):
        return reference_cross_entropy(hidden, table, labels, weights, vocab_size=rows)[0]

    shapes = (
        jax.ShapeDtypeStruct((256, 1, 16), "float32"),
        jax.ShapeDtypeStruct((rows, 16), "float32"),
        jax.ShapeDtypeStruct((256, 1), "int32"),
        jax.ShapeDtypeStruct((256, 1), "float32"),
    )
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes >= 256 * rows * 4


@pytest.mark.parametrize("strategy", ["fsdp", "hsdp", "fsdp_tp"])
def test_a_split_table_is_never_gathered(strategy):
    rows = 1_048  # occurs nowhere else
    text = big_program(strategy, rows=rows).as_text()
    gathered = [
        [int(size) for size in shape.split(",") if size]
        for line in text.splitlines()
        if (match := re.search(r"= (.*?) all-gather(-start)?\(", line))
        for shape in re.findall(r"\[([\d,]*)\]", match[1])
    ]
    assert gathered, "no all-gather found at all: tokens travel, so the search is broken"
    assert not [shape for shape in gathered if rows in shape]
    assert f"[{rows}," not in text


def test_the_tensor_axis_sums_each_devices_own_tokens_and_not_its_groups():
    text = big_program("fsdp_tp", rows=1_048).as_text()
    summed = re.findall(r"= f32\[(\d+),16\]\S* all-reduce\(", text)
    assert summed == ["16"]  # a chunk, of which its group has four


@pytest.mark.parametrize(
    ("strategy", "spec"),
    [("ddp", P()), ("fsdp", P("fsdp")), ("hsdp", P("fsdp")), ("fsdp_tp", P(("fsdp", "tensor")))],
)
def test_gradient_of_the_table_is_born_where_the_table_lives(strategy, spec):
    layout = layout_of(strategy)
    case = make_case(11)
    _, (_, d_table) = program(layout, chunk=3)(*case)
    expected = jax.sharding.NamedSharding(layout.mesh, spec)
    assert d_table.sharding.is_equivalent_to(expected, 2)


def test_lowers_for_a_mesh_without_devices():
    layout = abstract_layout(ShardingConfig(strategy="fsdp"), 64)
    shapes = (
        jax.ShapeDtypeStruct((64, S, D), "float32"),
        jax.ShapeDtypeStruct((64, D), "float32"),
        jax.ShapeDtypeStruct((64, S), "int32"),
        jax.ShapeDtypeStruct((64, S), "float32"),
    )
    (total, losses), _ = jax.eval_shape(program(layout, chunk=3), *shapes)
    assert (total.shape, losses.shape) == ((), (64, S))
