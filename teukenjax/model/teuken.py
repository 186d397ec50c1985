"""Teuken: embedding → L blocks → final norm → head, and its pure, functional face.

The NNX module is built once and split into a graph definition and a tree of arrays; everything
jitted is a pure function of that tree (``Functional``). The L blocks are one block whose weights
have a leading layer axis, and ``lax.scan`` runs over it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Integer

from teukenjax.kernels.cross_entropy import linear_cross_entropy
from teukenjax.model.initialisation import initializers
from teukenjax.model.layers import Block, Norm, Weight, embed, rope_angles, weight
from teukenjax.recipe import ComputeConfig, ModelConfig, ShardingConfig
from teukenjax.sharding import Layout, WeightSpec, abstract_layout, make_layout

SAVED = {  # remat policy → what the backward pass finds instead of recomputing it
    "full": (),
    "save_attention": ("qkv", "attention", "middle"),
    "save_projections": ("qkv", "attention", "middle", "gate_up"),
}


def padded_vocab(config: ModelConfig) -> int:
    """Rows of the vocabulary tables: V rounded up to ``vocab_multiple``."""
    assert config.vocab_size is not None, "resolve model.vocab_size first"
    return -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple


class Table(nnx.Module):
    """A vocabulary table [V, D]."""

    def __init__(self, config: ModelConfig, *, role: str, init, rngs: nnx.Rngs):
        axes = ("vocab", "table_width")
        into, out = (("vocab",), ("table_width",)) if role == "input" else (axes[1:], axes[:1])
        spec = WeightSpec(axes, role, into, out)
        self.table = weight(init, (padded_vocab(config), config.width), spec, rngs)


class Teuken(nnx.Module):
    """The decoder. A tied table has the role "output": Scion's tied preset treats both alike."""

    def __init__(
        self, config: ModelConfig, compute: ComputeConfig, layout: Layout, *, rngs: nnx.Rngs
    ):
        self.config, self.compute, self.layout = config, compute, layout
        init, residual_init = initializers(config)
        role = "output" if config.tied else "input"
        self.embed = Table(config, role=role, init=init, rngs=rngs)
        self.layers = _stacked_blocks(config, compute, layout, init, residual_init, rngs)
        self.final_norm = Norm(config, rngs=rngs)
        if not config.tied:
            self.head = Table(config, role="output", init=init, rngs=rngs)

    @property
    def output_table(self) -> Array:
        """The head, fp32 [V, D]."""
        return (self.embed if self.config.tied else self.head).table[...]

    def hidden(
        self,
        tokens: Int[Array, "B S"],
        segments: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Final hidden states, normalised, in the compute dtype.

        Args:
          tokens: ids.
          segments: attention stays inside equal numbers, which stand together; none: all one.
          positions: of the tokens, for RoPE; none: 0 … S − 1.
        """
        x = self._embed(tokens)
        rope = self._rope(jnp.arange(tokens.shape[1])[None] if positions is None else positions)
        x, _ = self._run(lambda block, x, _: (block(x, rope, segments)[0], None), x, None)
        return self.final_norm(x)

    def loss(
        self,
        tokens: Int[Array, "B S1"],
        weights: Float[Array, "B S"],
        segments: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, "B S"]]:
        """Σ weight · next-token loss in nats over a batch (S1 = S + 1), and that of each token.

        ``segments`` and ``positions`` are of the inputs, as ``hidden`` takes them.
        """
        hidden = self.hidden(tokens[:, :-1], segments, positions)
        with jax.named_scope("head"):
            return linear_cross_entropy(
                hidden,
                self.output_table,
                tokens[:, 1:],
                weights,
                vocab_size=self.config.vocab_size,
                chunk=self.compute.head_chunk,
                layout=self.layout,
            )

    def decode(self, tokens: Int[Array, "B T"], cache: Any, start: Int[Array, ""]):
        """The next T tokens after ``start`` cached ones.

        Args:
          tokens: at positions start … start + T − 1.
          cache: keys and values, each [L, B, C, K, N].
          start: how many positions of the cache are filled.

        Returns:
          Hidden states [B, T, D] and the extended cache.
        """
        rope = self._rope(start + jnp.arange(tokens.shape[1])[None])

        def layer(block, x, layer_cache):
            return block(x, rope, None, layer_cache, start)

        x, cache = self._run(layer, self._embed(tokens), cache)
        return self.final_norm(x), cache

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token scores in fp32 without the padding; for few positions, not for training."""
        table = self.output_table[: self.config.vocab_size].astype(hidden.dtype)
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)

    def _embed(self, tokens):
        with jax.named_scope("embed"):
            table = self.embed.table[...]
            return embed(table, tokens, layout=self.layout, dtype=self.compute.dtype)

    def _rope(self, positions):
        return rope_angles(positions, head_dim=self.config.head_dim, theta=self.config.rope_theta)

    def _run(self, layer, x, per_layer):
        """Scans ``layer(block, x, slice of per_layer) → x, output`` over the blocks."""
        graph, stacked = nnx.split(self.layers)

        def body(x, inputs):
            weights, piece = inputs
            return layer(nnx.merge(graph, weights), x, piece)

        if self.compute.remat != "none":
            saved = SAVED[self.compute.remat]
            policy = jax.checkpoint_policies.save_only_these_names(*saved)
            # The scan already keeps XLA from merging the two passes (prevent_cse's purpose).
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        return jax.lax.scan(body, x, (stacked, per_layer), unroll=self.compute.unroll)


