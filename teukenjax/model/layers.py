"""The parts of a Teuken block, in Flax NNX.

Letters: B batch, S sequence, D width, H query heads, K KV heads, N head dim, F FFN inner,
V vocabulary (padded). A weight declares its named axes, its role and its fan-in and fan-out once,
here; sharding, Scion, checkpoints and the export all read that declaration.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name as name  # what a remat policy may save
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from teukenjax.kernels.attention.api import attention, cached_attention
from teukenjax.kernels.rms_norm import add_rms_norm, rms_norm
from teukenjax.kernels.rms_norm.reference import reference_rms_norm
from teukenjax.model.product import product
from teukenjax.recipe import ComputeConfig, ModelConfig
from teukenjax.sharding import BATCH_AXES, Layout, WeightSpec

Initializer = Callable[..., Array]
KeyValue = tuple[Array, Array]  # keys and values, each [B, C, K, N]


class Weight(nnx.Param):
    """A parameter in fp32 that carries its ``WeightSpec`` as ``spec``."""


def weight(init: Initializer, shape: tuple[int, ...], spec: WeightSpec, rngs: nnx.Rngs) -> Weight:
    """A weight of this shape; ``init`` is called as ``init(key, shape, spec)``."""
    assert len(shape) == len(spec.axes)
    return Weight(init(rngs.params(), shape, spec), spec=spec)


def ones(key: Array, shape: tuple[int, ...], spec: WeightSpec) -> Array:
    """The start of a norm gain."""
    del key, spec
    return jnp.ones(shape, jnp.float32)


def rope_angles(
    positions: Int[Array, "B S"], *, head_dim: int, theta: float
) -> tuple[Float[Array, "B S half"], Float[Array, "B S half"]]:
    """cos and sin of position · theta^(−2i/N), exact in fp32.

    Teuken's public training code rounded frequencies and positions to bf16, which leaves 769
    distinct positions out of 4096; inference code uses fp32 angles, and so do we.
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[..., None] * frequencies[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: Float[Array, "B S H N"], rope: tuple[Array, Array]) -> Float[Array, "B S H N"]:
    """Rotates dimension i with dimension i + N/2 (the half-split convention of Llama).

    ``rope``: cos and sin of ``rope_angles``, of B sequences or of one for all.
    """
    cos, sin = (angle[:, :, None, :] for angle in rope)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def embed(
    tables: Float[Array, "R V D"], tokens: Int[Array, "B S"], *, layout: Layout, dtype
) -> Float[Array, "B S D"]:
    """Rows of a table that may be split over its vocabulary, as ``layout.each`` gives it.

    Each device looks up what it owns for all tokens of its group, and the sum over the group goes
    back to the tokens' owners; the table itself never moves.
    """

    def lookup(table_1VD, tokens_BS):
        table_VD = table_1VD[0]
        if not layout.vocab_axes:
            return table_VD[tokens_BS].astype(dtype)
        rows = layout.of_group(tokens_BS) - layout.first_row(table_VD)
        own = (rows >= 0) & (rows < table_VD.shape[0])
        # One owner a token: the sum has one term that is not zero, exact in any dtype.
        found = jnp.where(own[..., None], table_VD[jnp.where(own, rows, 0)], 0.0).astype(dtype)
        return layout.to_owners(found)

    return jax.shard_map(
        lookup,
        mesh=layout.mesh,
        in_specs=(layout.each_spec, P(BATCH_AXES, None)),
        out_specs=P(BATCH_AXES, None, None),
        check_vma=False,
    )(tables, tokens)


class Norm(nnx.Module):
    """RMSNorm over the width, with a gain unless the model has none."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig, layout: Layout, *, rngs):
        self.epsilon = config.norm_epsilon
        self.how = {"layout": layout, "implementation": compute.kernels.rms_norm}
        if config.norm_gain:
            spec = WeightSpec(("gain",), "gain", (), ("gain",))
            self.gain = weight(ones, (config.width,), spec, rngs)

    def of_stream(self, x, residual=None, *, saved_as: str = ""):
        """The residual stream after ``residual`` has joined it, and its norm; see ``rms_norm``."""
        return add_rms_norm(x, residual, self._gain, self.epsilon, saved_as=saved_as, **self.how)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """The normalised input, in its dtype."""
        return rms_norm(x, self._gain, self.epsilon, **self.how)

    @property
    def _gain(self):
        return self.gain[...] if hasattr(self, "gain") else None


class Linear(nnx.Module):
    """What attention and MLP share: products with sharded weights, optional inner norms."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig, layout: Layout):
        self.config, self.compute, self.layout = config, compute, layout

    def product(self, equation: str, x: Array, w: Weight) -> Array:
        """einsum of an activation with a weight of this layer, in the activation's dtype."""
        scanned = self.compute.scans(self.config.layers)
        return product(equation, x, w.get_value(), w.spec.axes, self.layout, scanned)

    def inner_norm(self, x: Array, *, over: int = 1) -> Array:
        """The gain-free norm in front of a linear map when the model has norms everywhere.

        Args:
          x: activation.
          over: how many trailing axes the mean is taken over.
        """
        if self.config.norms != "everywhere":
            return x
        flat = x.reshape(*x.shape[: x.ndim - over], -1)
        return reference_rms_norm(flat, None, self.config.norm_epsilon).reshape(x.shape)


