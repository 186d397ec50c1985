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
    the last observation of ``optim.telemetry``, packed.
    """
    model, optimizer = program.model, program.optimizer

    def loss_fn(params, tokens: Int[Array, "B S1"]):
        weights = jnp.ones((tokens.shape[0], tokens.shape[1] - 1), jnp.float32)
        total, _ = model.bind(params).loss(tokens, weights)
        return total / weights.size

    def train_step(state: TrainState, tokens: Int[Array, "A B S1"]):
        """One update from one global batch."""
        loss, grads = accumulate(loss_fn, state.params, tokens, program.gradient_shardings)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "lr": program.learning_rate(state.step),
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
            "norms": packed_norms(opt_state),
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


def accumulate(loss_fn, params, micro_batches: Int[Array, "A B S1"], placement):
    """Mean loss and mean gradients over micro-batches, gradients summed in fp32.

    Args:
      loss_fn: (params, micro-batch) → scalar.
      params: parameters.
      micro_batches: A micro-batches.
      placement: of the gradients between micro-batches: a tree of shardings.
    """

    def add(total, tokens):
        loss_and_grads = jax.value_and_grad(loss_fn)(params, tokens)
        total = jax.tree.map(jnp.add, total, loss_and_grads)
        return (total[0], jax.lax.with_sharding_constraint(total[1], placement)), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    zeros = jax.lax.with_sharding_constraint(zeros, placement)
    total, _ = jax.lax.scan(add, (jnp.zeros(()), zeros), micro_batches)
    return jax.tree.map(lambda x: x / micro_batches.shape[0], total)
