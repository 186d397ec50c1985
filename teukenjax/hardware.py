"""What a device can do, from ``configs/hardware``: the only place where such numbers live."""

import functools
from pathlib import Path

import jax
from pydantic import PositiveInt

from teukenjax.errors import UserError, nearest
from teukenjax.recipe import PositiveFloat, Section, read_yaml, validate


class Node(Section):
    """Devices that share a fast fabric, and what connects them with the others.

    Bandwidths count one direction. The network is the whole node's: a shard that is gathered enters
    a node once and is spread inside it.
    """

    devices: PositiveInt
    fast_gb_per_s: PositiveFloat  # 10⁹ bytes a second, per device
    network_gb_per_s: PositiveFloat  # 10⁹ bytes a second, all cards of the node together


class Target(Section):
    """The device as XLA's compiler knows it."""

    compute_capability: tuple[int, int]
    processors: PositiveInt  # streaming multiprocessors
    lanes: PositiveInt  # fp32 units of each
    clock_ghz: PositiveFloat
    memory_bytes: PositiveInt
    l2_bytes: PositiveInt
    shared_bytes: PositiveInt  # of each processor
    shared_optin_bytes: PositiveInt  # that one block may ask for


class Hardware(Section):
    """One kind of device in one kind of node; datasheet values, dense (no sparsity)."""

    name: str
    aliases: tuple[str, ...] = ()  # as published tables spell it
    device_kinds: tuple[str, ...]  # as ``jax.Device.device_kind`` spells them
    bf16_tflops: PositiveFloat  # dense peak
    matmul_tflops: PositiveFloat  # of the best product that was ever measured
    memory_gb: PositiveFloat  # 10⁹ bytes
    memory_gb_per_s: PositiveFloat
    node: Node
    target: Target


def configs() -> Path:
    """The folder ``configs``: beside the package in a checkout, inside it when installed."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


@functools.cache
def catalogue() -> dict[str, Hardware]:
    """All known hardware, by file name."""
    return {
        path.stem: validate(Hardware, read_yaml(path), str(path))
        for path in sorted((configs() / "hardware").glob("*.yaml"))
    }


def named(name: str) -> Hardware:
    """The hardware of that file name or alias, whatever its case.

    Raises:
      UserError: for a name that is not in the catalogue.
    """
    known = catalogue()
    spelt = name.strip().lower().replace("_", "-")
    for key, hw in known.items():
        if spelt in (key, *(alias.lower() for alias in hw.aliases)):
            return hw
    raise UserError(f"hardware '{name}' is not known: {nearest(spelt, known)}")


def find_hardware(name: str | None, device: jax.Device) -> Hardware | None:
    """The hardware of that name, or the one recognised by the device; none if unknown.

    Raises:
      UserError: when a name is given that is not in the catalogue.
    """
    known = catalogue()
    if name is not None:
        return named(name)
    return next((hw for hw in known.values() if device.device_kind in hw.device_kinds), None)


def mfu(tokens_per_s: float, flops_per_token: int, devices: int, hw: Hardware | None):
    """Model FLOPs utilisation in [0, 1] against the dense bf16 peak; none for unknown hardware."""
    if hw is None:
        return None
    return tokens_per_s * flops_per_token / (devices * hw.bf16_tflops * 1e12)
