"""No test here needs a device: layouts are abstract, arrays are shapes."""

import jax
import pytest
from goldens import regenerate
from jax.sharding import PartitionSpec as P

from teukenjax.errors import UserError
from teukenjax.model import Functional
from teukenjax.recipe import ComputeConfig, ModelConfig, ShardingConfig
from teukenjax.sharding import (
    ROWS_TENSOR,
    STRATEGIES,
    WHOLE,
    WeightSpec,
    abstract_layout,
    mesh_shape,
    partition,
    tree_shardings,
)
from teukenjax.train.plan import bytes_per_device

SMALL = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64}
MESHES = {"hsdp": {"replica": 2}, "fsdp_tp": {"tensor": 2}}


def layout_of(strategy: str, devices: int = 8, **axes):
    return abstract_layout(
        ShardingConfig(strategy=strategy, **(axes or MESHES.get(strategy, {}))), devices
    )


def model_on(layout, **changes) -> Functional:
    config = ModelConfig(**({"vocab_size": 300, "context": 16} | SMALL | changes))
    return Functional(config, ComputeConfig(), layout)


def place(layout, model: Functional):
    return tree_shardings(layout, model.specs, model.abstract, layout.row.parameters)


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({}, (1, 8, 1)),
        ({"replica": 2}, (2, 4, 1)),
        ({"replica": -1, "fsdp": 2}, (4, 2, 1)),
        ({"replica": 4, "fsdp": 2}, (4, 2, 1)),
        ({"replica": 8, "fsdp": -1}, (8, 1, 1)),
    ],
)
def test_mesh_multiplies_to_the_devices_and_minus_one_takes_the_rest(axes, expected):
    sizes = mesh_shape(ShardingConfig(strategy="fsdp", **axes), 8)
    assert sizes == dict(zip(("replica", "fsdp", "tensor"), expected, strict=True))


def test_abstract_mesh_has_the_sizes_of_the_recipe():
    layout = layout_of("fsdp_tp", 64, replica=2, tensor=4)
    assert dict(layout.mesh.shape) == {"replica": 2, "fsdp": 8, "tensor": 4}
    assert layout.batch_shards == 16


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"replica": 3}, "replica=3, fsdp=-1, tensor=1: does not make a mesh of 8 devices"),
        ({"fsdp": 4}, "replica=1, fsdp=4, tensor=1: does not make a mesh of 8 devices"),
        ({"replica": 16}, "replica=16, fsdp=-1, tensor=1: does not make a mesh of 8 devices"),
        ({"replica": -1}, "replica=-1, fsdp=-1, tensor=1: only one axis may be -1"),
        ({"replica": 0}, "replica=0, fsdp=-1, tensor=1: sizes are positive, or -1 for the rest"),
        ({"fsdp": -2}, "replica=1, fsdp=-2, tensor=1: sizes are positive, or -1 for the rest"),
    ],
)
def test_sizes_that_make_no_mesh_are_refused(axes, expected):
    with pytest.raises(UserError) as caught:
        mesh_shape(ShardingConfig(strategy="fsdp", **axes), 8)
    assert str(caught.value) == f"sharding: {expected}"


@pytest.mark.parametrize(("strategy", "axis"), [("hsdp", "replica"), ("fsdp_tp", "tensor")])
def test_strategy_without_its_axis_is_refused(strategy, axis):
    with pytest.raises(UserError, match=f"{strategy} needs sharding.{axis} of at least 2, not 1"):
        mesh_shape(ShardingConfig(strategy=strategy), 8)


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "fsdp", "hsdp"])
def test_tensor_axis_is_refused_by_strategies_that_leave_it_idle(strategy):
    config = ShardingConfig(strategy=strategy, replica=2, tensor=2)
    with pytest.raises(UserError, match=r"tensor axis, which has size 2: set sharding.tensor=1"):
        mesh_shape(config, 8)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_on_one_device(strategy):
    assert set(mesh_shape(ShardingConfig(strategy=strategy), 1).values()) == {1}


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (("layers", "width", "heads", "head_dim"), P(None, "fsdp", "tensor", None)),
        (("vocab", "table_width"), P(("fsdp", "tensor"), None)),
        (("gain",), P(None)),
        ((None, "ffn"), P(None, "tensor")),
        ((), P()),
    ],
)
def test_partition_looks_each_axis_up_in_the_rule(axes, expected):
    assert partition(axes, ROWS_TENSOR) == expected
    assert partition(axes, WHOLE) == P(*[None] * len(axes))


