"""Teuken: embedding → L blocks → final norm → head, and its pure, functional face.

The NNX module is built once and split into a graph definition and a tree of arrays; everything
jitted is a pure function of that tree (``Functional``). The L blocks are one block whose weights
have a leading layer axis, and ``lax.scan`` runs over it.
"""

import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Integer

from teukenjax.kernels.cross_entropy import linear_cross_entropy
from teukenjax.model.initialisation import initializers
from teukenjax.model.layers import Block, Norm, Weight, embed, rope_angles, weight
from teukenjax.model.product import WithCopy
from teukenjax.model.remat import rematerialised
from teukenjax.precision import einsum_fp32
from teukenjax.recipe import ComputeConfig, KernelsConfig, ModelConfig, ShardingConfig
from teukenjax.sharding import Layout, WeightSpec, abstract_layout, is_spec, make_layout

REFERENCE = KernelsConfig(**dict.fromkeys(KernelsConfig.model_fields, "reference"))


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
        self.final_norm = Norm(config, compute, layout, rngs=rngs)
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
        noise: Float[Array, "B S D"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Final hidden states, normalised, in the compute dtype.

        Args:
          tokens: ids.
          segments: attention stays inside equal numbers, which stand together; none: all one.
          positions: of the tokens, for RoPE; none: 0 … S − 1.
          noise: added to the embeddings (``neftune``).
        """
        return self._hidden(self._each(self.embed), tokens, segments, positions, noise)

    def loss(
        self,
        tokens: Int[Array, "B S1"],
        weights: Float[Array, "B S"],
        segments: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        noise: Float[Array, "B S D"] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, "B S"]]:
        """Σ weight · next-token loss in nats over a batch (S1 = S + 1), and that of each token.

        ``segments``, ``positions`` and ``noise`` are of the inputs, as ``hidden`` takes them.
        """
        # A tied table's gradients meet on each device before devices add theirs.
        tables = self._each(self.embed)
        output_tables = tables if self.config.tied else self._each(self.head)
        hidden = self._hidden(tables, tokens[:, :-1], segments, positions, noise)
        with jax.named_scope("head"):
            return linear_cross_entropy(
                hidden,
                output_tables,
                tokens[:, 1:],
                weights,
                vocab_size=self.config.vocab_size,
                chunk=self.compute.head_chunk,
                layout=self.layout,
                z_loss=self.config.z_loss,
                implementation=self.compute.kernels.cross_entropy,
            )

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token scores in fp32 without the padding; for few positions, not for training."""
        table = self.output_table[: self.config.vocab_size].astype(hidden.dtype)
        return einsum_fp32("...d,vd->...v", hidden, table)

    def _each(self, table: Table) -> Array:
        return self.layout.each(table.table[...])

    def _hidden(self, tables, tokens, segments, positions, noise):
        with jax.named_scope("embed"):
            x = embed(tables, tokens, layout=self.layout, dtype=self.compute.dtype)
        x = x if noise is None else x + noise.astype(x.dtype)
        rope = self._rope(jnp.arange(tokens.shape[1])[None] if positions is None else positions)
        x, _ = self._run(lambda block, x, _: (block(x, rope, segments)[0], None), x, None)
        return self.final_norm(x)

    def _rope(self, positions):
        return rope_angles(positions, head_dim=self.config.head_dim, theta=self.config.rope_theta)

    def _run(self, layer, x, per_layer):
        """Runs ``layer(block, x, slice of per_layer) → x, output`` over the blocks."""
        graph, stacked = nnx.split(self.layers)

        def body(x, inputs):
            weights, piece = inputs
            return layer(nnx.merge(graph, weights), x, piece)

        compute = self.compute
        scanned = compute.scans(self.config.layers)
        body = rematerialised(
            body, compute.remat, attention=compute.kernels.attention, scanned=scanned
        )
        if scanned:
            return jax.lax.scan(body, x, (stacked, per_layer), unroll=compute.unroll)
        return _written_out(body, x, (stacked, per_layer), self.config.layers)


def _written_out(body, x, inputs, layers: int):
    """What ``lax.scan`` computes, with no stacks of what a layer leaves for its backward pass."""
    outputs = []
    for layer in range(layers):
        slices = jax.tree.map(lambda leaf, at=layer: _at(leaf, at), inputs, is_leaf=_is_with_copy)
        x, output = body(x, slices)
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def _at(leaf: Array | WithCopy, layer: int) -> Array | WithCopy:
    if isinstance(leaf, WithCopy):
        return WithCopy(_at(leaf.owner, layer), leaf.copy[layer])
    # Gradients are added where this reads. XLA does that in place where it cannot see the index.
    index = jax.lax.optimization_barrier(jnp.int32(layer))
    return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)


def _stacked_blocks(config, compute, layout, init, residual_init, rngs) -> Block:
    @nnx.split_rngs(splits=config.layers)
    @nnx.vmap
    def make(rngs: nnx.Rngs) -> Block:
        return Block(config, compute, layout, init=init, residual_init=residual_init, rngs=rngs)

    return make(rngs)


