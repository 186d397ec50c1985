"""Remat policies by name: what a layer's backward pass finds, and what it computes again.

A layer names a few of its activations. A policy saves some of them on the device, moves some to
the host's memory until they are needed, and computes the rest again from the layer's input.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from teukenjax.kernels.attention.api import PALLAS_SAVED

# cuDNN's backward needs the softmax statistics, which are an output of its forward and cannot be
# named from outside. So its outputs are kept as such, the attention's among them.
CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"


@dataclass(frozen=True)
class Policy:
    """Names of activations: kept on the device, and kept in the host's memory."""

    saved: tuple[str, ...] = ()
    offloaded: tuple[str, ...] = ()


POLICIES = {
    "full": Policy(),
    "save_attention": Policy(("qkv", "attention", "middle")),
    "save_projections": Policy(("qkv", "attention", "middle", "gate_up")),
    "offload_projections": Policy(("qkv", "attention", "middle"), ("gate_up",)),
    "offload_attention": Policy(("attention",), ("qkv", "middle")),
}


def rematerialised(layer: Callable, policy: str, *, attention: str, scanned: bool) -> Callable:
    """The layer with its remat policy; "none" leaves it as it is.

    Args:
      layer: a pure function.
      policy: a key of ``POLICIES``, or "none".
      attention: the implementation that the layer runs.
      scanned: it will be the body of a scan, which keeps XLA from merging the two passes;
        otherwise barriers do.
    """
    if policy == "none":
        return layer
    chosen = POLICIES[policy]
    if attention == "pallas":  # which names its output itself, with the statistics
        chosen = Policy(*(_renamed(names) for names in (chosen.saved, chosen.offloaded)))
    keep = _keeps_cudnn if attention == "cudnn" and "attention" in chosen.saved else _by_name
    return jax.checkpoint(layer, policy=keep(chosen), prevent_cse=not scanned)


def _renamed(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(PALLAS_SAVED if name == "attention" else name for name in names)


def _by_name(policy: Policy) -> Callable:
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=policy.saved,
        names_which_can_be_offloaded=policy.offloaded,
        offload_src="device",
        offload_dst="pinned_host",
    )


def _keeps_cudnn(policy: Policy) -> Callable:
    named = tuple(name for name in policy.saved if name != "attention")
    by_name = _by_name(Policy(named, policy.offloaded))

    def keep(primitive, *avals, **params):
        return primitive.name == CUDNN_FORWARD or by_name(primitive, *avals, **params)

    return keep