@pytest.mark.parametrize(
    ("changes", "axes", "expected"),
    [
        (
            {"width": 36},
            {},
            "layers.attention.key: axis 'width' of size 36 does not divide over fsdp=8: "
            "set sharding.fsdp to a divisor of 36",
        ),
        (
            {"vocab_size": 300, "vocab_multiple": 4},
            {},
            "embed.table: axis 'vocab' of size 300 does not divide over fsdp=8: "
            "set model.vocab_multiple to a multiple of it",
        ),
        (
            {"vocab_size": 300, "vocab_multiple": 4},
            {"tensor": 2},
            "embed.table: axis 'vocab' of size 300 does not divide over fsdp\u00d7tensor=8: "
            "set model.vocab_multiple to a multiple of it",
        ),
        (
            {"kv_heads": 1},
            {"tensor": 2},
            "layers.attention.key: axis 'kv_heads' of size 1 does not divide over tensor=2: "
            "set sharding.tensor to a divisor of 1",
        ),
        (
            {"ffn": 65},
            {"tensor": 2},
            "layers.mlp.down: axis 'ffn' of size 65 does not divide over tensor=2: "
            "set sharding.tensor to a divisor of 65",
        ),
    ],
)
def test_dimension_that_does_not_divide_is_named_with_the_fix(changes, axes, expected):
    layout = layout_of("fsdp_tp" if axes else "fsdp", **axes)
    with pytest.raises(UserError) as caught:
        place(layout, model_on(layout, **changes))
    assert str(caught.value) == expected


def test_two_axes_on_one_mesh_axis_are_a_fault_of_the_table():
    layout = layout_of("fsdp")
    specs = {"square": WeightSpec(("width", "vocab"), "hidden", ("width",), ("vocab",))}
    shapes = {"square": jax.ShapeDtypeStruct((16, 16), "float32")}
    with pytest.raises(ValueError, match="'width' and 'vocab' are both on mesh axis 'fsdp'") as e:
        tree_shardings(layout, specs, shapes, layout.row.parameters)
    assert not isinstance(e.value, UserError)
    assert str(e.value).startswith("square: ")


def test_vocabulary_tables_are_never_split_over_their_width():
    for strategy in STRATEGIES:
        layout = layout_of(strategy)
        model = model_on(layout, tied=False)
        for rule in (layout.row.parameters, layout.row.gradients, layout.row.optimizer):
            placed = tree_shardings(layout, model.specs, model.abstract, rule)
            assert placed["embed"]["table"].spec[1] is None
            assert placed["head"]["table"].spec[1] is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bytes_per_device_are_the_whole_over_the_shards(strategy):
    """Parameters of the small model: gains are whole, all else is split as the table says."""
    layout = layout_of(strategy)
    model = model_on(layout)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        model.abstract,
        place(layout, model),
    )
    L, D, F, H, K, N = 2, 32, 64, 4, 2, 8
    gains = 2 * L * D + D
    matrices = L * (2 * D * H * N + 2 * D * K * N + 3 * D * F) + 512 * D
    shards = {"fsdp": 8, "hsdp": 4, "fsdp_tp": 8}.get(strategy, 1)
    assert bytes_per_device(abstract) == 4 * (gains + matrices // shards)


def test_placement_of_teuken_7b_is_that_of_the_golden():
    regenerate.check(regenerate.shardings())
