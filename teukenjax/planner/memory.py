"""Bytes on each device, by what holds them.

Arrays are [P], a row per plan. What rests (parameters, moments) is exact up to norm gains. What a
step needs beside them peaks in one of five phases. Beside the first four stand the sum of
gradients, transposed weights and copies:

    embed      kept activations, and the states of all tokens of the group, where tokens travel
    loss       kept activations, the last states, logits, the table's gradient, zeros
    backward   kept activations, one layer's working set, its weights and its gradient, those of a
               single micro-batch, a device's own sum where devices have to add theirs, the output
               table's that waits for the embedding's, zeros for that
    reduce     a single micro-batch's gradients or a device's own sum, a tied table's gradient, the
               states of all tokens again
    update     updates while they are gathered

Source: derived; what the phases hold was read from compiled programs, and is compared with them in
tests/planner/test_compiled.py and BUILD_NOTES.md.
"""

from dataclasses import dataclass

import numpy as np

from teukenjax.planner import gradients
from teukenjax.planner.plans import NAMES, Plans
from teukenjax.planner.step_time import Setting
from teukenjax.units import GIGA

STANDING = ("gradients", "transposed", "copies")
PHASES = {
    "embed": (*STANDING, "kept", "states"),
    "loss": (*STANDING, "kept", "ends", "logits", "table", "zeros"),
    "backward": (*STANDING, "kept", "layer", "gathered", "made", "own", "waiting", "zeros"),
    "reduce": (*STANDING, "made", "combined", "second", "states"),
    "update": ("updates",),
}
RESTING = ("parameters", "moments", "reserve")


@dataclass(frozen=True)
class Memory:
    """Bytes on each device; arrays [P].

    Attributes:
      parameters: fp32, as the strategy splits them.
      moments: of the optimizer.
      reserve: context, communication, fragmentation.
      gradients: fp32, of all micro-batches: each is added in place.
      made: fp32, of one micro-batch, which needs no sum.
      own: fp32, a device's own sum of layers' gradients where it is added to others', beside that
        of all.
      combined: the same, while devices add them.
      transposed: weights whose gathered axis is not their first, turned once a step.
      copies: layers' weights in 16 bits, whole, where they are gathered once a step.
      kept: activations from the forward to the backward pass.
      states: 16-bit embeddings of all n devices' tokens, before each keeps its own.
      ends: 16-bit states beyond the layers: the last, its norm, and the gradient of that.
      logits: of a chunk, with what the loss holds beside them.
      table: gradient of the output table.
      layer: one layer's backward working set.
      gathered: weights of layers in flight, and a layer's gradients before they are reduced.
      waiting: gradient of the output table while layers' are computed.
      zeros: into which that of an embedding of its own will be scattered.
      second: gradient of a tied table's embedding, before it is added to that of its head.
      updates: of leaves, while they are gathered.
    """

    parameters: np.ndarray
    moments: np.ndarray
    reserve: np.ndarray
    gradients: np.ndarray
    made: np.ndarray
    own: np.ndarray
    combined: np.ndarray
    transposed: np.ndarray
    copies: np.ndarray
    kept: np.ndarray
    states: np.ndarray
    ends: np.ndarray
    logits: np.ndarray
    table: np.ndarray
    layer: np.ndarray
    gathered: np.ndarray
    waiting: np.ndarray
    zeros: np.ndarray
    second: np.ndarray
    updates: np.ndarray

    def of_phase(self, phase: str) -> np.ndarray:
        """Bytes that one phase holds beside what rests."""
        return np.sum([getattr(self, name) for name in PHASES[phase]], axis=0)

    @property
    def temporary(self) -> np.ndarray:
        """Beside parameters, moments and reserve, at the peak."""
        return np.max([self.of_phase(phase) for phase in PHASES], axis=0)

    @property
    def total(self) -> np.ndarray:
        """At the peak."""
        return self.counted + self.reserve

    @property
    def counted(self) -> np.ndarray:
        """What the device counts as its peak, and the compiler: all but the reserve."""
        return self.parameters + self.moments + self.temporary

    def split(self, index: int) -> dict[str, float]:
        """One plan's bytes at its peak, by component."""
        peak = max(PHASES, key=lambda phase: self.of_phase(phase)[index])
        return {name: float(getattr(self, name)[index]) for name in (*RESTING, *PHASES[peak])}


