"""Reading compiled programs: notations by example, counts by a program whose counts are known."""

import pytest

from tests.tiny import MESHES
from teukenjax.planner.plans import Plans
from teukenjax.planner.program import Collective, collectives, product_flops
from teukenjax.planner.step_time import step_time
from teukenjax.sharding import make_layout
from teukenjax.train.batch import abstract_batch
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step

WRAPPED = """HloModule step
%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {{
  %p = (s32[], bf16[8,4]) parameter(0)
  {line}
}}
ENTRY %main (a: bf16[8,4]) -> bf16[8,4] {{
  %a = bf16[8,4]{{1,0}} parameter(0)
  %w = (s32[], bf16[8,4]) while(%a), condition=%cond, body=%body, backend_config={{"known_trip_count":{{"n":"6"}}}}
}}
"""  # noqa: E501
GROUPS = {
    "replica_groups={{0,2},{1,3}}": (0, 2),
    "replica_groups=[2,4]<=[8]": (0, 1, 2, 3),
    "replica_groups=[4,2]<=[2,4]T(1,0)": (0, 4),
    "replica_groups=mesh['replica'=2,'fsdp'=4,'tensor'=1] {'fsdp'}": (0, 1, 2, 3),
    "replica_groups=mesh['replica'=2,'fsdp'=4,'tensor'=1] {'replica'}": (0, 4),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_replica_groups_are_read_in_every_notation(groups):
    line = f"%c = f32[8,4]{{1,0}} all-reduce(%p), {groups}, to_apply=%add"
    (found,) = collectives(WRAPPED.format(line=line))
    assert found == Collective("all-reduce", 8 * 4 * 4, GROUPS[groups], 6)


@pytest.mark.parametrize(
    ("line", "kind", "size"),
    [
        ("bf16[32,4]{1,0} all-gather(%p), {g}", "all-gather", 256),
        ("((bf16[8,4]), bf16[32,4]) all-gather-start(%p), {g}", "all-gather", 256),
        ("f32[2,4]{1,0} reduce-scatter(%p), {g}", "reduce-scatter", 128),
        ("((f32[8,4]), f32[2,4]) reduce-scatter-start(%p), {g}", "reduce-scatter", 128),
        ("((f32[8]), f32[8]) all-reduce-start(%p), {g}", "all-reduce", 32),
    ],
)
def test_sizes_are_of_the_whole_array(line, kind, size):
    groups = "replica_groups=[1,4]<=[4]"
    (found,) = collectives(WRAPPED.format(line="%c = " + line.replace("{g}", groups)))
    assert (found.kind, found.bytes, found.count) == (kind, size, 6)


def test_a_ring_sends_an_all_reduce_twice_and_an_all_to_all_once_in_parts():
    members = tuple(range(4))
    assert Collective("all-gather", 100, members, 3).sent == pytest.approx(225)
    assert Collective("all-reduce", 100, members, 3).sent == pytest.approx(450)
    assert Collective("all-to-all", 100, members, 4).sent == pytest.approx(75)


def test_attention_counts_half_of_a_causal_square():
    operands = "operand_layout_constraints={bf16[2,64,4,8], bf16[2,64,2,8], bf16[2,64,2,8]}"
    line = '%a = bf16[2] custom-call(%p), custom_call_target="__cudnn$fmhaSoftmax{end}", '
    line += operands + ', backend_config={"mask_type": "CAUSAL"}'
    forward, backward = (
        product_flops(WRAPPED.format(line=line.replace("{end}", end))) for end in ("", "Backward")
    )
    assert forward == 6 * 4 * 2 * 4 * 64 * 64 * 8 / 2
    assert backward == 2.5 * forward


def test_the_heads_kernel_counts_as_its_product_and_other_kernels_do_not():
    line = "%k = (f32[2,64], bf16[64,256]) custom-call(%p), "
    line += 'custom_call_target="mosaic_gpu_v2", operand_layout_constraints='
    head = line + "{s32[1]{0}, bf16[1,64,16]{2,1,0}, bf16[1,256,16]{2,1,0}}, api_version=TYPED"
    norm = line + "{bf16[64,16]{1,0}, f32[16]{0}}, api_version=TYPED"
    assert product_flops(WRAPPED.format(line=head)) == 6 * 2 * 64 * 256 * 16
    assert product_flops(WRAPPED.format(line=norm)) == 0


def compiled_text(recipe) -> str:
    """Our step on eight fake devices, by the CPU's compiler."""
    program = Program(recipe, make_layout(recipe.sharding), platform="cpu")
    batch = abstract_batch(recipe, program.layout)
    return make_train_step(program).lower(program.abstract_state, batch).compile().as_text()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_flops_of_our_step_are_those_of_the_model(strategy, small, setting_of):
    recipe = small(
        sharding={"strategy": strategy, **MESHES[strategy]},
        compute={"dtype": "float32", "remat": "none", "head_chunk": 64},
    )
    plan = Plans.single(
        strategy=strategy, remat="none", fsdp=8, micro_batch=2, accumulation=2, sequence=32
    )
    setting = setting_of(recipe)
    model, tokens = setting.shape, 2 * 2 * 32
    flash = 7 * model.layers * model.heads * model.head_dim * 32 * tokens
    square = 12 * model.layers * model.heads * model.head_dim * 32 * tokens  # XLA masks, not skips
    predicted = step_time(plan, setting).hardware_flops[0] - flash + square
    assert product_flops(compiled_text(recipe)) == pytest.approx(predicted, rel=0.01)
