"""The compiler for GPUs as an oracle. Needs jax[cuda13]; needs no GPU."""

import importlib.util

import pytest

from teukenjax.errors import UserError
from teukenjax.hardware import catalogue, named
from teukenjax.planner.compiled import compile_step, devices_of, target_text
from teukenjax.planner.memory import memory
from teukenjax.planner.plans import Plans
from teukenjax.planner.step_time import step_time, wire_bytes
from teukenjax.recipe import load

HAS_COMPILER = importlib.util.find_spec("jax_cuda13_plugin") is not None
PLANS = {
    "fsdp": {"fsdp": 8, "remat": "save_attention"},
    "gathered once": {"strategy": "fsdp", "fsdp": 8, "remat": "save_attention", "once": True},
    "hsdp": {"replica": 2, "fsdp": 4, "remat": "full"},
    "fsdp_tp": {"fsdp": 4, "tensor": 2, "remat": "save_projections"},
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
def test_memory_flops_and_bytes_are_those_of_the_compiled_step(name, setting_of):
    choices = {"strategy": name} | PLANS[name]
    plan = Plans.single(micro_batch=1, accumulation=2, sequence=4096, **choices)
    mesh = {axis: choices.get(axis, 1) for axis in ("replica", "tensor")}
    sequences = 2 * int(plan.replica[0] * plan.fsdp[0])
    recipe = load(
        "configs/recipes/teuken-7b.yaml",
        [
            f"sharding.strategy={choices['strategy']}",
            *(f"sharding.{axis}={size}" for axis, size in mesh.items()),
            f"batch.sequences={sequences}",
            "batch.accumulation=2",
            f"compute.remat={choices['remat']}",
            f"compute.gather={'step' if choices.get('once') else 'layer'}",
        ],
    )
    made, setting = compile_step(recipe, named("h100-sxm"), 8), setting_of(recipe)
    held = memory(plan, setting, head_chunk=recipe.compute.head_chunk)
    needed = (held.total - held.reserve)[0]
    assert needed == pytest.approx(made.memory, rel=0.04)
    assert step_time(plan, setting).hardware_flops[0] == pytest.approx(made.flops, rel=1e-3)
    sent = sum(found.sent for found in made.collectives)
    assert wire_bytes(plan, setting)[0] == pytest.approx(sent, rel=0.01)
