"""From scores to tokens: greedy, temperature, top-k, top-p, repetition penalty, by row.

How to choose is data, not program: one compiled step serves rows that each choose their own way.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from teukenjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose; the defaults are those of Teuken's model card."""

    temperature: float = 0.7  # 0: always the most likely token
    top_k: int = 50  # choose among this many; 0: all
    top_p: float = 0.95  # choose among the fewest that hold this probability
    repetition_penalty: float = 1.0  # scores of tokens that were there: divided by it, or times it
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):  # NaN is refused too
            raise UserError(f"temperature={self.temperature}: allowed: 0 or more")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k}: allowed: 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: allowed: above 0, up to 1")
        if not 0 < np.float32(self.repetition_penalty) < float("inf"):
            raise UserError(f"repetition_penalty={self.repetition_penalty}: allowed: above 0")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: allowed: 0 to {2**32 - 1}")


class Choice(NamedTuple):
    """``Sampling`` of each row, as arrays."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    repetition_penalty: Float[Array, " B"]
    key: Key[Array, " B"]

    @classmethod
    def of(cls, rows: Sequence[Sampling]) -> "Choice":
        """One row for each."""
        whole = np.iinfo(np.int32).max
        return cls(
            temperature=jnp.array([how.temperature for how in rows], jnp.float32),
            top_k=jnp.array([min(how.top_k or whole, whole) for how in rows], jnp.int32),
            top_p=jnp.array([how.top_p for how in rows], jnp.float32),
            repetition_penalty=jnp.array([how.repetition_penalty for how in rows], jnp.float32),
            key=jax.vmap(jax.random.key)(np.array([how.seed for how in rows], np.uint32)),
        )


def sample(
    logits: Float[Array, "B V"],
    seen: Bool[Array, "B V"],
    choice: Choice,
    positions: Int[Array, " B"],
) -> Int[Array, " B"]:
    """One token id a row.

    A row's draw depends on its seed and its position alone, not on the rows beside it.

    Args:
      logits: scores.
      seen: which tokens the row holds already.
      choice: how.
      positions: of the tokens that are chosen.
    """
    penalty = choice.repetition_penalty[:, None]
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(seen, penalised, logits)
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in)(choice.key, positions)
    drawn = jax.lax.cond(  # ranking a vocabulary takes longer than a layer
        jnp.any(choice.temperature > 0),
        lambda: jax.vmap(_draw)(keys, logits, choice),
        lambda: likeliest,
    )
    return jnp.where(choice.temperature > 0, drawn, likeliest)


def _draw(key: Key[Array, ""], logits: Float[Array, " V"], how: Choice) -> Int[Array, ""]:
    order = jnp.argsort(logits, descending=True)
    heat = jnp.where(how.temperature > 0, how.temperature, 1.0)
    ranked = (logits[order] - logits[order[0]]) / heat  # of a tiny temperature no score overflows
    ranked = jnp.where(jnp.arange(logits.size) < how.top_k, ranked, -jnp.inf)
    probability = jax.nn.softmax(ranked)
    before = jnp.cumsum(probability) - probability  # the most likely token is always kept
    ranked = jnp.where(before < how.top_p, ranked, -jnp.inf)
    return order[jax.random.categorical(key, ranked)].astype(jnp.int32)
