"""A machine's measured rates, and what they change in a prediction.

A profile measures the best product, attention, a copy and collectives. The first is what
``Hardware.matmul_tflops`` is; from copies and gathers the hardware's rates follow by the shares of
them that such things reach.
"""

import functools

from teukenjax.hardware import Hardware, configs
from teukenjax.kernels.choice import Device, choose_kernels
from teukenjax.planner.program import Collective
from teukenjax.planner.software import FAST_SHARE, Software, software
from teukenjax.recipe import PositiveFloat, Recipe, Section, read_yaml, validate

COPY_SHARE = 3.0 / 3.35  # H100: reachable, of the datasheet's memory bandwidth
# Our head's kernel leaves a logit's power in 16 bits, beside which its gradient is written in 16.
KERNEL_LOGIT_BYTES = 4


class Timing(Section):
    """One collective."""

    kind: str
    bytes: int  # of the whole array
    seconds: PositiveFloat


class Profile(Section):
    """What ``teukenjax bench calibrate`` measured; a file of ``configs/hardware/profiles``."""

    device_kind: str
    devices: int
    date: str
    versions: dict[str, str]
    product_tflops: PositiveFloat  # the best of a sweep of training's products
    attention_tflops: PositiveFloat  # causal, half its square counted, forward + backward
    copy_gb_per_s: PositiveFloat  # read + written
    collectives: tuple[Timing, ...] = ()

    @property
    def gather_gb_per_s(self) -> float | None:
        """Of the largest all-gather, what each device receives a second; none on one device."""
        gathers = [timing for timing in self.collectives if timing.kind == "all-gather"]
        if not gathers:
            return None
        return self.sent_gb_per_s(max(gathers, key=lambda timing: timing.bytes))

    def sent_gb_per_s(self, timing: Timing) -> float:
        """What each device sends a second, by the ring; of a gather also what it receives."""
        group = tuple(range(self.devices))
        return Collective(timing.kind, timing.bytes, group, 1).sent / timing.seconds / 1e9


@functools.cache
def profiles() -> tuple[Profile, ...]:
    """All committed profiles."""
    paths = sorted((configs() / "hardware" / "profiles").glob("*.yaml"))
    return tuple(validate(Profile, read_yaml(path), str(path)) for path in paths)


def profile_of(hw: Hardware) -> Profile | None:
    """The profile of that hardware measured on most devices, if there is one."""
    mine = [profile for profile in profiles() if profile.device_kind in hw.device_kinds]
    return max(mine, key=lambda profile: profile.devices, default=None)


def calibrated(hw: Hardware, constants: Software, profile: Profile) -> tuple[Hardware, Software]:
    """Hardware and shares as the profile found them."""
    best = profile.product_tflops
    node = hw.node
    if profile.gather_gb_per_s is not None and profile.devices <= node.devices:
        fast = profile.gather_gb_per_s / FAST_SHARE
        node = node.model_copy(update={"fast_gb_per_s": fast})
    copy = profile.copy_gb_per_s / COPY_SHARE
    found = {"matmul_tflops": best, "memory_gb_per_s": copy, "node": node}
    share = {"attention": profile.attention_tflops / best}
    return hw.model_copy(update=found), constants.model_copy(update=share)


def as_measured(hw: Hardware) -> tuple[Hardware, Software]:
    """Hardware and our own shares: by its profile if there is one, else as the files say."""
    profile, constants = profile_of(hw), software("teukenjax")
    return (hw, constants) if profile is None else calibrated(hw, constants, profile)


def with_kernels(recipe: Recipe, hw: Hardware, constants: Software) -> Software:
    """Our shares with the kernels that the recipe takes on that hardware.

    Raises:
      UserError: for a kernel that cannot run there.
    """
    device = Device("gpu", " ".join(hw.device_kinds))
    head = choose_kernels(recipe, device, tokens=recipe.model.context)["cross_entropy"]
    held = {"pallas": KERNEL_LOGIT_BYTES}.get(head.implementation, constants.logit_held_bytes)
    return constants.model_copy(update={"logit_held_bytes": held})
