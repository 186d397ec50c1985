"""How weights start: Teuken's two normal standard deviations, or the boundary of Scion's balls."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from teukenjax.model.layers import Initializer
from teukenjax.optim.lmo import ColNorm, RowNorm, Spectral
from teukenjax.optim.scion import LeafSpec
from teukenjax.recipe import ModelConfig
from teukenjax.sharding import WeightSpec


def initializers(config: ModelConfig) -> tuple[Initializer, Initializer]:
    """The start of ordinary weights, and of those that write into the residual stream.

    ``normal`` is Teuken's (its training script): N(0, init_std), and N(0, init_std / √(2L)) for
    the attention output and the down projection. ``boundary`` is that of "Optimal Scaling Needs
    Optimal Norm" (section A.2): hidden matrices semi-orthogonal with RMS→RMS norm 1, the same two
    further scaled by 1/√(2L); rows of the embedding of norm √D, rows of the head of norm 1/√D.
    """
    residual = 1 / math.sqrt(2 * config.layers)
    if config.init == "normal":
        return normal(config.init_std), normal(config.init_std * residual)
    return boundary(1.0), boundary(residual)


def leaf_spec(spec: WeightSpec) -> LeafSpec:
    """A weight's declaration as the optimizer reads it: axes by position."""
    return LeafSpec(spec.role, spec.positions(spec.fan_in), spec.positions(spec.fan_out))


def normal(std: float) -> Initializer:
    """N(0, std), whatever the role."""

    def init(key: Array, shape: tuple[int, ...], spec: WeightSpec) -> Array:
        del spec
        return std * jax.random.normal(key, shape, jnp.float32)

    return init


def boundary(scale: float) -> Initializer:
    """On the unit ball of the norm that belongs to the weight's role, times ``scale``."""
    norms = {"input": ColNorm(), "hidden": Spectral(), "output": RowNorm()}

    def init(key: Array, shape: tuple[int, ...], spec: WeightSpec) -> Array:
        leaf = leaf_spec(spec)
        matrices = jax.eval_shape(leaf.to_matrices, jax.ShapeDtypeStruct(shape, "float32"))
        start = norms[spec.role].boundary_init(key, matrices.shape)
        return scale * leaf.from_matrices(start, shape)

    return init
