"""What a step reads: tokens, and what a packed or masked batch knows about them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from teukenjax.recipe import Recipe
from teukenjax.sharding import Layout


class Batch(NamedTuple):
    """A micro-batches of B sequences; without the leading axis, one micro-batch.

    Fields that a batch does not need are None, and then no part of the compiled step.
    """

    tokens: Int[Array, "*A B S1"]  # inputs and, one further, their targets
    weights: Float[Array, "*A B S"] | None = None  # of each target in the loss; none: all alike
    segments: Int[Array, "*A B S"] | None = None  # attention stays inside equal numbers
    positions: Int[Array, "*A B S"] | None = None  # of the inputs in their segments, for RoPE

    def normalised(self) -> "Batch":
        """The same with weights that sum to one over the whole batch (0 where all are masked)."""
        if self.weights is None:
            shape = (*self.tokens.shape[:-1], self.tokens.shape[-1] - 1)
            return self._replace(weights=jnp.full(shape, 1 / np.prod(shape), jnp.float32))
        total = jnp.maximum(jnp.sum(self.weights), jnp.finfo(jnp.float32).tiny)
        return self._replace(weights=self.weights / total)


def batch_sharding(layout: Layout) -> jax.sharding.NamedSharding:
    """The placement of every field [A, B, …]: each micro-batch is split over the batch axes."""
    return layout.batch(leading=1, trailing=1)


def abstract_batch(recipe: Recipe, layout: Layout, *, segmented: bool = False) -> Batch:
    """Shapes and placements of the batches of a recipe, for compiling."""
    parts, S = recipe.batch.accumulation, recipe.model.context
    lead = (parts, recipe.batch.sequences // parts)

    def field(width, dtype):
        return jax.ShapeDtypeStruct((*lead, width), dtype, sharding=batch_sharding(layout))

    tokens = field(S + 1, jnp.int32)
    if not segmented:
        return Batch(tokens)
    return Batch(tokens, field(S, jnp.float32), field(S, jnp.int32), field(S, jnp.int32))


def place_batch(samples: dict[str, np.ndarray], parts: int, layout: Layout) -> Batch:
    """This host's rows of a batch, in ``parts`` micro-batches on the mesh.

    Args:
      samples: stacked samples of ``data.packing``; padding (segment 0) gets the weight 0.
      parts: A.
      layout: mesh and strategy.
    """
    fields = dict(samples)
    if "segments" in fields and "weights" not in fields:
        fields["weights"] = (fields["segments"] > 0).astype(np.float32)

    def place(x):
        split = x.reshape(parts, len(x) // parts, *x.shape[1:])
        return jax.make_array_from_process_local_data(batch_sharding(layout), split)

    return Batch(**{key: place(x) for key, x in fields.items()})