@runtime_checkable
class Model(Protocol):
    """A model as pure functions of a tree: ``Functional``, or that with adapters or noise."""

    config: ModelConfig
    compute: ComputeConfig
    layout: Layout
    abstract: dict
    specs: dict
    inner: "Functional"  # without adapters and noise

    def init(self, seed: Array) -> dict:
        """A fresh tree."""

    def around(self, params: dict, seed: Array) -> dict:
        """The tree that begins as the model with ``params``."""

    def split(self, params: dict) -> tuple[dict, dict]:
        """What is trained, and the rest; of specs and shapes too."""

    def join(self, trained: dict, frozen: dict) -> dict:
        """The inverse of ``split``."""

    def copies(self, trained: dict) -> dict | None:
        """What a whole step's products compute with (``compute.gather``); None: each gathers."""

    def bind(self, params: dict, copies: dict | None = None) -> Any:
        """The module with these parameters, and the copies that were made of them."""

    def merged(self, params: dict) -> dict:
        """The parameters of ``inner``."""


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
        module = nnx.eval_shape(lambda: build(jax.random.key(0)))
        self._graph, state = nnx.split(module)
        self._block, _ = nnx.split(module.layers)
        self.abstract: dict = nnx.to_pure_dict(state)
        self.specs: dict = nnx.to_pure_dict(
            jax.tree_util.tree_map_with_path(_spec_of, state, is_leaf=_is_weight)
        )

    def init(self, seed: Integer[Array, ""]) -> dict:
        """Fresh parameters; jit it with out_shardings, and no array is ever whole on one device."""
        return nnx.to_pure_dict(nnx.state(self._build(jax.random.key(seed))))

    def around(self, params: dict, seed: Integer[Array, ""]) -> dict:
        """The tree that begins as the model with ``params``: they themselves."""
        del seed
        return params

    @property
    def inner(self) -> "Functional":
        """The model without adapters, of which ``merged`` gives the parameters: itself."""
        return self

    def merged(self, params: dict) -> dict:
        """The parameters with adapters added to them: they themselves."""
        return params

    def split(self, params: dict) -> tuple[dict, dict]:
        """What is trained, which is all, and the rest (see ``lora``); of specs and shapes too."""
        return params, {}

    def join(self, trained: dict, frozen: dict) -> dict:
        """The inverse of ``split``."""
        del frozen
        return trained

    def copies(self, trained: dict) -> dict | None:
        """The layers' matrices, cast and gathered, if ``compute.gather`` is "step"."""
        if self.compute.gather == "layer":
            return None

        def gather(weight: Array, axes: tuple[str, ...]) -> Array:
            return self.layout.gather(weight, axes, self.compute.dtype)

        def copy(spec: WeightSpec, weight: Array) -> Array | tuple[Array, ...] | None:
            if spec.role != "hidden":
                return None
            if self.compute.scans(self.config.layers):
                return gather(weight, spec.axes)
            # A product would read a slice of a stack from a second copy of it.
            return tuple(gather(_at(weight, i), spec.axes[1:]) for i in range(len(weight)))

        return jax.tree.map(copy, self.specs["layers"], trained["layers"], is_leaf=is_spec)

    def bind(self, params: dict, copies: dict | None = None) -> Teuken:
        """The module with these parameters, and the copies that were made of them."""
        if copies is not None:
            layers = jax.tree.map(_with_copy, copies, params["layers"], is_leaf=_is_copy)
            params = params | {"layers": layers}
        return nnx.merge(self._graph, nnx.State(params))

    def block(self, weights: dict) -> Block:
        """One layer by itself: ``weights`` are those of ``params["layers"]`` at one index."""
        return nnx.merge(self._block, nnx.State(weights))


def _with_copy(copy: Array | tuple[Array, ...] | None, owner: Array) -> Array | WithCopy:
    return owner if copy is None else WithCopy(owner, copy)


def _is_copy(node: Any) -> bool:
    return node is None or isinstance(node, tuple)


def _is_with_copy(node: Any) -> bool:
    return isinstance(node, WithCopy)


def _is_weight(node: Any) -> bool:
    return isinstance(node, Weight)


def _spec_of(path, node: Weight) -> WeightSpec:
    in_stack = any(getattr(key, "key", None) == "layers" for key in path)
    return node.spec.stacked("layers") if in_stack else node.spec


@functools.cache  # it traces the whole model, and the loop asks at every step
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
    compute = compute or ComputeConfig(dtype="float32", remat="none", kernels=REFERENCE)
    layout = make_layout(ShardingConfig(strategy="ddp"), jax.local_devices()[:1])
    return Functional(config, compute, layout)


@functools.partial(jax.jit, static_argnums=0)
def logits(config: ModelConfig, params: dict, tokens: Int[Array, "B S"]) -> Float[Array, "B S V"]:
    """All next-token scores in fp32 on one device, without padding; for tests and small inputs."""
    model = single_device(config).bind(params)
    return model.logits(model.hidden(tokens))
