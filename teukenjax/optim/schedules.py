"""Learning-rate schedules, joined from phases.

A warm-up, a plateau and a decay are each one phase; its values are factors of the learning rate.
Steps are counted from 0, and step k of a phase of n steps lies at the fraction

    t = (k + 1)/n   where the phase rises: a warm-up from 0 ends at its full value, and its first
                    step is not lost on a learning rate of 0;
    t = k/n         where it falls: it begins at its full value, and its last step is still one
                    above the end. A cool-down is thus a warm-up read backwards.

Megatron-LM, with which Teuken was trained, has k/n in both: its warm-up lags one step behind ours,
its decay is the same.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import optax

from teukenjax.errors import UserError
from teukenjax.recipe import PhaseConfig


def schedule(phases: Sequence[PhaseConfig], *, learning_rate: float, steps: int) -> optax.Schedule:
    """The learning rate at each step of a run.

    In a phase of fraction t the factor is, from ``start`` s to ``end`` e,

        linear  s + (e − s) t        cosine  e + ½ (1 + cos πt) (s − e)        constant  s

    and after the last phase it stays at that phase's end.

    Args:
      phases: at least one. ``steps=None`` in the last takes what is left of the run; in a run
        cut short (``steps=10`` for a trial) that may be nothing, and it is not reached.
      learning_rate: what the factors multiply.
      steps: optimizer steps of the whole run.

    Returns:
      A function of the step, a Python integer or a traced array.

    Raises:
      UserError: for no phases, or an open phase before the last one; the message names the
        phase as the recipe does, ``schedule.i``.
    """
    lengths = _lengths(phases, steps)
    boundaries = [sum(lengths[:i]) for i in range(1, len(lengths))]
    factors = [
        functools.partial(_factor, phase, n) for phase, n in zip(phases, lengths, strict=True)
    ]
    joined = optax.join_schedules(factors, boundaries)
    return lambda step: learning_rate * joined(step)


def _lengths(phases: Sequence[PhaseConfig], steps: int) -> list[int]:
    """Steps of each phase, the open one filled in."""
    if not phases:
        raise UserError("schedule: empty; one constant phase is the plainest schedule")
    for i, phase in enumerate(phases[:-1]):
        if phase.steps is None:
            raise UserError(f"schedule.{i}.steps is missing: only the last phase may be open")
    fixed = [phase.steps for phase in phases if phase.steps is not None]
    if phases[-1].steps is not None:
        return fixed
    return [*fixed, max(steps - sum(fixed), 1)]


def _factor(phase: PhaseConfig, length: int, step):
    """The factor at a step counted from the phase's first; outside the phase, its nearest value."""
    start, end = phase.start, phase.end
    rising = end > start
    t = jnp.clip((step + rising) / length, 0, 1)
    if phase.shape == "cosine":
        return end + 0.5 * (1 + jnp.cos(jnp.pi * t)) * (start - end)
    return start + (end - start) * t
