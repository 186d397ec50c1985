"""Bytes on each device, by what holds them.

Arrays are [P], a row per plan. What rests (parameters, moments) is exact up to norm gains. What a
step needs beside them peaks in one of two places: at the loss, where logits stand beside all kept
activations, or in a layer's backward pass, where one layer's working set does.

Source: derived; compared with XLA's own sizes in tests/planner/test_compiled.py and BUILD_NOTES.md.
"""

from dataclasses import dataclass, fields

import numpy as np

from teukenjax.planner.fabric import GIGA
from teukenjax.planner.plans import Plans
from teukenjax.planner.step_time import Setting


@dataclass(frozen=True)
class Memory:
    """Bytes on each device; arrays [P].

    Attributes:
      parameters: fp32, as the strategy splits them.
      moments: of the optimizer.
      gradients: fp32, of the micro-batch and of the sum, as the strategy splits them.
      kept: activations from the forward to the backward pass.
      loss: logits, their gradient, and the table in 16 bits.
      layer: one layer's backward working set.
      gathered: weights of layers in flight, and their gradients before they are reduced.
      reserve: context, communication, fragmentation.
    """

    parameters: np.ndarray
    moments: np.ndarray
    gradients: np.ndarray
    kept: np.ndarray
    loss: np.ndarray
    layer: np.ndarray
    gathered: np.ndarray
    reserve: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """At the peak: the loss and a layer's backward pass are not at the same time."""
        resting = self.parameters + self.moments + self.gradients + self.reserve
        return resting + self.kept + np.maximum(self.loss, self.layer + self.gathered)

    def row(self, index: int) -> dict[str, float]:
        """One plan's components."""
        return {field.name: float(getattr(self, field.name)[index]) for field in fields(self)}


def memory(plans: Plans, setting: Setting, *, head_chunk: int) -> Memory:
    """The components.

    Args:
      plans: P of them.
      setting: what they have in common.
      head_chunk: tokens per device whose logits exist at one time; 0 is all of them.
    """
    shape, software = setting.shape, setting.software
    phi, E = shape.parameters, plans.tokens
    owned = 4.0 * phi / plans.shards("gradients")
    # Light Scion's sum is its momentum, which is counted there.
    summed = (plans.accumulation > 1) & ~plans.light & software.separate_sum
    remats = plans.remats(shape)
    return Memory(
        parameters=4.0 * phi / plans.shards("parameters"),
        moments=setting.optimizer.state_bytes * phi / plans.shards("optimizer"),
        gradients=owned * (1 + summed),
        kept=E * shape.layers * remats.kept,
        loss=_loss(plans, setting, head_chunk),
        layer=E * software.layer_widths * 2.0 * shape.width,
        gathered=_gathered(plans, setting),
        reserve=np.full(len(plans), software.reserve_gb * GIGA),
    )


def capacity(setting: Setting) -> float:
    """Bytes of a device that a step may use."""
    return setting.software.usable * setting.hw.target.memory_bytes


def _loss(plans: Plans, setting: Setting, head_chunk: int) -> np.ndarray:
    """logit_held_bytes for each logit of a chunk, and the table's own rows in 16 bits.

    Where tokens travel, a chunk is of all devices of the group and a device sees V/n rows: the
    product is the same as alone.
    """
    shape, software = setting.shape, setting.software
    tokens = np.minimum(plans.tokens, head_chunk) if head_chunk else plans.tokens
    logits = tokens * shape.vocab * software.logit_held_bytes / plans.tensor
    rows = shape.vocab / plans.shards("parameters", "vocab")
    return logits + 2.0 * rows * shape.width


def _gathered(plans: Plans, setting: Setting) -> np.ndarray:
    """(1 + prefetch)·2·φ_layer in 16 bits and one gradient, where weights are split at all.

    Source: derived; (1 + n_prefetch)·Q·φ_unit + Q_g·φ_unit with a prefetch of one.
    """
    shape, software = setting.shape, setting.software
    unit = shape.layer_weights / shape.layers / plans.tensor
    tables = 0.0 if software.table_stays else shape.table_weights / plans.tensor
    split = plans.shards("parameters") > plans.tensor
    return np.where(split, 4.0 * unit + 2.0 * tables, 2.0 * unit) + software.gradient_bytes * unit
