"""Bytes of gradients on each device: sums, and what of tables and micro-batches is in none yet.

All arrays are [P], a row per plan; which phase of a step holds what, ``memory`` says. All of it was
read from compiled programs of our step; of other software only the sum is known.
"""

import numpy as np

from teukenjax.planner.plans import Plans
from teukenjax.planner.step_time import Setting


def summed(plans: Plans, setting: Setting) -> np.ndarray:
    """4·φ in pieces, to which micro-batches are added.

    Light Scion's is its momentum, which is counted there, but where devices add to that.
    """
    held = 4.0 * setting.shape.parameters / plans.shards("gradients")
    light = plans.light & ~_adds_to_momentum(plans, setting)
    return np.where(light | single(plans, setting), 0.0, held)


def made(plans: Plans, setting: Setting) -> np.ndarray:
    """4·φ_layers in pieces, and the table's where it does not wait, of a single micro-batch."""
    waits = waiting(plans, setting) > 0
    phi = setting.shape.layer_weights + np.where(waits, 0.0, setting.shape.table_weights)
    return single(plans, setting) * 4.0 * phi / plans.shards("gradients")


def own(plans: Plans, setting: Setting) -> np.ndarray:
    """4·φ_layers in pieces, where gradients are summed over devices that hold the same piece.

    ddp adds over all, hsdp over replicas, when the micro-batches are done; each micro-batch has a
    sum of its own that is added to theirs. Others reduce each layer's gradient where it is made.
    Other software adds in place.
    """
    pieces = plans.shards("gradients")
    twice = np.where(_adds_to_momentum(plans, setting), 2.0, 1.0)
    held = twice * 4.0 * setting.shape.layer_weights / pieces
    return np.where(_alike(plans, setting), held, 0.0)


def waiting(plans: Plans, setting: Setting) -> np.ndarray:
    """4·V·D of the head on several devices, split as its table is.

    A tied table's waits for the embedding's, but not where the sum is whole on several devices:
    there it is added when it is made. Where replicas split the table the compiler does one or the
    other (BUILD_NOTES.md); it counts. A table of its own waits where several devices hold the same
    rows.
    """
    table = plans.shards("parameters")
    added = (plans.shards("gradients") == plans.tensor) & _alike(plans, setting)
    waits = np.where(setting.shape.tied, ~added, plans.devices > table)
    return _several(plans, setting) * waits * _table(setting) / table


def zeros(plans: Plans, setting: Setting) -> np.ndarray:
    """4·V·D of an embedding that is whole and not tied, where sums are split.

    The compiler makes them with those at which the head's sum starts, and keeps them.
    """
    table = plans.shards("parameters")
    early = (table == plans.tensor) & (plans.shards("gradients") > table)
    return _several(plans, setting) * (not setting.shape.tied) * early * _table(setting) / table


def second(plans: Plans, setting: Setting) -> np.ndarray:
    """4·V·D of a tied table's embedding where its head's waits, split as gradients are.

    Of a single micro-batch its head's too, which is in no sum yet.
    """
    waits = setting.shape.tied * (waiting(plans, setting) > 0)
    tables = np.where(single(plans, setting), 2.0, 1.0)
    return waits * tables * _table(setting) / plans.shards("gradients")


def single(plans: Plans, setting: Setting) -> np.ndarray:
    """Whether a step of ours is one micro-batch, whose gradients are added to nothing."""
    return setting.software.table_stays & (plans.accumulation == 1) & ~plans.light


def _adds_to_momentum(plans: Plans, setting: Setting) -> np.ndarray:
    """Whether devices add their own sums to light Scion's momentum.

    The compiler then has the sum beside the momentum, and theirs before and after they are added;
    of a single micro-batch only where the sum is whole.
    """
    whole = plans.shards("gradients") == plans.tensor
    return plans.light & _alike(plans, setting) & ((plans.accumulation > 1) | whole)


def _alike(plans: Plans, setting: Setting) -> np.ndarray:
    """Whether several devices of ours hold the same piece of the sum."""
    return setting.software.table_stays & (plans.devices > plans.shards("gradients"))


def _several(plans: Plans, setting: Setting) -> np.ndarray:
    """Whether our software runs on more than one device."""
    return setting.software.table_stays & (plans.devices > 1)


def _table(setting: Setting) -> float:
    """Bytes of one table in fp32."""
    return 4.0 * setting.shape.vocab * setting.shape.width