def memory(plans: Plans, setting: Setting, *, head_chunk: int) -> Memory:
    """The components.

    Args:
      plans: P of them.
      setting: what they have in common.
      head_chunk: tokens per device whose logits exist at one time; 0 is all of them.
    """
    shape, constants = setting.shape, setting.software
    phi, E, remats = shape.parameters, plans.tokens, plans.remats(shape)
    logits, table = _loss(plans, setting, head_chunk)
    own = gradients.own(plans, setting)
    return Memory(
        parameters=4.0 * phi / plans.shards("parameters"),
        moments=setting.optimizer.state_bytes * phi / plans.shards("optimizer"),
        reserve=np.full(len(plans), constants.reserve_gb * GIGA),
        gradients=gradients.summed(plans, setting),
        made=gradients.made(plans, setting),
        own=np.where(gradients.single(plans, setting), 0.0, own),
        combined=own,
        transposed=_transposed(plans, setting),
        copies=np.where(plans.once, 2.0 * shape.layer_weights / plans.tensor, 0.0),
        kept=E * shape.layers * (remats.whole + (remats.kept - remats.whole) / plans.tensor),
        states=2.0 * _group(plans, setting) * E * shape.width,
        ends=6.0 * E * shape.width * constants.table_stays,
        logits=logits,
        table=table,
        layer=_layer(plans, setting),
        gathered=_gathered(plans, setting),
        waiting=gradients.waiting(plans, setting),
        zeros=gradients.zeros(plans, setting),
        second=gradients.second(plans, setting),
        updates=_updates(plans, setting),
    )


def capacity(setting: Setting) -> float:
    """Bytes of a device that a step may use."""
    return setting.software.usable * setting.hw.target.memory_bytes


def _group(plans: Plans, setting: Setting) -> np.ndarray:
    """n: devices that exchange tokens because they share a vocabulary table; 0 if none do."""
    n = plans.shards("parameters", "vocab") / plans.tensor
    return np.where(setting.software.table_stays & (n > 1), n, 0.0)


def _loss(plans: Plans, setting: Setting, head_chunk: int):
    """Logits of a chunk with the table in 16 bits, and the table's fp32 gradient.

    logit_held_bytes for each logit of a chunk. Where tokens travel, a chunk is of all n devices of
    the group and each sees V/n rows, as many logits as alone; but its hidden states and their
    fp32 gradient are there for all: (2 + 4)·n·chunk·D. The gradient is 4·V·D, to which each chunk
    adds in place. Source: read from compiled programs.
    """
    shape, constants = setting.shape, setting.software
    tokens = np.minimum(plans.tokens, head_chunk) if head_chunk else plans.tokens
    logits = tokens * shape.vocab * constants.logit_held_bytes / plans.tensor
    split = plans.shards("parameters", "vocab") if constants.table_stays else plans.tensor
    rows = shape.vocab / split
    states = 6.0 * _group(plans, setting) * tokens * shape.width
    return logits + 2.0 * rows * shape.width + states, 4.0 * rows * shape.width


def _layer(plans: Plans, setting: Setting) -> np.ndarray:
    """2·E·((layer_ffns·F + H·N)/t + layer_widths·D) bytes.

    Ours in the backward pass of its MLP: gate and up, the gradients of both; queries; the MLP's
    input, the gradients of that from gate, from up and their sum, and what the layer after sent.
    Source: read from compiled programs.
    """
    shape, constants = setting.shape, setting.software
    inner = constants.layer_ffns * shape.ffn + shape.heads * shape.head_dim
    return 2.0 * plans.tokens * (inner / plans.tensor + constants.layer_widths * shape.width)


def _gathered(plans: Plans, setting: Setting) -> np.ndarray:
    """What a layer's backward pass holds of its weights and of their gradients.

    Ours, of weights that are split: two of the MLP's matrices in 16 bits, and the fp32 gradient of
    one before it is reduced: (2·2 + 4)·D·F; with copies only the gradient. Of whole ones: all in 16
    bits, and the layer's slice of the sum in fp32, (2 + 4)·φ_layer. Source: read from compiled
    programs. Other software: (1 + n)·2·φ_layer with a prefetch of n = 1, and one gradient.
    """
    shape, constants = setting.shape, setting.software
    unit = shape.layer_weights / shape.layers / plans.tensor
    split = plans.shards("parameters") > plans.tensor
    if constants.table_stays:
        matrix = 1.0 * shape.width * shape.ffn / plans.tensor
        gathered = np.where(plans.once, 4.0, 8.0) * matrix
        return np.where(split, gathered, 6.0 * unit)
    tables = 2.0 * shape.table_weights / plans.tensor
    reduced = np.where(plans.shards("gradients") > 1, constants.gradient_bytes * unit, 0.0)
    return np.where(split, 4.0 * unit + tables, 2.0 * unit) + reduced


def _transposed(plans: Plans, setting: Setting) -> np.ndarray:
    """4·L·D·(F + H·N) in pieces: the MLP's and attention's last matrices end in the split axis.

    A gather along the last axis would be strided, so the compiler turns them before the first,
    unless there is but one a step. Source: read from compiled programs.
    """
    shape, pieces = setting.shape, plans.shards("parameters")
    held = 4.0 * shape.layers * shape.width * (shape.ffn + shape.heads * shape.head_dim) / pieces
    turned = setting.software.table_stays & (pieces > plans.tensor) & ~plans.once
    return np.where(turned, held, 0.0)


def _updates(plans: Plans, setting: Setting) -> np.ndarray:
    """An MLP's updates, 4·L·3·D·F, which zero2 gathers together.

    Source: read from compiled programs of our step; other software's is not known and left out.
    """
    leaves = 4.0 * setting.shape.layers * setting.shape.mlp_weights
    ours = plans.strategy == NAMES.index("zero2")
    return np.where(ours & setting.software.table_stays, leaves, 0.0)
