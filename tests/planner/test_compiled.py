"""The compiler for GPUs as an oracle. Needs jax[cuda13]; needs no GPU."""

import importlib.util

import pytest

from teukenjax.errors import UserError
from teukenjax.hardware import catalogue, named
from teukenjax.planner.compiled import compile_step, devices_of, target_text
from teukenjax.planner.memory import memory
from teukenjax.planner.plans import NAMES, Plans
from teukenjax.planner.remat import POLICIES
from teukenjax.planner.step_time import step_time, wire_bytes

HAS_COMPILER = importlib.util.find_spec("jax_cuda13_plugin") is not None
ONCE = {"strategy": "fsdp", "fsdp": 8, "remat": "save_attention", "once": True}
# hardware, layers, and a plan: the model on H100s, a part of it on H200s.
PLANS = {
    "fsdp": ("h100-sxm", 32, {"fsdp": 8, "remat": "save_attention"}),
    "gathered once": ("h100-sxm", 32, ONCE),
    "hsdp": ("h100-sxm", 32, {"replica": 2, "fsdp": 4, "remat": "full"}),
    "fsdp_tp": ("h100-sxm", 32, {"fsdp": 4, "tensor": 2, "remat": "save_projections"}),
    "hsdp of replicas": ("h200-sxm", 8, {"strategy": "hsdp", "replica": 2, "micro_batch": 4}),
    "zero2": ("h200-sxm", 8, {"fsdp": 2}),
    "one micro-batch": ("h200-sxm", 8, {"strategy": "fsdp", "fsdp": 2, "accumulation": 1}),
    "tensor": ("h200-sxm", 8, {"strategy": "fsdp_tp", "tensor": 2, "remat": "full"}),
    "tensor of four": ("h200-sxm", 8, {"strategy": "fsdp_tp", "fsdp": 4, "tensor": 2}),
}


@pytest.mark.parametrize("name", catalogue())
def test_every_target_is_described_with_its_own_numbers(name):
    text = target_text(named(name))
    target = named(name).target
    assert f"core_count: {target.processors}\n" in text
    assert f"device_memory_size: {target.memory_bytes}\n" in text
    assert text.count("{") == text.count("}")


@pytest.mark.skipif(HAS_COMPILER, reason="jax[cuda13] is installed")
def test_a_missing_compiler_says_how_to_install_it():
    with pytest.raises(UserError, match="uv sync --extra cuda13"):
        devices_of(named("h100-sxm"), 8)


@pytest.mark.compiler
@pytest.mark.parametrize("name", PLANS)
def test_memory_flops_and_bytes_are_those_of_the_compiled_step(name, question_of):
    hardware, layers, choices = PLANS[name]
    choices = {"strategy": name, "micro_batch": 1 if layers == 32 else 2, **choices}
    choices = {"remat": "save_attention", "accumulation": 2, **choices}
    plan = Plans.single(sequence=4096, **choices)
    question = question_of(hardware, plan, layers)
    setting, recipe = question.setting, question.recipe
    made = compile_step(recipe, question.hw, question.devices)
    held = memory(plan, setting, head_chunk=recipe.compute.head_chunk)
    needed = held.counted[0]
    assert needed == pytest.approx(made.memory, rel=0.03)
    assert step_time(plan, setting).hardware_flops[0] == pytest.approx(made.flops, rel=1e-3)
    sent = sum(found.sent for found in made.collectives)
    assert wire_bytes(plan, setting)[0] == pytest.approx(sent, rel=1e-3)


@pytest.fixture
def question_of(teuken):
    """A function from hardware, one plan and layers to the question that has this plan alone."""

    def ask(hardware: str, plan: Plans, layers: int):
        return teuken(
            hardware,
            int(plan.devices[0]),
            f"model.layers={layers}",
            # What it holds of gradients and updates while it observes them is not modelled; it is
            # the peak of "tensor", 5 % more.
            "telemetry.every=null",
            f"sharding.strategy={NAMES[plan.strategy[0]]}",
            f"sharding.replica={plan.replica[0]}",
            f"sharding.tensor={plan.tensor[0]}",
            f"batch.sequences={int((plan.tokens_per_step / plan.sequence)[0])}",
            f"batch.accumulation={plan.accumulation[0]}",
            f"compute.remat={POLICIES[plan.remat[0]]}",
            f"compute.gather={'step' if plan.once[0] else 'layer'}",
        )

    return ask
