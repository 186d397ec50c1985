"""One flipped bit in one copy of one weight is found, and its device named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import eight_devices, model_of, place, random_params, tiny_config

from teukenjax.train.replicas import ReplicaCheck, describe

CONFIG = tiny_config()


def flipped(array: jax.Array, device: jax.Device) -> jax.Array:
    """The array with the lowest bit of one number wrong, on one device."""
    shards = []
    for shard in array.addressable_shards:
        data = np.array(shard.data)
        if shard.device == device:
            data.view(np.uint32).flat[3] ^= 1
        shards.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


@pytest.mark.parametrize("strategy", ["ddp", "hsdp"])
def test_a_flipped_bit_is_found_and_named(strategy):
    model = model_of(CONFIG, eight_devices(strategy))
    params = place(model, random_params(CONFIG))
    check = ReplicaCheck(model.layout.mesh, abstract(params))
    assert check(params) == []
    device = jax.devices()[5]
    gate = params["layers"]["attention"]["query"]
    params["layers"]["attention"]["query"] = flipped(gate, device)
    (found,) = check(params)
    # With two copies neither has a majority: both candidates are one of the pair.
    pair = strategy == "hsdp"
    assert found.device == device or (pair and found.others == 1)
    assert found.array == "layers.attention.query"
    assert found.others == (1 if pair else 7)
    assert f"cpu:{found.device.id} of process 0 holds another 'layers.attention.query'" in describe(
        found
    )


def abstract(params):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )


def test_signed_zeros_and_nans_are_compared_as_bits():
    layout = eight_devices("ddp")
    zeros = jax.device_put(jnp.array([0.0, jnp.nan, -0.0, 1.0]), layout.replicated())
    assert ReplicaCheck(layout.mesh, abstract({"x": zeros}))({"x": zeros}) == []
