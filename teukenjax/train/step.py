"""One optimizer step, to be read aloud; everything that varies is composed outside of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from teukenjax.flags import compiler_options
from teukenjax.optim.steer import applied_factor
from teukenjax.optim.telemetry import packed_norms
from teukenjax.train.batch import Batch, batch_sharding
from teukenjax.train.state import Program, TrainState

Metrics = dict[str, Any]


def make_train_step(program: Program) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """``train_step`` jitted, with everything in its placement; state is donated."""
    return jax.jit(
        train_step(program),
        donate_argnums=0,
        in_shardings=(program.shardings, batch_sharding(program.layout)),
        out_shardings=(program.shardings, program.layout.replicated()),
        compiler_options=compiler_options(program.recipe.compute),
    )


def train_step(
    program: Program, accumulate: Callable | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step ``(state, batch) → (state, metrics)``, a pure function.

    Metrics are fp32 scalars on the device: loss (nats per token, z-loss included), lr, and the
    global norms of gradient, update and parameters; besides, under ``norms``, the last observation
    of ``optim.telemetry``, packed, and the ``verdict`` of ``optim.guard``.

    ``accumulate`` sums the micro-batches: in place by default, by value where a step is vmapped.
    """
    model, optimizer = program.model, program.optimizer
    accumulate = accumulate or accumulate_in_place

    def step(state: TrainState, batch: Batch):
        """One update from one global batch."""
        trained, frozen = model.split(state.params)
        copies = model.copies(trained)

        def loss_fn(trained, batch: Batch):
            return model.bind(model.join(trained, frozen), copies).loss(*batch)[0]

        start = program.gradient_start(state.opt_state, trained)
        batch = batch.normalised()
        loss, grads = accumulate(loss_fn, trained, batch, start, program.placed.gradients)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, trained, value=loss)
            params = model.join(optax.apply_updates(trained, updates), frozen)
        with jax.named_scope("metrics"):
            metrics = {
                "loss": loss,
                "lr": program.learning_rate(state.step) * applied_factor(opt_state),
                "grad_norm": optax.tree.norm(grads),
                "update_norm": optax.tree.norm(updates),
                "param_norm": optax.tree.norm(params),
                "norms": packed_norms(opt_state),
                "verdict": opt_state.verdict,
            }
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def accumulate_in_place(loss_fn, params, batch: Batch, start, placement):
    """The micro-batches' losses summed, and ``start`` plus the sum of their gradients.

    Args:
      loss_fn: (params, micro-batch) → scalar.
      params: parameters.
      batch: A micro-batches.
      start: fp32 arrays like the parameters.
      placement: of the gradients between micro-batches: a tree of shardings.
    """

    def add(loss, micro_batch):
        value, pull_back = jax.vjp(lambda p: loss_fn(p, micro_batch), params)
        # Each layer's gradient is added where the sum is, when the backward pass has made it:
        # no micro-batch has a tree of gradients of its own.
        pull_back.with_refs(sums)(jnp.ones_like(value))
        return loss + value, None

    sums = jax.tree.map(jax.new_ref, jax.lax.with_sharding_constraint(start, placement))
    loss, _ = jax.lax.scan(add, jnp.zeros(()), batch)
    return loss, jax.tree.map(jax.freeze, sums)


def accumulate_values(loss_fn, params, batch: Batch, start, placement):
    """The same with values instead of references, which vmap does not take."""

    def add(total, micro_batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, micro_batch)
        grads = jax.tree.map(jnp.add, total[1], grads)
        return (total[0] + loss, jax.lax.with_sharding_constraint(grads, placement)), None

    start = jax.lax.with_sharding_constraint(start, placement)
    totals, _ = jax.lax.scan(add, (jnp.zeros(()), start), batch)
    return totals
