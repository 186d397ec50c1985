"""Profiles: measured on fake devices at tiny sizes, written, read, applied."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from teukenjax.hardware import named
from teukenjax.planner import calibrate, program
from teukenjax.planner.collective_times import KINDS, repeated
from teukenjax.planner.profile import (
    COPY_SHARE,
    Profile,
    Timing,
    calibrated,
    profile_of,
)
from teukenjax.planner.search import search
from teukenjax.planner.software import FAST_SHARE, software
from teukenjax.recipe import read_yaml, validate

H100 = {
    "device_kind": "NVIDIA H100 80GB HBM3",
    "devices": 2,
    "date": "2026-11-24",
    "versions": {"jax": "0.11.2"},
    "product_tflops": 710.0,
    "attention_tflops": 437.0,
    "copy_gb_per_s": 3000.0,
}


@pytest.fixture(scope="module")
def measured():
    return calibrate.calibrate(
        products=((64, 32, 32),),
        heads=(1, 16, 4, 2, 8),
        copy_bytes=2**16,
        messages=(2**12, 2**14),
        repeats=2,
    )


def test_every_rate_is_measured_and_every_collective_at_every_size(measured):
    assert measured.devices == 8
    kinds = [(timing.kind, timing.bytes) for timing in measured.collectives]
    assert kinds == [(k, n) for k in program.KINDS[:4] for n in (2**12, 2**14)]
    assert measured.gather_gb_per_s > 0


@pytest.mark.parametrize("name", KINDS)
def test_runs_of_a_collective_are_one_program_that_runs_it_so_often(name):
    kind = KINDS[name]
    counted = jax.jit(
        jax.shard_map(
            functools.partial(repeated, kind, 5),
            mesh=jax.make_mesh((8,), ("all",), (AxisType.Auto,)),
            in_specs=kind.before,
            out_specs=kind.after,
            check_vma=False,
        )
    )
    text = counted.lower(jnp.zeros(1024, jnp.bfloat16)).compile().as_text()
    found = program.collectives(text)
    assert {(c.kind, c.count) for c in found} == {(name, 1), (name, 4)}


def test_a_profile_is_read_back_as_written(measured, tmp_path):
    out = tmp_path / "profile.yaml"
    calibrate.write(measured, out)
    assert validate(Profile, read_yaml(out), str(out)) == measured


def test_a_machine_like_the_reference_changes_nothing():
    hw, constants = named("h100-sxm"), software("teukenjax")
    profile = Profile(
        **H100
        | {
            "product_tflops": hw.matmul_tflops,
            "attention_tflops": constants.attention * hw.matmul_tflops,
            "copy_gb_per_s": COPY_SHARE * hw.memory_gb_per_s,
        },
        collectives=(Timing(kind="all-gather", bytes=2**30, seconds=2**29 / (FAST_SHARE * 450e9)),),
    )
    same, shares = calibrated(hw, constants, profile)
    assert same.matmul_tflops == pytest.approx(hw.matmul_tflops)
    assert same.memory_gb_per_s == pytest.approx(hw.memory_gb_per_s)
    assert same.node.fast_gb_per_s == pytest.approx(450)
    assert shares.attention == pytest.approx(constants.attention)


def test_a_slower_machine_is_predicted_slower(teuken):
    question = teuken("h100-sxm", 8)
    profile = Profile(**H100 | {"product_tflops": 400.0})
    hw, constants = calibrated(question.hw, question.constants, profile)
    slower = search(question.on(hw=hw, constants=constants))
    assert slower.tokens_per_s < 0.8 * search(question).tokens_per_s


def test_a_profile_is_found_by_its_device(monkeypatch):
    from teukenjax.planner import profile as module

    one, two = (Profile(**H100 | {"devices": n}) for n in (1, 2))
    monkeypatch.setattr(module, "profiles", lambda: (one, two))
    assert profile_of(named("h100-sxm")) == two
    assert profile_of(named("b200")) is None
