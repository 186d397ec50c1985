"""One optimizer step, to be read aloud; everything that varies is composed outside of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from teukenjax.optim.telemetry import packed_norms
from teukenjax.sharding import Layout
from teukenjax.train.state import Program, TrainState

Metrics = dict[str, Any]


def make_train_step(program: Program) -> Callable[[TrainState, Array], tuple[TrainState, Metrics]]:
    """The jitted step ``(state, tokens [A, B/A, S+1]) → (state, metrics)``; state is donated.

    A is the number of micro-batches. Metrics are fp32 scalars on the device: loss (nats per
    token), lr, and the global norms of gradient, update and parameters; besides, under ``norms``,
    the last observation of ``optim.telemetry``, packed, and the ``verdict`` of ``optim.guard``.
    """
    model, optimizer = program.model, program.optimizer

    def loss_fn(params, tokens: Int[Array, "B S1"]):
        weights = jnp.ones((tokens.shape[0], tokens.shape[1] - 1), jnp.float32)
        total, _ = model.bind(params).loss(tokens, weights)
        return total / weights.size

    def train_step(state: TrainState, tokens: Int[Array, "A B S1"]):
        """One update from one global batch."""
        start = program.gradient_start(state.opt_state, state.params)
        loss, grads = accumulate(loss_fn, state.params, tokens, start, program.placed.gradients)
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


def batch_sharding(layout: Layout) -> jax.sharding.NamedSharding:
    """The placement of a batch [A, B/A, S+1]: each micro-batch is split over the batch axes."""
    return layout.batch(leading=1, trailing=1)


def accumulate(loss_fn, params, micro_batches: Int[Array, "A B S1"], start, placement):
    """Mean loss of the micro-batches, and ``start`` plus the mean of their gradients.

    Args:
      loss_fn: (params, micro-batch) → scalar.
      params: parameters.
      micro_batches: A micro-batches.
      start: fp32 arrays like the parameters.
      placement: of the gradients between micro-batches: a tree of shardings.
    """

    def add(total, tokens):
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
        grads = jax.tree.map(lambda sum_, g: sum_ + g / len(micro_batches), total[1], grads)
        return (total[0] + loss, jax.lax.with_sharding_constraint(grads, placement)), None

    start = jax.lax.with_sharding_constraint(start, placement)
    (loss, grads), _ = jax.lax.scan(add, (jnp.zeros(()), start), micro_batches)
    return loss / len(micro_batches), grads
