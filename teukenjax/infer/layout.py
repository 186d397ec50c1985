"""Which mesh a model decodes on."""

import math

import jax

from teukenjax.model import padded_vocab
from teukenjax.recipe import ModelConfig, ShardingConfig
from teukenjax.sharding import Layout, make_layout


def decoding_layout(config: ModelConfig, devices: list[jax.Device]) -> Layout:
    """Heads, FFN and vocabulary split over as many devices as the KV heads allow, for each token
    to read the fewest weights; the rest split the batch, and the rows of weights as ``fsdp`` does.

    Devices that do not divide the model are left out.
    """
    count = len(devices)
    while config.width % count or padded_vocab(config) % count:
        count -= 1
    tensor = math.gcd(config.kv_heads, config.ffn, count)
    strategy = "fsdp_tp" if tensor > 1 else "fsdp"
    sharding = ShardingConfig(strategy=strategy, tensor=tensor)
    return make_layout(sharding, devices[:count])
