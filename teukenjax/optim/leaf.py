"""How each parameter acts as a linear map: told, not guessed from its rank.

Attention weights have four axes with the stack of layers, a head may be stored as [V, D] or
[D, V]; no rule on shapes gets them all right. So each leaf carries a ``LeafSpec``.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from teukenjax.optim.lmo import OperatorNorm

Role = Literal["input", "hidden", "output", "gain"]
Specs = Any  # a pytree shaped like the parameters, of LeafSpec


@dataclass(frozen=True)
class LeafSpec:
    """Role and axes of one parameter, and what it wants otherwise than its role.

    Examples, as (fan_in, fan_out): a query weight [L, D, H, N] has (1,) and (2, 3), an attention
    output [L, H, N, D] has (1, 2) and (3,), an embedding [V, D] has (0,) and (1,), a head stored
    as [V, D] has (1,) and (0,), a gain [L, D] has () and (1,).

    Attributes:
      role: input (takes one-hot vectors), hidden, output (gives logits), or gain (multiplies a
        normalised activation). One table used as both embedding and head has the role output.
      fan_in: axes that are summed over when the weight is applied; empty for a gain.
      fan_out: axes that are produced.
      stack: axes that number separate matrices (layers, experts). None: all in neither fan.
      parts: sizes along the first axis of fan_out of matrices that are stored as one, each of
        which has a ball of its own: (H, K, K) for a fused query-key-value [D, H + 2K, N].
      norm: instead of the role's, such as ``SpectralConv`` for a convolution.
      radius: ρ instead of the role's.
      multiplier: of the learning rate, instead of the role's.
    """

    role: Role
    fan_in: tuple[int, ...]
    fan_out: tuple[int, ...]
    stack: tuple[int, ...] | None = None
    parts: tuple[int, ...] = ()
    norm: OperatorNorm | None = None
    radius: float | None = None
    multiplier: float | None = None

    def rate(self, multipliers: Mapping[Role, float]) -> float:
        """The leaf's factor of the learning rate: its own, or that of its role."""
        return multipliers[self.role] if self.multiplier is None else self.multiplier

    def on_matrices(self, function: Callable, leaf: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """``function`` of the matrices [*stack, d_in, d_out] of each part, as a leaf again."""
        pieces = [
            self.from_matrices(function(self.to_matrices(piece)), piece.shape)
            for piece in self.split(leaf)
        ]
        return self.join(pieces)

    def split(self, leaf: Shaped[Array, "..."]) -> list[Shaped[Array, "..."]]:
        """The parts of a fused leaf; of any other, the leaf."""
        if not self.parts:
            return [leaf]
        ends = [sum(self.parts[: i + 1]) for i in range(len(self.parts) - 1)]
        return jnp.split(leaf, ends, axis=self.fan_out[0])

    def join(self, pieces: list[Shaped[Array, "..."]]) -> Shaped[Array, "..."]:
        """The leaf of these parts."""
        return jnp.concatenate(pieces, axis=self.fan_out[0]) if self.parts else pieces[0]

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

    def check(self, name: str) -> None:
        """Raises ``ValueError``, naming the leaf, for what is wrong whatever the array."""
        if self.role not in get_args(Role):
            raise ValueError(f"{name}: role={self.role!r}: one of {', '.join(get_args(Role))}")
        for what, value in (("radius", self.radius), ("multiplier", self.multiplier)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: {what}={value}: must be positive")
        fans, described = self.fan_in + self.fan_out, self._described(name)
        if len(set(fans)) < len(fans):
            raise ValueError(f"{described}: an axis is named twice")
        if shared := set(fans) & set(self.stack or ()):
            raise ValueError(f"{described}: axis {min(shared)} is also in a fan")
        if not self.fan_out or not (self.fan_in or self.role == "gain"):
            raise ValueError(f"{described}: incomplete; only a gain may have no fan_in")

    def check_array(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ``ValueError``, naming the leaf, unless the axes fit an array of this shape."""
        self.check(name)
        described, ndim = self._described(name), len(shape)
        named = self.fan_in + self.fan_out + (self.stack or ())
        if not all(0 <= axis < ndim for axis in named):
            raise ValueError(f"{described}: the array has {ndim} axes, counted from 0")
        if self.stack is not None and len(named) < ndim:
            missing = min(set(range(ndim)) - set(named))
            raise ValueError(f"{described}: axis {missing} of {list(shape)} is in none of them")
        if self.parts and sum(self.parts) != shape[self.fan_out[0]]:
            raise ValueError(
                f"{name}: parts={self.parts}: add up to {sum(self.parts)}, but axis "
                f"{self.fan_out[0]} of {list(shape)} has {shape[self.fan_out[0]]}"
            )

    def _described(self, name: str) -> str:
        stack = "" if self.stack is None else f", stack={self.stack}"
        return f"{name}: fan_in={self.fan_in}, fan_out={self.fan_out}{stack}"

    def _order(self, ndim: int) -> tuple[int, ...]:
        """All axes: stack, fan-in, fan-out."""
        fans = self.fan_in + self.fan_out
        return (*(axis for axis in range(ndim) if axis not in fans), *fans)


def match_specs(params: Any, rules: Mapping[str, LeafSpec]) -> Specs:
    """A spec for each parameter, by its path.

        match_specs(params, {
            r"embed": LeafSpec("input", fan_in=(0,), fan_out=(1,)),
            r"bias|scale": LeafSpec("gain", fan_in=(), fan_out=(0,)),
            r"kernel": LeafSpec("hidden", fan_in=(0,), fan_out=(1,)),
        })

    Args:
      params: a pytree of arrays or ``ShapeDtypeStruct``.
      rules: regular expressions, searched for in paths such as ``layers.0.kernel``; the first
        that is found decides.

    Raises:
      ValueError: for a parameter that no rule matches, a rule that decides no parameter, or a
        spec that does not fit its array, each by name.
    """
    used: set[str] = set()

    def choose(path, leaf) -> LeafSpec:
        name = leaf_name(path)
        for pattern, spec in rules.items():
            if re.search(pattern, name):
                used.add(pattern)
                spec.check_array(name, leaf.shape)
                return spec
        raise ValueError(f"{name}: has no role: none of {', '.join(map(repr, rules))} matches it")

    specs = jax.tree.map_with_path(choose, params)
    if unused := [pattern for pattern in rules if pattern not in used]:
        raise ValueError(f"{unused[0]!r}: decides no parameter")
    return specs


def leaf_name(path: Any) -> str:
    """A leaf's path as messages and rules have it: ``layers.attention.query``."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "the only leaf"


def check_specs(specs: Specs) -> None:
    """Raises ``ValueError``, naming the leaf, for the first spec that is wrong by itself."""
    for path, spec in jax.tree.leaves_with_path(specs):
        if not isinstance(spec, LeafSpec):
            raise ValueError(f"{leaf_name(path)}: has no role: {spec!r} is no LeafSpec")
        spec.check(leaf_name(path))


def map_leaves(function: Callable, specs: Specs, tree: Any, *rest: Any) -> Any:
    """``function(spec, leaf, *leaves of rest)`` over a tree, after checking each spec.

    Where ``specs`` has a leaf and ``tree`` has none (None, ``optax.MaskedNode``), the nothing that
    is there is kept: so the parts of a model that are frozen or trained otherwise pass through.
    """

    def on_leaf(path, spec: LeafSpec, leaf, *others):
        if not jax.tree.leaves(leaf):
            return leaf
        spec.check_array(leaf_name(path), leaf.shape)
        return function(spec, leaf, *others)

    return jax.tree.map_with_path(on_leaf, specs, tree, *rest)
