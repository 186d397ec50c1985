"""Which implementation of each kernel a run takes, and why: chosen in the open, once.

``auto`` takes what was fastest where it was measured: ``measured.yaml`` holds times by kernel, GPU
and shape (``teukenjax bench kernels`` writes such rows; the length of windows in which attention
stays inside documents is a letter of its own, ``packed_S``). Where no row is near, it takes the
reference, or for attention cuDNN, and says so.
"""

import functools
import math
from pathlib import Path
from typing import NamedTuple

import jax
from ruamel.yaml import YAML

from teukenjax.errors import UserError
from teukenjax.kernels import rms_norm
from teukenjax.kernels.attention import cudnn_refusal, pallas_refusal
from teukenjax.recipe import KernelsConfig, Recipe

NEAR = 2.0  # a row speaks for shapes up to this factor from its own, in each dimension
HOPPER = ("H100", "H200", "GH200")
TABLE = Path(__file__).parent / "measured.yaml"

Shape = dict[str, int]


class Choice(NamedTuple):
    """An implementation, and what to print beside it."""

    implementation: str
    reason: str


class Device(NamedTuple):
    """What kernels are chosen for: ``jax.Device.platform`` and ``device_kind``."""

    platform: str
    kind: str = ""

    @classmethod
    def of(cls, device: jax.Device) -> "Device":
        """A device of this machine, or of a topology."""
        return cls(device.platform, device.device_kind)

    @property
    def gpu(self) -> str:
        """Its name in ``measured.yaml``: one of ``HOPPER``, or all of its kind."""
        return next((name for name in HOPPER if name in self.kind.split()), self.kind)

    @property
    def gpu_refusal(self) -> str | None:
        """Why no GPU's kernel can run here; None on a GPU."""
        is_gpu = self.platform in ("gpu", "cuda")
        return None if is_gpu else f"the device is a {self.platform}, not a GPU"

    @property
    def pallas_refusal(self) -> str | None:
        """Why our kernels cannot run here; None when they can."""
        if self.gpu_refusal is not None:
            return self.gpu_refusal
        if self.gpu not in HOPPER:
            return f"the GPU is {self.kind or 'not known'}, not one of {', '.join(HOPPER)}"
        return None


def choose_kernels(recipe: Recipe, device: Device, *, tokens: int) -> dict[str, Choice]:
    """Every kernel's implementation for a resolved recipe.

    Args:
      recipe: vocabulary known.
      device: what it runs on.
      tokens: of a micro-batch on one device.

    Raises:
      UserError: as ``choose``.
    """
    model, compute = recipe.model, recipe.compute
    ours, dtype = device.pallas_refusal, compute.dtype
    is_16_bit = None if dtype == "bfloat16" else f"compute.dtype is {dtype}, not bfloat16"
    cudnn = cudnn_refusal(dtype=dtype, head_dim=model.head_dim, segments=recipe.data.segmented)
    attention = {
        "cudnn": device.gpu_refusal or cudnn,
        "pallas": ours or pallas_refusal(dtype=dtype, head_dim=model.head_dim),
    }
    length = "packed_S" if recipe.data.segmented else "S"
    norm = rms_norm.refusal(dtype=dtype, width=model.width, gain=model.norm_gain)
    head = {"T": min(compute.head_chunk, tokens), "D": model.width, "V": model.vocab_size}
    cases = {
        "attention": (attention, {length: model.context}, "cudnn"),
        "cross_entropy": ({"pallas": ours or is_16_bit}, head, "reference"),
        "rms_norm": ({"pallas": ours or norm}, {"T": tokens, "D": model.width}, "reference"),
        "symmetric_matmul": ({"pallas": ours}, {"m": model.width}, "reference"),
    }
    return {
        name: choose(
            name,
            getattr(compute.kernels, name),
            refusals,
            device=device,
            shape=shape,
            fallback=fallback,
            strict=compute.strict and name == "attention",
        )
        for name, (refusals, shape, fallback) in cases.items()
    }


def chosen(choices: dict[str, Choice]) -> KernelsConfig:
    """The same as a section of a recipe, in which nothing is left to ``auto``."""
    return KernelsConfig(**{name: choice.implementation for name, choice in choices.items()})


def choose(
    kernel: str,
    requested: str,
    refusals: dict[str, str | None],
    *,
    device: Device,
    shape: Shape,
    fallback: str = "reference",
    strict: bool = False,
) -> Choice:
    """The implementation to run.

    Args:
      kernel: its name in ``compute.kernels``.
      requested: ``auto`` or an implementation.
      refusals: implementation → why it cannot run here, or None; ``reference`` always can.
      device: what it runs on.
      shape: of the call, with the letters of ``measured.yaml``.
      fallback: what ``auto`` takes where nothing was measured, if it can run.
      strict: whether ``auto`` may not come down to the reference for want of another.

    Raises:
      UserError: when what is asked for cannot run: never a silent fallback; likewise for ``auto``
        if ``strict``.
    """
    able = ["reference", *(name for name, why in refusals.items() if why is None)]
    if requested in able:
        return Choice(requested, "asked for")
    if requested != "auto":
        raise UserError(
            f"compute.kernels.{kernel}={requested} cannot run: {refusals[requested]}; "
            f"allowed here: auto, {', '.join(able)}"
        )
    reasons = [f"{name} cannot run: {why}" for name, why in refusals.items() if why]
    refused = "; ".join(reasons)
    row = _nearest(kernel, device.gpu, shape) if len(able) > 1 else None
    if row is None and len(able) > 1:
        reasons.append("not measured near this shape")
    if strict and row is None and fallback not in able[1:]:
        raise UserError(
            f"compute.strict=true with compute.kernels.{kernel}=auto: {'; '.join(reasons)}; to "
            f"take the slow path knowingly set compute.kernels.{kernel}=reference"
        )
    if row is None:
        return Choice(fallback if fallback in able else "reference", "; ".join(reasons))
    times = {name: ms for name, ms in row["ms"].items() if name in able}
    best = min(times, key=times.get)
    others = ", ".join(f"{name} {ms:g}" for name, ms in times.items() if name != best)
    return Choice(best, f"{times[best]:g} ms where measured, {others}" if others else refused)


def _nearest(kernel: str, gpu: str, shape: Shape) -> dict | None:
    def distance(row) -> float:
        return max(abs(math.log2(shape[n] / row["shape"][n])) for n in shape)

    rows = [
        row
        for row in _measured()
        if row["kernel"] == kernel and row["gpu"] == gpu and row["shape"].keys() == shape.keys()
    ]
    near = [row for row in rows if distance(row) <= math.log2(NEAR)]
    return min(near, key=distance, default=None)


@functools.cache
def _measured() -> list[dict]:
    return YAML(typ="safe").load(TABLE.read_text())