def _stacked_blocks(config, compute, layout, init, residual_init, rngs) -> Block:
    @nnx.split_rngs(splits=config.layers)
    @nnx.vmap
    def make(rngs: nnx.Rngs) -> Block:
        return Block(config, compute, layout, init=init, residual_init=residual_init, rngs=rngs)

    return make(rngs)


class Functional:
    """Teuken as pure functions of a nested dict of fp32 arrays.

    Nothing here holds an array: ``abstract`` and ``specs`` are what init, restore, import,
    planning and deviceless compilation all start from.
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig, layout: Layout):
        def build(key):
            return Teuken(config, compute, layout, rngs=nnx.Rngs(key))

        self.config, self.compute, self.layout = config, compute, layout
        self._build = build
        self._graph, state = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))
        self.abstract: dict = nnx.to_pure_dict(state)
        self.specs: dict = nnx.to_pure_dict(
            jax.tree_util.tree_map_with_path(_spec_of, state, is_leaf=_is_weight)
        )

    def init(self, seed: Integer[Array, ""]) -> dict:
        """Fresh parameters; jit it with out_shardings, and no array is ever whole on one device."""
        return nnx.to_pure_dict(nnx.state(self._build(jax.random.key(seed))))

    def bind(self, params: dict) -> Teuken:
        """The module with these parameters."""
        return nnx.merge(self._graph, nnx.State(params))


def _is_weight(node: Any) -> bool:
    return isinstance(node, Weight)


def _spec_of(path, node: Weight) -> WeightSpec:
    in_stack = any(getattr(key, "key", None) == "layers" for key in path)
    return node.spec.stacked("layers") if in_stack else node.spec


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the model as published: without padding rows, a tied table once."""
    padding = (padded_vocab(config) - config.vocab_size) * config.width
    layout = abstract_layout(ShardingConfig(strategy="ddp"), devices=1)
    model = Functional(config, ComputeConfig(), layout)
    held = sum(leaf.size for leaf in jax.tree.leaves(model.abstract))
    return held - padding * (1 if config.tied else 2)


def flops_per_token(config: ModelConfig) -> int:
    """Model FLOPs of training on one token: 6N + 6·L·H·N·S.

    N counts the parameters that multiply (an untied embedding is only looked up); causal
    attention is counted as half of the square; recomputation is not counted.
    """
    multiplying = parameter_count(config)
    if not config.tied:
        multiplying -= config.vocab_size * config.width
    attention = config.layers * config.heads * config.head_dim * config.context
    return 6 * multiplying + 6 * attention


def single_device(config: ModelConfig, compute: ComputeConfig | None = None) -> Functional:
    """The model on one device, in fp32 unless ``compute`` says otherwise."""
    compute = compute or ComputeConfig(dtype="float32", remat="none", attention="xla")
    layout = make_layout(ShardingConfig(strategy="ddp"), jax.local_devices()[:1])
    return Functional(config, compute, layout)


@functools.partial(jax.jit, static_argnums=0)
def logits(config: ModelConfig, params: dict, tokens: Int[Array, "B S"]) -> Float[Array, "B S V"]:
    """All next-token scores in fp32 on one device, without padding; for tests and small inputs."""
    model = single_device(config).bind(params)
    return model.logits(model.hidden(tokens))
