"""Checkpoints: what is kept, what is read back, what damage looks like."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from teukenjax.checkpoint import Checkpoints, find
from teukenjax.errors import UserError
from teukenjax.recipe import CheckpointConfig

# Random, so that compression leaves the bytes of the array themselves to be damaged.
WEIGHTS = np.random.default_rng(0).normal(size=4096).astype(np.float32)


def state_on(spec: PartitionSpec, devices: int):
    mesh = jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices])
    values = {"params": {"w": WEIGHTS}, "step": np.int32(3)}
    shardings = {
        "params": {"w": NamedSharding(mesh, spec)},
        "step": NamedSharding(mesh, PartitionSpec()),
    }
    return jax.device_put(values, shardings)


def shapes(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def save(run, steps, **config):
    checkpoints = Checkpoints(run, CheckpointConfig(**config))
    for step in steps:
        checkpoints.save(step, state_on(PartitionSpec("x"), 8), {"step": step})
    checkpoints.close()
    return Checkpoints(run)


def test_the_last_and_every_kth_are_kept(tmp_path):
    checkpoints = save(tmp_path, range(1, 10), keep_last=2, keep_every=4)
    assert checkpoints.steps() == [4, 8, 9]
    assert checkpoints.latest() == 9
    checkpoints.close()


def test_state_is_restored_onto_another_mesh(tmp_path):
    checkpoints = save(tmp_path, [7])
    for spec, devices in ((PartitionSpec(), 1), (PartitionSpec("x"), 2), (PartitionSpec(), 8)):
        wanted = shapes(state_on(spec, devices))
        restored = checkpoints.restore(7, wanted)
        np.testing.assert_array_equal(restored["params"]["w"], WEIGHTS)
        assert restored["params"]["w"].sharding == wanted["params"]["w"].sharding
    assert checkpoints.about(7)["step"] == 7
    checkpoints.close()


def test_parameters_are_restored_alone(tmp_path):
    checkpoints = save(tmp_path, [7])
    params = checkpoints.restore_params(7, shapes(state_on(PartitionSpec("x"), 4))["params"])
    np.testing.assert_array_equal(params["w"], WEIGHTS)
    checkpoints.close()


@pytest.mark.parametrize("damage", ["truncated", "removed", "flipped"])
def test_damage_is_one_line_that_names_the_checkpoint(damage, tmp_path):
    save(tmp_path, [1, 2]).close()
    chunk = max(
        (
            f
            for f in (tmp_path / "checkpoints/2/state").rglob("*")
            if f.is_file() and f.parent.name == "d"
        ),
        key=lambda f: f.stat().st_size,
    )
    content = chunk.read_bytes()
    if damage == "removed":
        chunk.unlink()
    elif damage == "truncated":
        chunk.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        chunk.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(
        UserError, match=r"checkpoints/2: .*damaged.*remove it to go on from step 1"
    ) as e:
        checkpoints.restore(2, shapes(state_on(PartitionSpec("x"), 8)))
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"checkpoints/2: .*damaged"):
        checkpoints.restore_params(2, shapes(state_on(PartitionSpec("x"), 8))["params"])
    assert checkpoints.restore(1, shapes(state_on(PartitionSpec("x"), 8)))["step"] == 3
    checkpoints.close()


def test_a_process_lost_during_a_save_is_not_the_disks_fault(tmp_path, monkeypatch):
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    def fail():
        raise RuntimeError("the save failed") from lost

    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints._manager, "wait_until_finished", fail)
        with pytest.raises(jax.errors.JaxRuntimeError) as met:
            checkpoints.wait()
    assert met.value is lost
    checkpoints.close()


def test_find_takes_a_run_or_one_of_its_checkpoints(tmp_path):
    save(tmp_path, [3, 5]).close()
    (tmp_path / "recipe.yaml").write_text("")
    assert find(tmp_path) == (tmp_path, 5)
    assert find(tmp_path / "checkpoints" / "3") == (tmp_path, 3)
