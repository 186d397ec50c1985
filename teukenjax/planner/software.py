"""How much of the hardware two programs reach: ours, and PyTorch FSDP of 2023.

Hardware numbers are limits; a program reaches a share of them. The shares below are few, each is
of something physical, and none is per model, per GPU or per number of GPUs.
"""

import functools

from teukenjax.errors import UserError, nearest
from teukenjax.hardware import configs
from teukenjax.recipe import PositiveFloat, Section, read_yaml, validate

FAST_SHARE = 0.8  # of NVLink's rate that collectives reach; ml-engineering: about 80 %
NETWORK_SHARE = 0.9  # of the cards' rate; calculon's default between nodes
FAST_LATENCY_S = 10e-6  # of one collective inside a node; calculon
NETWORK_LATENCY_S = 20e-6  # more for each doubling of the nodes; calculon's, as a tree


class Software(Section):
    """A training program's shares and habits: a file of ``configs/software``.

    Attributes:
      matmul: of the best product measured on the device, what the step's products reach.
      orthogonalise: likewise the products of Newton–Schulz, with the passes between them.
      attention: likewise of fused causal attention, its half square counted, forward + backward.
      attention_flops_per_cycle: what a processor's attention kernel does in a clock; none for
        kernels that use the device's newest matrix unit.
      widths: memory passes over D 16-bit numbers per token and layer in a forward pass.
      whole_bytes: memory traffic per gathered parameter and micro-step: casts and gathers
        written and read, gradients written and reduced.
      shard_bytes: likewise per parameter that a device owns.
      logit_bytes: memory traffic per logit, forward and backward.
      logit_held_bytes: memory per logit while the loss is computed.
      exposed: of the time that collectives run inside a node, the part by which they slow the
        step: they take processors and memory bandwidth from the products, and not all is hidden.
        Waiting for the network takes neither.
      gradient_bytes: of each number when gradients are reduced.
      launches: collectives of a layer in a micro-step.
      table_stays: tokens travel to shards of the vocabulary table, instead of the table to them.
      regathers: each recomputed product gathers its weight once more.
      layer_ffns, layer_widths: a layer's backward working set, in F and in D 16-bit numbers a
        token; those of the width are not split over the tensor axis.
      reserve_gb: 10⁹ bytes that context, communication and fragmentation take.
      usable: share of the device's memory that the allocator may use.
    """

    matmul: PositiveFloat
    orthogonalise: PositiveFloat = 1.0
    attention: PositiveFloat
    attention_flops_per_cycle: PositiveFloat | None = None
    widths: PositiveFloat
    whole_bytes: float
    shard_bytes: float
    logit_bytes: float
    logit_held_bytes: float
    exposed: float
    gradient_bytes: int
    launches: int
    table_stays: bool
    regathers: bool
    layer_ffns: float
    layer_widths: float
    reserve_gb: float
    usable: PositiveFloat


@functools.cache
def software(name: str) -> Software:
    """The software of that name.

    Raises:
      UserError: for a name that has no file in ``configs/software``.
    """
    known = {path.stem: path for path in (configs() / "software").glob("*.yaml")}
    if name not in known:
        raise UserError(f"software '{name}' is not known: {nearest(name, known)}")
    return validate(Software, read_yaml(known[name]), str(known[name]))
