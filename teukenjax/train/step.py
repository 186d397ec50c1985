"""One optimizer step, to be read aloud; everything that varies is composed outside of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from teukenjax.optim.telemetry import packed_norms
from teukenjax.train.batch import Batch, batch_sharding
from teukenjax.train.state import Program, TrainState

Metrics = dict[str, Any]


def make_train_step(program: Program) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step ``(state, batch) → (state, metrics)``; state is donated.

    Metrics are fp32 scalars on the device: loss (nats per
    token), lr, and the global norms of gradient, update and parameters; besides, under ``norms``,
    the last observation of ``optim.telemetry``, packed, and the ``verdict`` of ``optim.guard``.
    """
    model, optimizer = program.model, program.optimizer

    def loss_fn(params, batch: Batch):
        return model.bind(params).loss(*batch)[0]

    def train_step(state: TrainState, batch: Batch):
        """One update from one global batch."""
        start = program.gradient_start(state.opt_state, state.params)
        batch = batch.normalised()
        loss, grads = accumulate(loss_fn, state.params, batch, start, program.placed.gradients)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=loss)
            params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "lr": program.learning_rate(state.step),
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
            "norms": packed_norms(opt_state),
            "verdict": opt_state.verdict,
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(program.shardings, batch_sharding(program.layout)),
        out_shardings=(program.shardings, program.layout.replicated()),
    )


def accumulate(loss_fn, params, batch: Batch, start, placement):
    """The micro-batches' losses summed, and ``start`` plus the sum of their gradients.

    Args:
      loss_fn: (params, micro-batch) → scalar.
      params: parameters.
      batch: A micro-batches.
      start: fp32 arrays like the parameters.
      placement: of the gradients between micro-batches: a tree of shardings.
    """

    def add(total, micro_batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, micro_batch)
        grads = jax.tree.map(jnp.add, total[1], grads)
        return (total[0] + loss, jax.lax.with_sharding_constraint(grads, placement)), None

    start = jax.lax.with_sharding_constraint(start, placement)
    totals, _ = jax.lax.scan(add, (jnp.zeros(()), start), batch)
    return totals
