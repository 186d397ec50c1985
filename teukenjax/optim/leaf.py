"""How each parameter acts as a linear map: told, not guessed from its rank.

Attention weights have four axes with the stack of layers, a head may be stored as [V, D] or
[D, V]; no rule on shapes gets them all right. So each leaf carries a ``LeafSpec``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jaxtyping import Array, Shaped

Role = Literal["input", "hidden", "output", "gain"]
Specs = Any  # a pytree shaped like the parameters, of LeafSpec


@dataclass(frozen=True)
class LeafSpec:
    """Role and axes of one parameter.

    Examples, as (fan_in, fan_out): a query weight [L, D, H, N] has (1,) and (2, 3), an attention
    output [L, H, N, D] has (1, 2) and (3,), an embedding [V, D] has (0,) and (1,), a head stored
    as [V, D] has (1,) and (0,), a gain [L, D] has () and (1,). A fused matrix must be split first:
    each part has a ball of its own.

    Attributes:
      role: input (takes one-hot vectors), hidden, output (gives logits), or gain (multiplies a
        normalised activation). One table used as both embedding and head has the role output.
      fan_in: axes that are summed over when the weight is applied; empty for a gain.
      fan_out: axes that are produced. Axes in neither are a stack of separate matrices.
    """

    role: Role
    fan_in: tuple[int, ...]
    fan_out: tuple[int, ...]

    def to_matrices(self, leaf: Shaped[Array, "..."]) -> Shaped[Array, "*stack d_in d_out"]:
        """The matrices that the leaf stands for; the fans are flattened in the order given."""
        order = self._order(leaf.ndim)
        stack = [leaf.shape[axis] for axis in order[: leaf.ndim - len(self.fan_in + self.fan_out)]]
        d_in = math.prod(leaf.shape[axis] for axis in self.fan_in)
        d_out = math.prod(leaf.shape[axis] for axis in self.fan_out)
        return leaf.transpose(order).reshape(*stack, d_in, d_out)

    def from_matrices(
        self, matrices: Shaped[Array, "*stack d_in d_out"], shape: tuple[int, ...]
    ) -> Shaped[Array, "..."]:
        """The leaf of this shape whose matrices these are."""
        order = self._order(len(shape))
        ordered = matrices.reshape([shape[axis] for axis in order])
        return ordered.transpose([order.index(axis) for axis in range(len(shape))])

    def check(self, name: str, ndim: int) -> None:
        """Raises ``ValueError``, naming the leaf, unless the axes fit an array of ``ndim`` axes."""
        fans = self.fan_in + self.fan_out
        described = f"{name}: fan_in={self.fan_in}, fan_out={self.fan_out}"
        if len(set(fans)) < len(fans):
            raise ValueError(f"{described}: an axis is named twice")
        if not all(0 <= axis < ndim for axis in fans):
            raise ValueError(f"{described}: the array has {ndim} axes, counted from 0")
        if not self.fan_out or not (self.fan_in or self.role == "gain"):
            raise ValueError(f"{described}: incomplete; only a gain may have no fan_in")

    def _order(self, ndim: int) -> tuple[int, ...]:
        """All axes: stack, fan-in, fan-out."""
        fans = self.fan_in + self.fan_out
        return (*(axis for axis in range(ndim) if axis not in fans), *fans)


def map_leaves(function: Callable, specs: Specs, tree: Any, *rest: Any) -> Any:
    """``function(spec, leaf, *leaves of rest)`` over a tree, after checking each spec.

    Where ``specs`` has a leaf and ``tree`` has none (None, ``optax.MaskedNode``), the nothing that
    is there is kept: so the parts of a model that are frozen or trained otherwise pass through.
    """

    def on_leaf(path, spec: LeafSpec, leaf, *others):
        if not jax.tree.leaves(leaf):
            return leaf
        spec.check(jax.tree_util.keystr(path), leaf.ndim)
        return function(spec, leaf, *others)

    return jax.tree.map_with_path(on_leaf, specs, tree, *rest)
