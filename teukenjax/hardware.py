"""What a device can do, from ``configs/hardware``: the only place where such numbers live."""

from pathlib import Path

import jax

from teukenjax.errors import UserError, nearest
from teukenjax.recipe import PositiveFloat, Section, read_yaml, validate


class Hardware(Section):
    """One kind of device; datasheet values, dense (no sparsity)."""

    name: str
    device_kinds: tuple[str, ...]  # as ``jax.Device.device_kind`` spells them
    bf16_tflops: PositiveFloat  # dense peak
    memory_gb: PositiveFloat  # 10⁹ bytes
    memory_gb_per_s: PositiveFloat


def configs() -> Path:
    """The folder ``configs``: beside the package in a checkout, inside it when installed."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def catalogue() -> dict[str, Hardware]:
    """All known hardware, by file name."""
    return {
        path.stem: validate(Hardware, read_yaml(path), str(path))
        for path in sorted((configs() / "hardware").glob("*.yaml"))
    }


def find_hardware(name: str | None, device: jax.Device) -> Hardware | None:
    """The hardware of that name, or the one recognised by the device; none if unknown.

    Raises:
      UserError: when a name is given that is not in the catalogue.
    """
    known = catalogue()
    if name is not None:
        if name not in known:
            raise UserError(f"hardware '{name}' is not known: {nearest(name, known)}")
        return known[name]
    return next((hw for hw in known.values() if device.device_kind in hw.device_kinds), None)


def mfu(tokens_per_s: float, flops_per_token: int, devices: int, hw: Hardware | None):
    """Model FLOPs utilisation in [0, 1] against the dense bf16 peak; none for unknown hardware."""
    if hw is None:
        return None
    return tokens_per_s * flops_per_token / (devices * hw.bf16_tflops * 1e12)
