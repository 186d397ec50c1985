"""From scores to one token: greedy, temperature, top-k, top-p."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from teukenjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose; the defaults are those of Teuken's model card."""

    temperature: float = 0.7  # 0: always the most likely token
    top_k: int = 50  # choose among this many; 0: all
    top_p: float = 0.95  # choose among the fewest that hold this probability
    seed: int = 0

    def __post_init__(self):
        if not self.temperature >= 0:  # NaN is refused too
            raise UserError(f"temperature={self.temperature}: allowed: 0 or more")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k}: allowed: 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: allowed: above 0, up to 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: allowed: 0 to {2**32 - 1}")


@functools.partial(jax.jit, static_argnums=2)
def sample(key: Array, logits: Float[Array, " V"], how: Sampling) -> Int[Array, ""]:
    """One token id."""
    if how.temperature == 0:
        return jnp.argmax(logits)
    order = jnp.argsort(logits, descending=True)
    ranked = logits[order] / how.temperature
    if how.top_k:
        ranked = jnp.where(jnp.arange(logits.size) < how.top_k, ranked, -jnp.inf)
    probability = jax.nn.softmax(ranked)
    before = jnp.cumsum(probability) - probability  # the most likely token is always kept
    ranked = jnp.where(before < how.top_p, ranked, -jnp.inf)
    return order[jax.random.categorical(key, ranked)]
