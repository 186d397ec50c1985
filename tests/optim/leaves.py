"""One leaf of each kind that Teuken has, small."""

import jax.numpy as jnp
from golden import gaussian

from teukenjax.optim import LeafSpec

SHAPES = {
    "embedding": (24, 8),
    "query": (2, 8, 4, 3),
    "out": (2, 4, 3, 8),
    "gain": (2, 8),
    "head": (24, 8),
}
SPECS = {
    "embedding": LeafSpec("input", (0,), (1,)),
    "query": LeafSpec("hidden", (1,), (2, 3)),
    "out": LeafSpec("hidden", (1, 2), (3,)),
    "gain": LeafSpec("gain", (), (1,)),
    "head": LeafSpec("output", (1,), (0,)),
}


def random_tree(seed, dtype=jnp.float32):
    """Gaussian leaves."""
    return {
        name: gaussian(*shape, seed=10 * seed + i, dtype=dtype)
        for i, (name, shape) in enumerate(SHAPES.items())
    }
