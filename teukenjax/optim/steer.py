"""Steers the learning rate so that the output norm arrives at a target at the end of the run.

"Optimal Scaling Needs Optimal Norm" (arXiv 2510.03871) finds one output norm at the best runs of
every size and horizon, and a learning rate for each of them. Here the norm is what is asked for and
the rate is what follows. Unconstrained Scion without decay lets ‖W‖ only grow, and at a constant
rate about as a random walk does: ‖W‖² in a straight line. So with w = ‖W_out‖ and τ the time that
passes with each step by the schedule's rate there, every few steps

    needed = (T² − w²)/(τ_end − τ)     growth of w² per τ that ends at T
    found  = (w² − w₋²)/(τ − τ₋)        growth since the last look, of steps that were taken
    factor ← factor · √(needed/found)   at most a factor of √2 at a time

and all updates are multiplied by the factor. The schedule keeps its shape: a warm-up and a decay
are in τ. A rate that was right stays; one that was not costs the looks that it takes to mend it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from teukenjax.errors import UserError
from teukenjax.optim.leaf import Specs
from teukenjax.optim.lmo import RowNorm

LOOKS = 64  # in a run
LARGEST = 2**0.5  # change of the factor at one look
TINY = jnp.finfo(jnp.float32).tiny


class SteerState(NamedTuple):
    """State of ``steer_to_norm``."""

    inner: optax.OptState
    done: Int[Array, ""]  # updates so far
    factor: Float[Array, ""]  # of the next update
    square: Float[Array, ""]  # w² at the last look, w₋²
    since: Float[Array, ""]  # τ − τ₋; a guard that skips a step puts it back


def steer_to_norm(
    optimizer: optax.GradientTransformation,
    specs: Specs,
    *,
    target: float,
    learning_rate: optax.Schedule,
    steps: int,
) -> optax.GradientTransformation:
    """The same optimizer with its updates scaled towards ‖W_out‖_{RMS→∞} = ``target``.

    Args:
      optimizer: complete: its updates are what is added to the weights.
      specs: a pytree shaped like the parameters, of ``LeafSpec``.
      target: T, in units of the norm: 128 is the paper's 2⁷.
      learning_rate: the schedule that is in the optimizer.
      steps: of the run.

    Raises:
      UserError: for a model without a weight of the role output.
      ValueError: at update, without params.
    """
    if not any(spec.role == "output" for spec in jax.tree.leaves(specs)):
        raise UserError(f"optimizer.norm_target={target:g}: no weight has the role output")
    every = max(steps // LOOKS, 1)

    def init(params):
        return SteerState(
            inner=optimizer.init(params),
            done=jnp.zeros((), jnp.int32),
            factor=jnp.ones(()),
            square=_square(specs, params),
            since=jnp.zeros(()),
        )

    def update(gradients, state, params=None):
        if params is None:
            raise ValueError("steer_to_norm: needs update(gradients, state, params)")
        updates, inner = optimizer.update(gradients, state.inner, params)
        state = state._replace(inner=inner)
        look = (state.done > 0) & (state.done % every == 0)
        state = jax.lax.cond(look, lambda s: _look(s, _square(specs, params)), lambda s: s, state)
        updates = jax.tree.map(lambda u: u * state.factor.astype(u.dtype), updates)
        since = state.since + learning_rate(state.done)
        return updates, state._replace(done=state.done + 1, since=since)

    def _look(state: SteerState, square) -> SteerState:
        # Not the whole less what is spent: a sum of a million rates, one by one, is 1 % off.
        numbers = jnp.arange(steps)
        rates = jnp.where(numbers >= state.done, jax.vmap(learning_rate)(numbers), 0.0)
        needed = jnp.maximum(target**2 - square, 0.0) / jnp.maximum(jnp.sum(rates), TINY)
        found = jnp.maximum(square - state.square, 0.0) / jnp.maximum(state.since, TINY)
        # Nothing found: the largest change, unless nothing is needed either.
        ratio = jnp.sqrt(needed / jnp.maximum(found, TINY))
        factor = state.factor * jnp.clip(ratio, 1 / LARGEST, LARGEST)
        return state._replace(factor=factor, square=square, since=jnp.zeros(()))

    return optax.GradientTransformation(init, update)


def applied_factor(opt_state: optax.OptState) -> Any:
    """What the last update was multiplied by; 1 for an optimizer that is not steered."""
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_state)
    return next((node.factor for node in nodes if _is_state(node)), 1.0)


def _square(specs: Specs, params: Any) -> Float[Array, ""]:
    norms = jax.tree.map(
        lambda spec, leaf: (
            jnp.max(RowNorm().norm(spec.to_matrices(leaf))) if spec.role == "output" else 0.0
        ),
        specs,
        params,
    )
    return jnp.square(jnp.max(jnp.stack(jax.tree.leaves(norms)))).astype(jnp.float32)


def _is_state(node: Any) -> bool:
    return isinstance(node, SteerState)
