"""The softmax of one chunk's logits, held in one of two forms until its sum is known.

``reference`` holds the logits in fp32. ``pallas`` holds exp(logit − top of its part) in 16 bits,
as a kernel leaves it. Either gives its local statistics first, and the gradient of the logits once
the devices that share the vocabulary have agreed on the sum.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from teukenjax.kernels.hopper import PART
from teukenjax.precision import einsum_fp32


class Logits(NamedTuple):
    """Logits in fp32; −∞ where the table has padding."""

    logits: Float[Array, "C V"]

    @classmethod
    def of(cls, hidden: Float[Array, "C D"], table: Float[Array, "V D"], valid, *, keep: bool):
        """The product, of which rows from ``valid`` on are padding."""
        del keep  # what nobody reads, XLA does not keep
        logits = einsum_fp32("cd,vd->cv", hidden, table)
        return cls(jnp.where((jnp.arange(len(table)) < valid)[None], logits, -jnp.inf))

    @property
    def top(self) -> Float[Array, " C"]:
        """The largest logit of each row."""
        return jnp.max(self.logits, axis=-1)

    def total(self, top: Float[Array, " C"]) -> Float[Array, " C"]:
        """Σ exp(logit − top)."""
        return jnp.sum(jnp.exp(self.logits - top[:, None]), axis=-1)

    def scaled(self, log_sum: Float[Array, " C"], scale: Float[Array, " C"]):
        """scale · softmax, in fp32."""
        return scale[:, None] * jnp.exp(self.logits - log_sum[:, None])


class Exponentials(NamedTuple):
    """What ``pallas.exponentials`` returns."""

    powers: Float[Array, "C V"] | None
    tops: Float[Array, "P C"]
    totals: Float[Array, "P C"]

    @classmethod
    def of(
        cls, hidden: Float[Array, "C D"], table: Float[Array, "V D"], valid: Int[Array, ""], *, keep
    ):
        """As ``Logits.of``; ``keep`` says whether ``scaled`` will be asked for."""
        from teukenjax.kernels.cross_entropy.pallas import exponentials

        return cls(*exponentials(hidden, table, valid, keep=keep))

    @property
    def top(self) -> Float[Array, " C"]:
        """The largest logit of each row."""
        return jnp.max(self.tops, axis=0)

    def total(self, top: Float[Array, " C"]) -> Float[Array, " C"]:
        """Σ exp(logit − top)."""
        return jnp.sum(self.totals * jnp.exp(self.tops - top[None]), axis=0)

    def scaled(self, log_sum: Float[Array, " C"], scale: Float[Array, " C"]):
        """scale · softmax, in fp32, before it is rounded again."""
        by_part = scale[:, None] * jnp.exp(self.tops.T - log_sum[:, None])
        by_column = jnp.repeat(by_part, PART, axis=1)[:, : self.powers.shape[1]]
        return by_column * self.powers.astype(jnp.float32)


FORMS = {"reference": Logits, "pallas": Exponentials}


def label_logits(
    hidden: Float[Array, "C D"],
    table: Float[Array, "V D"],
    labels: Int[Array, " C"],
    own: Bool[Array, " C"],
) -> Float[Array, " C"]:
    """hidden · table[label] in fp32 where this device owns the label's row, else 0."""
    rows = table[jnp.where(own, labels, 0)].astype(jnp.float32)
    return jnp.where(own, jnp.sum(hidden.astype(jnp.float32) * rows, axis=-1), 0.0)
