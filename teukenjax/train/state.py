"""The state of training, and the one function that says what it looks like on a mesh.

``Program.abstract_state`` is the source of truth for initialisation, restoring, planning and
deviceless compilation: shapes and placements, no memory.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from teukenjax.model import Functional, leaf_spec
from teukenjax.optim.build import build_optimizer, gradient_start, is_light
from teukenjax.optim.guard import guard
from teukenjax.optim.schedules import schedule
from teukenjax.recipe import Recipe
from teukenjax.run import concrete
from teukenjax.sharding import Layout, WeightSpec, tree_shardings


class TrainState(NamedTuple):
    """Everything that a step reads and writes."""

    step: Int[Array, ""]  # optimizer steps done
    params: Any  # nested dict, fp32
    opt_state: Any


class Placement(NamedTuple):
    """Where what is shaped like the parameters lives: trees of ``NamedSharding``."""

    params: Any
    gradients: Any  # after their reduction, and while they are accumulated
    moments: Any

    @classmethod
    def of(cls, model: Functional, layout: Layout) -> "Placement":
        """By the strategy's row of the sharding table; raises as ``tree_shardings``."""
        row = layout.row
        rules = (row.parameters, row.gradients, row.optimizer)
        return cls(*(tree_shardings(layout, model.specs, model.abstract, rule) for rule in rules))


class Program:
    """A recipe on a mesh: model, optimizer and where their state lives. Holds no arrays."""

    def __init__(self, recipe: Recipe, layout: Layout, *, platform: str):
        """Args: a resolved recipe, mesh and strategy, and what the mesh's devices are."""
        self.recipe, self.layout = recipe, layout
        self.model = Functional(recipe.model, concrete(recipe, platform), layout)
        self.learning_rate = schedule(
            recipe.schedule, learning_rate=recipe.optimizer.learning_rate, steps=recipe.steps
        )
        self.placed = Placement.of(self.model, layout)
        self.leaf_specs = jax.tree.map(leaf_spec, self.model.specs, is_leaf=_is_spec)
        optimizer = build_optimizer(
            recipe.optimizer,
            self.learning_rate,
            self.leaf_specs,
            recipe.telemetry,
            shardings=self.placed.moments,
            update_shardings=self.placed.params,
        )
        self.optimizer: optax.GradientTransformationExtraArgs = guard(
            optimizer,
            z=None if recipe.guard.spikes == "ignore" else recipe.guard.z,
            light=is_light(recipe.optimizer),
        )
        self.gradient_start = gradient_start(recipe.optimizer)

    @functools.cached_property
    def shardings(self) -> TrainState:
        """The placement of each array of the state."""
        whole, shapes = self.layout.replicated(), self.model.abstract
        structure = jax.tree.structure(shapes)

        def is_moment(node) -> bool:
            return jax.tree.structure(node) == structure

        # Parts of the optimizer's state that look like the parameters are placed by the table's
        # optimizer row; what is left is small, and whole everywhere.
        opt_state = jax.tree.map(
            lambda node: self.placed.moments if is_moment(node) else whole,
            jax.eval_shape(self.optimizer.init, shapes),
            is_leaf=is_moment,
        )
        return TrainState(whole, self.placed.params, opt_state)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and placements of the state."""
        shapes = jax.eval_shape(self._init, jnp.uint32(0))
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings
        )

    def init(self) -> TrainState:
        """A fresh state, born in its placement."""
        seed = jnp.uint32(self.recipe.seed)
        return jax.jit(self._init, out_shardings=self.shardings)(seed)

    def _init(self, seed) -> TrainState:
        params = self.model.init(seed)
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params))


def _is_spec(node: Any) -> bool:
    return isinstance(node, WeightSpec)