class Attention(Linear):
    """Causal grouped-query attention with RoPE; no biases."""

    def __init__(self, config, compute, layout, *, init, residual_init, rngs: nnx.Rngs):
        super().__init__(config, compute, layout)
        D, H, K, N = config.width, config.heads, config.kv_heads, config.head_dim
        query = WeightSpec(
            ("width", "heads", "head_dim"), "hidden", ("width",), ("heads", "head_dim")
        )
        shared = WeightSpec(
            ("width", "kv_heads", "head_dim"), "hidden", ("width",), ("kv_heads", "head_dim")
        )
        output = WeightSpec(
            ("heads", "head_dim", "width"), "hidden", ("heads", "head_dim"), ("width",)
        )
        self.query = weight(init, (D, H, N), query, rngs)
        self.key = weight(init, (D, K, N), shared, rngs)
        self.value = weight(init, (D, K, N), shared, rngs)
        self.output = weight(residual_init, (H, N, D), output, rngs)

    def __call__(self, x, rope, segments=None, cache: KeyValue | None = None, start=None):
        """Attends over the sequence, or over a cache that it extends at ``start``.

        Args:
          x: [B, S, D].
          rope: cos and sin for the S positions.
          segments: [B, S]; attention stays inside equal numbers. None: one segment.
          cache: keys and values [B, C, K, N] of earlier positions; none in training.
          start: [B], the position of each row's first token in the cache.

        Returns:
          [B, S, D], and the extended cache (none in training).
        """
        q = self.inner_norm(self.product("bsd,dhn->bshn", x, self.query))
        k = self.inner_norm(self.product("bsd,dkn->bskn", x, self.key))
        v = self.inner_norm(self.product("bsd,dkn->bskn", x, self.value))
        q, k, v = (name(x, "qkv") for x in (apply_rope(q, rope), apply_rope(k, rope), v))
        if cache is None:
            with jax.named_scope("kernel"):
                how = {"implementation": self.compute.kernels.attention, "layout": self.layout}
                mixed = attention(q, k, v, segments, **how)
        else:
            cache = tuple(map(extended, cache, (k, v), (start, start)))
            mixed = cached_attention(q, *cache, start)
        mixed = self.inner_norm(name(mixed, "attention"), over=2)
        return self.product("bshn,hnd->bsd", mixed, self.output), cache


def extended(
    cache: Float[Array, "B C K N"], new: Float[Array, "B T K N"], start: Int[Array, " B"]
) -> Float[Array, "B C K N"]:
    """A cache with the next T keys or values of each row, from that row's ``start``."""

    def write(row, values, at):
        return lax.dynamic_update_slice_in_dim(row, values, at, axis=0)

    return jax.vmap(write)(cache, new.astype(cache.dtype), start)


class MLP(Linear):
    """SwiGLU: down(silu(gate x) · up x); no biases."""

    def __init__(self, config, compute, layout, *, init, residual_init, rngs: nnx.Rngs):
        super().__init__(config, compute, layout)
        D, F = config.width, config.ffn
        widen = WeightSpec(("width", "ffn"), "hidden", ("width",), ("ffn",))
        narrow = WeightSpec(("ffn", "width"), "hidden", ("ffn",), ("width",))
        self.gate = weight(init, (D, F), widen, rngs)
        self.up = weight(init, (D, F), widen, rngs)
        self.down = weight(residual_init, (F, D), narrow, rngs)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """The MLP's contribution to the residual stream."""
        gate = name(self.product("bsd,df->bsf", x, self.gate), "gate_up")
        up = name(self.product("bsd,df->bsf", x, self.up), "gate_up")
        inner = self.inner_norm(jax.nn.silu(gate) * up)
        return self.product("bsf,fd->bsd", inner, self.down)


class Block(nnx.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, config, compute, layout, *, init, residual_init, rngs: nnx.Rngs):
        inits = {"init": init, "residual_init": residual_init, "rngs": rngs}
        self.layout = layout
        self.attention_norm = Norm(config, compute, layout, rngs=rngs)
        self.attention = Attention(config, compute, layout, **inits)
        self.mlp_norm = Norm(config, compute, layout, rngs=rngs)
        self.mlp = MLP(config, compute, layout, **inits)

    def __call__(self, x, rope, segments=None, cache: KeyValue | None = None, start=None):
        """One layer; arguments and results as ``Attention``."""
        with jax.named_scope("attention"):
            x, normed = self.attention_norm.of_stream(x)
            mixed, cache = self.attention(normed, rope, segments, cache, start)
        with jax.named_scope("mlp"):
            x, normed = self.mlp_norm.of_stream(x, mixed, saved_as="middle")
            x = self.layout.constrain_batch(x + self.mlp(normed))
        return x, cache
