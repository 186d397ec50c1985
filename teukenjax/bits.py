"""The sum of an array's bits: equal for equal arrays, on any mesh, in one pass over memory."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32


def bit_sum(x: Array) -> UInt32[Array, ""]:
    """Modulo 2³²; one flipped bit always changes it."""
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    return jnp.sum(bits, dtype=jnp.uint32)


def host_bit_sum(block: np.ndarray) -> int:
    """The same of an fp32 block in the host's memory; an array's is that of its blocks, added."""
    return int(np.sum(np.ascontiguousarray(block).view(np.uint32), dtype=np.uint32))
