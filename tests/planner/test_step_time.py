"""Time: limits in which the model has closed forms."""

import dataclasses

import numpy as np
import pytest

from teukenjax.optim.coefficients import steps_of
from teukenjax.planner.bounds import bounds
from teukenjax.planner.fabric import Group
from teukenjax.planner.optimizer import Optimizer
from teukenjax.planner.plans import Plans
from teukenjax.planner.predict import doubled, predict
from teukenjax.planner.step_time import attention_rate, step_time, wire_bytes
from teukenjax.recipe import load

COLUMNS = {"micro_batch": 2, "accumulation": 4, "sequence": 4096}


def time_of(setting, **columns):
    return step_time(Plans.single(**(COLUMNS | columns)), setting)


def test_one_device_does_not_communicate(teuken):
    time = time_of(teuken().setting)
    assert time.fast[0] == time.network[0] == time.exposed[0] == time.latency[0] == 0


def test_a_step_is_the_sum_of_its_parts(teuken):
    time = time_of(teuken().setting, fsdp=64)
    parts = (time.products, time.attention, time.passes, time.exposed, time.latency)
    assert time.total[0] == pytest.approx(sum(part[0] for part in parts) + time.optimizer[0])


def test_products_count_six_flops_a_weight_and_what_runs_again(teuken):
    setting, tokens = teuken().setting, 8192
    none = time_of(setting, remat="save_projections", accumulation=1)
    multiplying = setting.shape.layer_weights + setting.shape.vocab * setting.shape.width
    rate = setting.software.matmul * setting.hw.matmul_tflops * 1e12
    assert none.products[0] == pytest.approx(6 * multiplying * tokens / rate)
    full = time_of(setting, remat="full", accumulation=1)
    assert full.products[0] > none.products[0]


def test_no_prediction_exceeds_the_best_measured_product(teuken):
    setting = teuken().setting
    plans = Plans.single(remat="none", micro_batch=64, sequence=4096)
    found = predict(plans, setting, head_chunk=1024)
    assert found.hfu[0] < setting.hw.matmul_tflops / setting.hw.bf16_tflops


def test_every_micro_step_gathers_again(teuken):
    setting = teuken().setting
    one, four = (time_of(setting, fsdp=64, accumulation=a).fast[0] for a in (1, 4))
    assert four == pytest.approx(4 * one)


def test_a_group_inside_a_node_uses_no_network(teuken):
    hw = teuken().hw
    inside = Group.fsdp(Plans.single(fsdp=8), hw)
    across = Group.fsdp(Plans.single(fsdp=64), hw)
    assert inside.network_s_per_byte[0] == 0
    assert inside.fast_s_per_byte[0] == pytest.approx(7 / 8 / (0.8 * 450e9))
    assert across.network_s_per_byte[0] == pytest.approx(7 / 8 / (0.9 * 400e9))


def test_replicas_of_one_node_share_its_network(teuken):
    # Eight groups, one a device, cross each node's cards at the same time.
    group = Group.replica(Plans.single(strategy="hsdp", replica=8, fsdp=8), teuken().hw)
    assert group.fast_s_per_byte[0] == 0
    assert group.network_s_per_byte[0] == pytest.approx(8 * 7 / 8 / (0.9 * 400e9))


def test_volumes_of_the_strategies_stand_in_their_known_ratios(teuken):
    # Without tables and regathers: DDP 2·4, ZeRO-2 4 and 4 of updates, FSDP 2 + 2 + 4 bytes per
    # parameter; tokens that travel, 10 bytes for each of the group's numbers.
    setting = teuken().setting
    shape = dataclasses.replace(setting.shape, vocab=0)
    setting = dataclasses.replace(setting, shape=shape)
    sent = {
        strategy: wire_bytes(
            Plans.single(strategy=strategy, remat="none", fsdp=64, sequence=4096), setting
        )[0]
        for strategy in ("ddp", "zero2", "fsdp")
    }
    unit = shape.layer_weights * 63 / 64
    states = 10 * 64 * 4096 * shape.width * 63 / 64
    assert sent == pytest.approx({"ddp": 8 * unit, "zero2": 8 * unit, "fsdp": 8 * unit + states})


@pytest.mark.parametrize(("remat", "sums"), [("none", 4), ("save_attention", 4), ("full", 5)])
def test_the_tensor_axis_sums_states_once_more_only_where_attention_runs_again(remat, sums, teuken):
    setting = teuken().setting
    plans = Plans.single(strategy="fsdp_tp", tensor=2, remat=remat, sequence=4096)
    states = 2 * 4096 * setting.shape.width  # bytes of [E, D]; on two devices a ring sends it once
    # Beside the layers: the embedding's, there and back, and the head's in fp32.
    assert wire_bytes(plans, setting)[0] == (sums * setting.shape.layers + 1 + 1 + 2) * states


def test_the_slower_of_network_and_computing_sets_the_step(teuken):
    question = teuken("h100-sxm", 64)
    slow = dataclasses.replace(
        question.setting, hw=doubled(question.hw, ("network_gb_per_s",), 1e-3)
    )
    time = step_time(Plans.single(fsdp=64, **COLUMNS), slow)
    assert time.total[0] == pytest.approx(
        time.network[0] + time.latency[0] + time.optimizer[0], rel=1e-6
    )
    found = predict(Plans.single(fsdp=64, **COLUMNS), slow, head_chunk=1024)
    assert found.binding()[0] == "inter-node"


def test_attention_is_limited_by_processors_when_its_kernel_is_old(teuken):
    setting = teuken().setting
    old = setting.software.model_copy(update={"attention_flops_per_cycle": 700.0})
    rate = attention_rate(setting.hw, old)
    assert rate == pytest.approx(700 * 132 * 1.98e9)
    assert rate < attention_rate(setting.hw, setting.software)


def test_newton_schulz_costs_what_its_docstring_says():
    scion = Optimizer.of(
        load("configs/recipes/teuken-7b.yaml", ["optimizer={name: scion}"]).optimizer
    )
    gram = dataclasses.replace(scion, gram=True)
    m, r = 4096, 13_440 / 4096
    assert scion.iterations == len(steps_of("kj")) == 5
    assert scion.of_matrix(m, 13_440) == pytest.approx((20 * r + 10) * m**3)
    assert gram.of_matrix(m, 13_440) == pytest.approx((8 * r + 28) * m**3)
    assert gram.of_matrix(m, m) == scion.of_matrix(m, m)  # gram is not taken near square


def test_more_devices_than_matrices_do_not_orthogonalise_faster(teuken):
    setting = teuken("h100-sxm", 64, "optimizer={name: scion}").setting
    flops = [setting.optimizer.flops(Plans.single(fsdp=n), setting.shape)[0] for n in (1, 96, 512)]
    assert flops[0] > 80 * flops[1]
    assert flops[1] == flops[2]


def test_bounds_are_above_the_prediction(teuken):
    found = predict(Plans.single(fsdp=64, **COLUMNS), teuken().setting, head_chunk=1024)
    limit = bounds(found, 0)
    assert limit.compute > found.tokens_per_s[0]
    assert limit.communication > found.tokens_per_s[0]
    assert limit.tokens_max > COLUMNS["micro_batch"] * COLUMNS["sequence"]
    assert limit.devices_min <= 64


def test_doubling_a_resource_never_slows_a_step(teuken):
    found = predict(Plans.single(fsdp=64, **COLUMNS), teuken().setting, head_chunk=1024)
    gains = np.array([gain[0] for gain in found.roofs().values()])
    assert (gains >= 0).all()
    assert gains.max() > 0.3
