"""A plan's prediction: memory and time together, and what they come to."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from teukenjax.planner.memory import Memory, capacity, memory
from teukenjax.planner.plans import Plans
from teukenjax.planner.step_time import Setting, StepTime, step_time

# What may bind, and the hardware numbers that lift it when they double.
ROOFS = {
    "compute": ("bf16_tflops", "matmul_tflops"),
    "memory": ("memory_gb_per_s",),
    "intra-node": ("fast_gb_per_s",),
    "inter-node": ("network_gb_per_s",),
}


@dataclass(frozen=True)
class Prediction:
    """Of P plans; arrays [P]."""

    plans: Plans
    setting: Setting
    memory: Memory
    time: StepTime

    @property
    def fits(self) -> np.ndarray:
        """Whether the peak is within what a step may use of the device."""
        return self.memory.total <= capacity(self.setting)

    @property
    def tokens_per_s(self) -> np.ndarray:
        """Per device."""
        return self.plans.tokens_per_step / (self.plans.devices * self.time.total)

    @property
    def mfu(self) -> np.ndarray:
        """Model FLOPs (6N + 6·L·H·N·S a token) over the dense bf16 peak."""
        flops = self.setting.shape.model_flops(self.plans.sequence)
        return self.tokens_per_s * flops / (self.setting.hw.bf16_tflops * 1e12)

    @property
    def hfu(self) -> np.ndarray:
        """FLOPs of products and attention that are run, again or not, over the same peak."""
        return self.time.hardware_flops / self.time.total / (self.setting.hw.bf16_tflops * 1e12)

    def roofs(self) -> dict[str, np.ndarray]:
        """By how much doubling each resource would raise throughput; latency is halved.

        Plans stay as they are: what more memory would buy by other plans is ``search.what_if``.
        """
        gains = {}
        for roof, keys in ROOFS.items():
            setting = dataclasses.replace(self.setting, hw=doubled(self.setting.hw, keys))
            gains[roof] = self.time.total / step_time(self.plans, setting).total - 1
        gains["latency"] = self.time.total / (self.time.total - self.time.latency / 2) - 1
        return gains

    def binding(self) -> np.ndarray:
        """The roof that binds: doubling it helps most. "memory" also for what does not fit."""
        gains = self.roofs()
        names = np.array(list(gains))[np.argmax(np.stack(list(gains.values())), axis=0)]
        return np.where(self.fits, names, "memory")


def predict(plans: Plans, setting: Setting, *, head_chunk: int) -> Prediction:
    """Memory and time of each plan; ``head_chunk`` as in ``memory``."""
    held = memory(plans, setting, head_chunk=head_chunk)
    return Prediction(plans, setting, held, step_time(plans, setting))


def doubled(hw, keys: tuple[str, ...], factor: float = 2.0):
    """The hardware with those numbers, its own or its node's, multiplied."""
    own = {key: getattr(hw, key) * factor for key in keys if hasattr(hw, key)}
    node = {key: getattr(hw.node, key) * factor for key in keys if not hasattr(hw, key)}
    return hw.model_copy(update={**own, "node": hw.node.model_copy(update=node)})
