"""Bytes: exact where arrays rest, in order where programs decide."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import MESHES

from teukenjax.planner.memory import PHASES, capacity, memory
from teukenjax.planner.plans import Plans
from teukenjax.planner.step_time import wire_bytes
from teukenjax.sharding import STRATEGIES
from teukenjax.train.plan import abstract_program, bytes_per_device


def plan_of(strategy: str, devices: int = 8, **columns) -> Plans:
    sizes = {"replica": 1, "tensor": 1, **MESHES[strategy]}
    sizes["fsdp"] = devices // (sizes["replica"] * sizes["tensor"])
    return Plans.single(strategy=strategy, **sizes, **{"sequence": 32} | columns)


@pytest.mark.parametrize("optimizer", ["adamw", "scion"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_rests_is_what_the_abstract_state_holds(strategy, optimizer, small, setting_of):
    recipe = small(
        optimizer={"name": optimizer}, sharding={"strategy": strategy, **MESHES[strategy]}
    )
    held = memory(plan_of(strategy), setting_of(recipe), head_chunk=16)
    state = abstract_program(recipe, 8).abstract_state
    params = bytes_per_device(state.params)
    shapes = {array.shape for array in jax.tree.leaves(state.params)}
    # Beside moments the optimizer holds counters and the vectors by which it observes norms: a few
    # rows and columns of each matrix, not modelled.
    alike = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape in shapes]
    moments = bytes_per_device(alike)
    gains = 4 * 5 * 32  # five norms of width 32, whole on every device
    assert held.parameters[0] == params - gains
    copies = {"adamw": 2, "scion": 1}[optimizer]
    assert held.moments[0] == moments - copies * gains
    assert bytes_per_device(state.opt_state) - moments < 8192


def test_the_peak_is_that_of_the_largest_phase(teuken):
    question = teuken()
    plans = Plans.single(remat="none", fsdp=64, micro_batch=2, accumulation=4, sequence=4096)
    held = memory(plans, question.setting, head_chunk=1024)
    assert held.temporary[0] == max(held.of_phase(phase)[0] for phase in PHASES)
    assert held.total[0] == pytest.approx(sum(held.split(0).values()))


def test_kept_activations_grow_with_tokens_and_shrink_with_remat(teuken):
    setting = teuken().setting
    columns = {"fsdp": 8, "sequence": 4096}
    one = memory(Plans.single(remat="none", **columns), setting, head_chunk=1024)
    two = memory(Plans.single(remat="none", micro_batch=2, **columns), setting, head_chunk=1024)
    full = memory(Plans.single(remat="full", **columns), setting, head_chunk=1024)
    assert two.kept[0] == 2 * one.kept[0]
    assert full.kept[0] < one.kept[0] / 10


def test_light_scion_saves_one_sum(teuken):
    setting = teuken("h100-sxm", 64, "optimizer={name: scion}").setting
    columns = {"fsdp": 2, "accumulation": 4, "sequence": 4096, "micro_batch": 1}
    plain, light = (
        memory(Plans.single(light=light, **columns), setting, head_chunk=1024)
        for light in (False, True)
    )
    # Gradients are added where their sum is, and light Scion's sum is its momentum.
    assert plain.gradients[0] == pytest.approx(4 * setting.shape.parameters / 2)
    assert light.gradients[0] == 0


def test_weights_gathered_once_are_held_whole_and_travel_once(teuken):
    setting = teuken("h100-sxm", 64, "optimizer={name: scion}").setting
    columns = {"fsdp": 8, "accumulation": 4, "sequence": 4096, "micro_batch": 1}
    by_layer, once = (Plans.single(once=once, **columns) for once in (False, True))
    held = [memory(plan, setting, head_chunk=1024) for plan in (by_layer, once)]
    assert held[1].copies[0] == 2 * setting.shape.layer_weights
    assert held[1].total[0] > held[0].total[0]
    saved = wire_bytes(by_layer, setting)[0] - wire_bytes(once, setting)[0]
    # The gathers of four micro-batches (full remat has a third, in part) are one; 7/8 are sent.
    gathers = 2 + setting.software.regathers * by_layer.remats(setting.shape).weights[0]
    assert saved == pytest.approx((4 * gathers - 1) * 2 * setting.shape.layer_weights * 7 / 8)


def test_gradients_stand_twice_only_where_devices_add_their_sums(teuken):
    setting = teuken().setting
    phi = setting.shape.layer_weights
    own = {
        strategy: memory(plan_of(strategy, accumulation=2), setting, head_chunk=1024).own[0]
        for strategy in STRATEGIES
    }
    assert own == {
        "ddp": 4 * phi, "hsdp": phi, "zero1": 0, "zero2": 0, "fsdp": 0, "fsdp_tp": 0,
    }  # fmt: skip


def test_a_tied_tables_gradient_waits_for_the_embeddings_on_several_devices(teuken):
    setting = teuken().setting
    table = 4 * setting.shape.vocab * setting.shape.width
    held = {s: memory(plan_of(s), setting, head_chunk=1024) for s in STRATEGIES}
    assert {name: found.waiting[0] / table for name, found in held.items()} == {
        "ddp": 0, "zero1": 1, "zero2": 1, "hsdp": 1 / 4, "fsdp": 1 / 8, "fsdp_tp": 1 / 8,
    }  # fmt: skip
    assert memory(Plans.single(), setting, head_chunk=1024).waiting[0] == 0


def test_light_scion_keeps_no_sum_but_where_devices_add_their_own_to_it(teuken):
    setting = teuken().setting
    layers = 4 * setting.shape.layer_weights
    light = {
        name: memory(plan_of(name, light=True, accumulation=2), setting, head_chunk=1024)
        for name in ("ddp", "fsdp", "hsdp")
    }
    assert light["fsdp"].gradients[0] == light["fsdp"].own[0] == 0
    # Found by compiling hsdp 2 × 1 and 2 × 4.
    whole = 4 * setting.shape.parameters
    assert [light[name].gradients[0] / whole for name in ("ddp", "hsdp")] == [1, 1 / 4]
    assert [light[name].own[0] / layers for name in ("ddp", "hsdp")] == [2, 2 / 4]


def test_a_single_micro_batch_is_added_to_nothing(teuken):
    setting = teuken().setting
    held = memory(plan_of("fsdp"), setting, head_chunk=1024)
    assert held.gradients[0] == 0
    assert held.made[0] == 4 * setting.shape.layer_weights / 8
    assert (
        held.of_phase("loss")[0]
        < memory(plan_of("fsdp", accumulation=2), setting, head_chunk=1024).of_phase("loss")[0]
    )


def test_an_untied_heads_gradient_waits_where_devices_hold_the_same_rows(teuken):
    setting = teuken("h100-sxm", 64, "model.tied=false").setting
    table = 4 * setting.shape.vocab * setting.shape.width
    held = {s: memory(plan_of(s), setting, head_chunk=1024) for s in STRATEGIES}
    assert {name: found.waiting[0] / table for name, found in held.items()} == {
        "ddp": 1, "zero1": 1, "zero2": 1, "hsdp": 1 / 4, "fsdp": 0, "fsdp_tp": 0,
    }  # fmt: skip
    # Found by compiling zero2: zeros for the embedding's gradient stand beside it.
    assert {name for name, found in held.items() if found.zeros[0]} == {"zero1", "zero2"}


def test_the_tensor_axis_splits_what_is_inside_a_layer_and_not_its_width(teuken):
    setting, shape = teuken().setting, teuken().setting.shape
    columns = {"micro_batch": 2, "sequence": 4096}
    one, two = (
        memory(Plans.single(tensor=t, **columns), setting, head_chunk=1024).layer[0] for t in (1, 2)
    )
    inner = 2 * 8192 * (4 * shape.ffn + shape.heads * shape.head_dim)
    assert one - two == inner / 2


def test_a_logit_takes_less_where_our_kernel_is_chosen(teuken):
    asked = "compute.kernels.cross_entropy=reference"
    reference = teuken("h100-sxm", 64, asked).setting.software
    assert (teuken().setting.software.logit_held_bytes, reference.logit_held_bytes) == (4, 6)


def test_tokens_that_travel_cost_memory_on_large_groups(teuken):
    # 512-way FSDP gathers every token's embedding: found by compiling it, 32 GiB.
    setting = teuken().setting
    plans = Plans.single(fsdp=512, micro_batch=2, sequence=4096, remat="save_attention")
    held = memory(plans, setting, head_chunk=1024)
    assert held.states[0] == 2 * 512 * 8192 * 4096
    assert "states" in held.split(0)


def test_a_whole_logit_matrix_takes_more_than_chunks(teuken):
    setting = teuken().setting
    plans = Plans.single(fsdp=8, micro_batch=4, sequence=4096)
    chunked, whole = (memory(plans, setting, head_chunk=chunk) for chunk in (1024, 0))
    logits = 4 * (16_384 - 1024) * setting.shape.vocab
    assert whole.logits[0] - chunked.logits[0] > 0.9 * logits


def test_many_plans_are_as_each_alone(teuken):
    setting = teuken().setting
    rows = [plan_of(s, 8, sequence=4096, micro_batch=m) for s in STRATEGIES for m in (1, 2)]
    fields = [field.name for field in dataclasses.fields(Plans)]
    joined = Plans(*(np.concatenate([getattr(row, name) for row in rows]) for name in fields))
    together = memory(joined, setting, head_chunk=1024).total
    alone = [memory(row, setting, head_chunk=1024).total[0] for row in rows]
    np.testing.assert_array_equal(together, alone)


def test_capacity_is_a_share_of_the_device(teuken):
    setting = teuken("a100-40").setting
    assert capacity(setting) == pytest.approx(0.95 * 42_331_013_120)
