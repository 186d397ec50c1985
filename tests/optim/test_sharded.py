"""Sharded Scion: the same numbers, the collectives that were promised, no matrix stack whole."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import gaussian
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from teukenjax.optim import LeafSpec, lmo, scale_by_scion, sharded
from teukenjax.optim.scion import RADIUS, preset_norms

L, D, H, N, F, V = 5, 16, 4, 4, 24, 64
SHAPES = {
    "query": (L, D, H, N),
    "output": (L, H, N, D),
    "gate": (L, D, F),
    "down": (L, F, D),
    "table": (V, D),
    "gain": (L, D),
}
SPECS = {
    "query": LeafSpec("hidden", (1,), (2, 3)),
    "output": LeafSpec("hidden", (1, 2), (3,)),
    "gate": LeafSpec("hidden", (1,), (2,)),
    "down": LeafSpec("hidden", (1,), (2,)),
    "table": LeafSpec("output", (1,), (0,)),
    "gain": LeafSpec("gain", (), (1,)),
}
WHOLE = dict.fromkeys(SHAPES, P())
ROWS = {
    "query": P(None, "fsdp"),
    "output": P(None, None, None, "fsdp"),
    "gate": P(None, "fsdp"),
    "down": P(None, None, "fsdp"),
    "table": P("fsdp"),
    "gain": P(),
}
ROWS_TENSOR = {
    "query": P(None, "fsdp", "tensor"),
    "output": P(None, "tensor", None, "fsdp"),
    "gate": P(None, "fsdp", "tensor"),
    "down": P(None, "tensor", "fsdp"),
    "table": P(("fsdp", "tensor")),
    "gain": P(),
}
OTHERWISE = ROWS | {  # as no strategy of ours has it
    "query": P(None, None, None, "tensor"),  # rows arrive permuted
    "output": P(None, ("fsdp", "tensor")),
    "gate": P(None, ("tensor", "fsdp"), "replica"),
}
PLACEMENTS = {  # mesh (replica, fsdp, tensor), placement of momentum, placement of updates
    "ddp": ((1, 8, 1), WHOLE, WHOLE),
    "zero1": ((1, 8, 1), ROWS, WHOLE),
    "fsdp": ((1, 8, 1), ROWS, ROWS),
    "hsdp": ((2, 4, 1), ROWS, ROWS),
    "fsdp_tp": ((1, 4, 2), ROWS_TENSOR, ROWS_TENSOR),
    "three axes": ((2, 2, 2), ROWS_TENSOR, ROWS_TENSOR),
    "half gathered": ((2, 2, 2), ROWS_TENSOR, ROWS),
    "otherwise": ((2, 2, 2), OTHERWISE, OTHERWISE),
}


def placements(mesh_shape, *trees):
    axes = ("replica", "fsdp", "tensor")
    mesh = jax.make_mesh(mesh_shape, axes, axis_types=(AxisType.Auto,) * 3)
    return [{name: NamedSharding(mesh, spec) for name, spec in tree.items()} for tree in trees]


def directions(specs, before=None, after=None):
    ones = dict.fromkeys(RADIUS["untied"], 1.0)
    options = {"norms": preset_norms("untied"), "radius": ones, "multiplier": ones}
    return scale_by_scion(specs, momentum=0.0, shardings=before, update_shardings=after, **options)


def compiled(shapes, specs, before, after):
    """The program that maps gradients to updates, lowered and compiled."""
    optimizer = directions(specs, before, after)
    arrays = {
        n: jax.ShapeDtypeStruct(s, jnp.float32, sharding=before[n]) for n, s in shapes.items()
    }
    update = jax.jit(lambda g: optimizer.update(g, optimizer.init(g))[0], out_shardings=after)
    lowered = update.lower(arrays)
    return lowered, lowered.compile()


def collectives(text):
    """(operation, elements of its result) of each collective, tuples added up."""
    pattern = r"= (\S.*?) (all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute)\("
    return sorted(
        (operation, sum(sizes(shapes))) for shapes, operation in re.findall(pattern, text)
    )


def sizes(text):
    """Elements of each array type that is written in a program."""
    dims = re.findall(r"(?:f32|bf16)\[([\d,]+)\]", text)
    return [math.prod(map(int, numbers.split(","))) for numbers in dims]


@pytest.fixture
def in_fp32(monkeypatch):
    """Newton–Schulz in fp32: in bf16 a transposed matrix has other roundings than the matrix."""
    exact = functools.partial(lmo.newton_schulz, dtype=jnp.float32)
    monkeypatch.setattr(lmo, "newton_schulz", exact)
    monkeypatch.setattr(sharded, "TRAVELS_AS", jnp.float32)


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("name", PLACEMENTS)
def test_sharded_is_unsharded(name):
    mesh_shape, *trees = PLACEMENTS[name]
    before, after = placements(mesh_shape, *trees)
    gradients = {n: gaussian(*shape, seed=i) for i, (n, shape) in enumerate(SHAPES.items())}
    alone = directions(SPECS)
    expected = jax.jit(lambda g: alone.update(g, alone.init(g))[0])(gradients)
    _, program = compiled(SHAPES, SPECS, before, after)
    updates = program(jax.device_put(gradients, before))
    for leaf, update in updates.items():
        np.testing.assert_allclose(update, expected[leaf], rtol=1e-4, atol=1e-5, err_msg=leaf)
        assert update.sharding.is_equivalent_to(after[leaf], update.ndim)


def test_matrices_that_keep_their_orientation_are_the_same_bit_for_bit():
    before, after = placements((1, 8, 1), ROWS, ROWS)
    gradients = {n: gaussian(*shape, seed=i) for i, (n, shape) in enumerate(SHAPES.items())}
    alone = directions(SPECS)
    expected = jax.jit(lambda g: alone.update(g, alone.init(g))[0])(gradients)
    _, program = compiled(SHAPES, SPECS, before, after)
    updates = program(jax.device_put(gradients, before))
    for leaf in ("gate", "table", "gain"):
        np.testing.assert_array_equal(updates[leaf], expected[leaf])


def test_momentum_and_whole_steps_agree_over_time(in_fp32):
    del in_fp32
    before, _ = placements((2, 2, 2), ROWS_TENSOR, ROWS_TENSOR)
    ones = dict.fromkeys(RADIUS["untied"], 1.0)
    options = {"norms": preset_norms("untied"), "radius": ones, "multiplier": ones}
    results = []
    for shardings in (None, before):
        optimizer = scale_by_scion(SPECS, momentum=0.9, shardings=shardings, **options)
        update = jax.jit(optimizer.update)
        params = {n: gaussian(*shape, seed=i) for i, (n, shape) in enumerate(SHAPES.items())}
        state = optimizer.init(params)
        for seed in range(3):
            g = jax.tree.map(lambda p: gaussian(*p.shape, seed=seed + p.size), params)  # noqa: B023
            updates, state = update(g, state)
        results.append((updates, state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_a_stack_that_is_split_already_needs_no_communication():
    specs = {"experts": LeafSpec("hidden", (1,), (2,))}
    shapes = {"experts": (8, 6, 10)}
    before, _ = placements((1, 8, 1), {"experts": P("fsdp")}, WHOLE)
    _, program = compiled(shapes, specs, before, before)
    assert collectives(program.as_text()) == []


def test_a_mesh_may_be_explicit():
    """Types then carry shardings, and what they say after the update is what was asked."""
    g, spec = gaussian(L, D, F, seed=0), {"gate": SPECS["gate"]}
    results = []
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        placed = {"gate": jax.device_put(g, NamedSharding(mesh, P(None, "data")))}
        optimizer = directions(spec, jax.tree.map(lambda x: x.sharding, placed))
        with jax.set_mesh(mesh):
            updates, _ = jax.jit(optimizer.update)(placed, optimizer.init(placed))
        assert updates["gate"].sharding.is_equivalent_to(placed["gate"].sharding, 3)
        results.append(updates["gate"])
    np.testing.assert_array_equal(*results)


@pytest.mark.usefixtures("in_fp32")
def test_parts_of_a_fused_matrix_travel_on_their_own():
    specs = {"gate_up": LeafSpec("hidden", (1,), (2,), parts=(F, F))}
    before, _ = placements((1, 8, 1), {"gate_up": P(None, "fsdp")}, {})
    fused = {"gate_up": gaussian(L, D, 2 * F, seed=0)}
    alone = directions(specs)
    expected = jax.jit(lambda g: alone.update(g, alone.init(g))[0])(fused)["gate_up"]
    _, program = compiled({"gate_up": (L, D, 2 * F)}, specs, before, before)
    update = program(jax.device_put(fused, before))["gate_up"]
    np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-5)


# What the compiled program does.


def padded(matrices: int, devices: int = 8) -> int:
    return -(-matrices // devices) * devices


SQUARE, OBLONG = padded(2 * L) * D * H * N, padded(2 * L) * D * F  # elements of the two stacks


def both(operation, size):
    return [(operation, size(SQUARE)), (operation, size(OBLONG))]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # One all-to-all each way and shape, of the M-th part of the stack.
        ("fsdp", 2 * both("all-to-all", lambda n: n // 8)),
        ("fsdp_tp", 2 * both("all-to-all", lambda n: n // 8)),
        # Replicas take their share of the shards without asking, and give factors back.
        ("hsdp", 2 * both("all-to-all", lambda n: n // 8) + both("all-gather", lambda n: n // 4)),
        ("ddp", both("all-gather", lambda n: n)),
        # Momentum is split, parameters are not: factors go to all at once, the table's rows too.
        (
            "zero1",
            both("all-to-all", lambda n: n // 8)
            + both("all-gather", lambda n: n)
            + [("all-gather", V * D)],
        ),
    ],
)
def test_the_collectives_and_nothing_else(name, expected):
    mesh_shape, *trees = PLACEMENTS[name]
    lowered, program = compiled(SHAPES, SPECS, *placements(mesh_shape, *trees))
    assert collectives(program.as_text()) == sorted(expected)
    sent = re.findall(
        r"stablehlo\.(all_to_all|all_gather)\"?.*-> tensor<\S*x(\w+)>", lowered.as_text()
    )
    assert {dtype for _, dtype in sent} == {"bf16"}


def test_vocabulary_tables_and_signs_need_no_communication():
    specs = {
        "embedding": LeafSpec("input", (0,), (1,)),
        "head": LeafSpec("output", (1,), (0,)),
        "tied": LeafSpec("output", (1,), (0,), norm=lmo.Sign()),
    }
    shapes = dict.fromkeys(specs, (V, D))
    before, _ = placements((1, 4, 2), dict.fromkeys(specs, P(("fsdp", "tensor"))), {})
    _, program = compiled(shapes, specs, before, before)
    assert collectives(program.as_text()) == []


@pytest.mark.parametrize("name", ["fsdp", "hsdp", "fsdp_tp"])
def test_no_matrix_stack_is_ever_whole_on_a_device(name):
    layers = 16
    shapes = {n: (layers, *s[1:]) for n, s in SHAPES.items() if n in ("query", "output", "gate")}
    specs = {n: SPECS[n] for n in shapes}
    mesh_shape, *trees = PLACEMENTS[name]
    trees = [{n: tree[n] for n in shapes} for tree in trees]
    _, program = compiled(shapes, specs, *placements(mesh_shape, *trees))
    assert max(sizes(program.as_text())) <= layers * D * F // 2  # of a stack of layers · D · F


@pytest.mark.parametrize("name", ["ddp", "fsdp", "hsdp", "fsdp_tp"])
def test_every_device_does_its_share_of_the_work(name):
    shapes, specs = {"gate": (16, D, F)}, {"gate": SPECS["gate"]}
    mesh_shape, *trees = PLACEMENTS[name]
    trees = [{"gate": tree["gate"]} for tree in trees]
    _, program = compiled(shapes, specs, *placements(mesh_shape, *trees))
    products = 16 // 8 * 5 * (4 * D * D * F + 2 * D**3)  # of five steps on two matrices
    flops = program.cost_analysis()["flops"]
    assert products <= flops < 1.5 * products


# Placements that cannot be served name the leaf.


@pytest.mark.parametrize(
    ("specs", "before", "after", "message"),
    [
        ({}, P(), P(None, "fsdp"), r"gate: placed as .* may only leave out"),
        ({"fan_in": (2, 1), "fan_out": (0,)}, P(None, "fsdp"), P(), r"gate: .* splits axis 1"),
        ({"parts": (8, 16)}, P(None, None, "fsdp"), P(), r"gate: parts=\(8, 16\): axis 2 is split"),
    ],
)
def test_what_cannot_be_placed_names_the_leaf(specs, before, after, message):
    spec = LeafSpec(**({"role": "hidden", "fan_in": (1,), "fan_out": (2,)} | specs))
    shardings = placements((1, 8, 1), {"gate": before}, {"gate": after})
    with pytest.raises(ValueError, match=message):
        compiled({"gate": (8, D, F)}, {"gate": spec}, *shardings)
