"""The state of training, and the one function that says what it looks like on a mesh.

``Program.abstract_state`` is the source of truth for initialisation, restoring, planning and
deviceless compilation: shapes and placements, no memory.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Integer

from teukenjax.kernels.choice import Device, choose_kernels, chosen
from teukenjax.model import Functional, Model, leaf_spec
from teukenjax.model.lora import Adapted
from teukenjax.model.neftune import Noisy
from teukenjax.optim.build import build_optimizer, gradient_start, is_light
from teukenjax.optim.guard import guard
from teukenjax.optim.schedules import schedule
from teukenjax.recipe import ComputeConfig, Recipe
from teukenjax.sharding import Layout, is_spec, tree_shardings


class TrainState(NamedTuple):
    """Everything that a step reads and writes."""

    step: Int[Array, ""]  # optimizer steps done
    params: Any  # nested dict, fp32: what is trained, and what is frozen beside it
    opt_state: Any


class Placement(NamedTuple):
    """Where what is shaped like the parameters lives: trees of ``NamedSharding``."""

    params: Any
    gradients: Any  # after their reduction, and while they are accumulated
    moments: Any

    @classmethod
    def of(cls, model: Model, layout: Layout) -> "Placement":
        """By the strategy's row of the sharding table; raises as ``tree_shardings``."""
        row, (specs, _), (shapes, _) = layout.row, *map(model.split, (model.specs, model.abstract))
        trained = (tree_shardings(layout, specs, shapes, x) for x in (row.gradients, row.optimizer))
        return cls(tree_shardings(layout, model.specs, model.abstract, row.parameters), *trained)


class Program:
    """A recipe on a mesh: model, optimizer and where their state lives. Holds no arrays."""

    def __init__(self, recipe: Recipe, layout: Layout, *, platform: str):
        """Args: a resolved recipe, mesh and strategy, and what the mesh's devices are."""
        self.recipe, self.layout = recipe, layout
        tokens = recipe.tokens_per_step // recipe.batch.accumulation // layout.batch_shards
        device = Device(platform, layout.device_kind)
        self.kernels = choose_kernels(recipe, device, tokens=max(tokens, 1))
        compute = recipe.compute.model_copy(update={"kernels": chosen(self.kernels)})
        self.model = build_model(recipe, compute, layout)
        self.learning_rate = schedule(
            recipe.schedule, learning_rate=recipe.optimizer.learning_rate, steps=recipe.steps
        )
        self.placed = Placement.of(self.model, layout)
        trained, _ = self.model.split(self.model.specs)
        self.leaf_specs = jax.tree.map(leaf_spec, trained, is_leaf=is_spec)
        self.optimizer = self._optimizer(self.learning_rate)
        self.gradient_start = gradient_start(recipe.optimizer)

    def steered(
        self,
        learning_rate: optax.Schedule,
        wrap: Callable[[optax.GradientTransformation], optax.GradientTransformation],
    ) -> "Program":
        """The same program with another learning rate, and its optimizer wrapped.

        Both may hold traced values, so that one compiled step serves many runs.
        """
        other = copy.copy(self)
        for cached in ("shardings", "abstract_state"):  # of the optimizer's old state
            other.__dict__.pop(cached, None)
        other.learning_rate = learning_rate
        other.optimizer = self._optimizer(learning_rate, wrap)
        return other

    @functools.cached_property
    def shardings(self) -> TrainState:
        """The placement of each array of the state."""
        whole, (shapes, _) = self.layout.replicated(), self.model.split(self.model.abstract)
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
        shapes = jax.eval_shape(self.born, jnp.uint32(0))
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings
        )

    def _optimizer(
        self, learning_rate: optax.Schedule, wrap=lambda optimizer: optimizer
    ) -> optax.GradientTransformationExtraArgs:
        recipe = self.recipe
        optimizer = build_optimizer(
            recipe.optimizer,
            learning_rate,
            self.leaf_specs,
            recipe.telemetry,
            steps=recipe.steps,
            shardings=self.placed.moments,
            update_shardings=self.model.split(self.placed.params)[0],
            symmetric_matmul=chosen(self.kernels).symmetric_matmul,
        )
        return guard(
            wrap(optimizer),
            z=None if recipe.guard.spikes == "ignore" else recipe.guard.z,
            light=is_light(recipe.optimizer),
        )

    def init(self) -> TrainState:
        """A fresh state, born in its placement."""
        seed = jnp.uint32(self.recipe.seed)
        return jax.jit(self.born, out_shardings=self.shardings)(seed)

    def init_from(self, params: Any) -> TrainState:
        """A state that begins as the model with ``params``, which are on any devices."""
        _, base = self.model.split(self.placed.params)
        placed = jax.device_put(params, base or self.placed.params)
        seed = jnp.uint32(self.recipe.seed)
        start = jax.jit(
            lambda params, seed: self._state(self.model.around(params, seed)),
            out_shardings=self.shardings,
        )
        return start(placed, seed)

    def born(self, seed: Integer[Array, ""]) -> TrainState:
        """A fresh state from a seed: ``init``, traced."""
        return self._state(self.model.init(seed))

    def _state(self, params) -> TrainState:
        trained, _ = self.model.split(params)
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(trained))


def build_model(recipe: Recipe, compute: ComputeConfig, layout: Layout) -> Model:
    """The model of a recipe: Teuken, with adapters and noise if it asks for them."""
    model = Functional(recipe.model, compute, layout)
    if recipe.sft is not None and recipe.sft.lora is not None:
        model = Adapted(model, recipe.sft.lora)
    if recipe.sft is not None and recipe.sft.neftune is not None:
        model = Noisy(model, alpha=recipe.sft.neftune, seed=recipe.seed)
    return model
