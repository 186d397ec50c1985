"""What a kernel brings to ``teukenjax bench kernels``: calls of it at the sizes that matter."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

from teukenjax.recipe import ShardingConfig
from teukenjax.sharding import Layout, make_layout


@dataclass(frozen=True)
class Case:
    """One call, by each implementation.

    Attributes:
      kernel: its name in ``compute.kernels``.
      what: the call, in a few words.
      inputs: makes the arguments.
      call: takes them, and ``implementation``.
      implementations: those that know the call; the first is the one that errors are taken against.
      flops: of its products, as the definition needs them.
      bytes: that any form must read and write.
      shape: in the letters of ``measured.yaml``, where this case decides what ``auto`` takes.
    """

    kernel: str
    what: str
    inputs: Callable[[], tuple]
    call: Callable[..., Any]
    implementations: tuple[str, ...] = ("reference", "pallas")
    flops: int | float = 0
    bytes: int = 0
    shape: dict[str, int] = field(default_factory=dict)


def first_device() -> Layout:
    """The first device alone."""
    return make_layout(ShardingConfig(strategy="ddp"), jax.devices()[:1])
