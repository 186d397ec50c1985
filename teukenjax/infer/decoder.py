"""The model as a reader of tokens: a key-value cache a layer, and two compiled programs.

Training scans over layers whose weights are stacked. A decoded token reads each weight once, and a
scan would copy a layer's weights out of the stack before using them; so the stack is taken apart
and the layers are written out. Each layer's cache is an array of its own, extended in place.

A prompt is read in pieces of ``PIECE`` tokens: one program whatever its length. Rows of a batch
have different lengths: all begin at position 0, and what a shorter row's padding writes into the
cache lies after every position that the row reads, until it is overwritten.

The cache holds 2·L·K·N values a token: 32 KiB for Teuken-7B in bf16.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from teukenjax.infer.sampling import Choice, Sampling, sample
from teukenjax.kernels.rms_norm.reference import reference_rms_norm
from teukenjax.model import Functional
from teukenjax.model.layers import embed, rope_angles
from teukenjax.precision import einsum_fp32
from teukenjax.sharding import BATCH_AXES

PIECE = 256
Cache = tuple[tuple[Array, Array], ...]  # by layer: keys and values, each [B, C, K, N]


class Rows(NamedTuple):
    """What the next step needs of a batch."""

    cache: Cache
    logits: Float[Array, "B V"]  # of the token to choose
    seen: Bool[Array, "B V"]  # tokens that a row holds
    length: Int[Array, " B"]  # tokens in the cache


class Decoder:
    """Parameters in the compute dtype, laid out for decoding, and the programs that use them."""

    def __init__(self, model: Functional, params: dict | None):
        """Args: the model, and its parameters as trained: fp32 and stacked; none: see ``load``."""
        self.model = model
        self._compiled: set[tuple[int, int]] = set()
        self.load(params)

    def load(self, params: dict | None) -> None:
        """Decodes with other parameters, or lets go of them; what was compiled stays."""
        self.params = None if params is None else self._lay_out(params)

    @functools.cached_property
    def _lay_out(self):
        return jax.jit(functools.partial(laid_out, self.model))

    def capacity(self, tokens: int) -> int:
        """Length of a cache for that many tokens: doublings of ``PIECE``, to bound compilations."""
        pieces = -(-tokens // PIECE)
        longest = -(-self.model.config.context // PIECE)
        return PIECE * min(1 << (pieces - 1).bit_length(), longest)

    def start(self, batch: int, tokens: int) -> Rows:
        """Empty rows with room for that many tokens."""
        return self._start(batch, self.capacity(tokens))

    def compile(self, batch: int, tokens: int) -> None:
        """Has both programs of this shape compiled, by a prompt and a step that are thrown away."""
        shape = batch, self.capacity(tokens)
        if shape not in self._compiled:
            rows = self.read(self.start(batch, tokens), [[0]] * batch)
            self.step(self.params, rows, Choice.of([Sampling()] * batch))
            self._compiled.add(shape)

    def read(self, rows: Rows, prompts: list[list[int]]) -> Rows:
        """Empty rows with one prompt each, none of them empty."""
        length = np.array([len(prompt) for prompt in prompts], np.int32)
        longest = -(-int(length.max()) // PIECE) * PIECE
        tokens = np.zeros((len(prompts), longest), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        for at in range(0, longest, PIECE):
            rows = self.read_piece(self.params, rows, tokens[:, at : at + PIECE], at, length)
        return rows

    @functools.cached_property
    def read_piece(self):
        """(params, rows, tokens [B, PIECE], position of the first, lengths [B]) → rows."""
        return jax.jit(functools.partial(read_piece, self.model), donate_argnums=1)

    @functools.cached_property
    def step(self):
        """(params, rows, choice) → (rows, tokens [B])."""
        return jax.jit(functools.partial(step, self.model), donate_argnums=1)

    @functools.cached_property
    def _start(self):
        return jax.jit(functools.partial(empty, self.model), static_argnums=(0, 1))


def laid_out(model: Functional, params: dict) -> dict:
    """Layers apart instead of stacked, matrices and tables in the compute dtype, gains in fp32."""

    def cast(array: Array) -> Array:
        return array if array.ndim == 1 else array.astype(model.compute.dtype)

    layers = [
        jax.tree.map(lambda stacked, at=at: cast(stacked[at]), params["layers"])
        for at in range(model.config.layers)
    ]
    rest = {key: value for key, value in params.items() if key != "layers"}
    return jax.tree.map(cast, rest) | {"layers": layers}


def empty(model: Functional, batch: int, capacity: int) -> Rows:
    """Rows without a token."""
    c = model.config
    shape = (batch, capacity, c.kv_heads, c.head_dim)
    pair = tuple(jnp.zeros(shape, model.compute.dtype) for _ in range(2))
    rows = Rows(
        cache=(pair,) * c.layers,
        logits=jnp.zeros((batch, c.vocab_size), jnp.float32),
        seen=jnp.zeros((batch, c.vocab_size), bool),
        length=jnp.zeros(batch, jnp.int32),
    )
    return placed(model, rows)


def placed(model: Functional, rows: Rows) -> Rows:
    """Pins every array, so that a program's results are what the next one was compiled for."""
    layout = model.layout
    rule = layout.row.compute | {"batch": BATCH_AXES}
    by_head = layout.sharding(("batch", None, "kv_heads", None), rule)
    cache = jax.lax.with_sharding_constraint(rows.cache, by_head)
    return Rows(cache, *map(layout.constrain_batch, rows[1:]))


def read_piece(
    model: Functional,
    params: dict,
    rows: Rows,
    tokens: Int[Array, "B T"],
    at: Int[Array, ""],
    length: Int[Array, " B"],
) -> Rows:
    """Extends every row by its prompt's tokens at positions ``at`` … and scores what follows."""
    start = jnp.full_like(length, at)
    hidden, cache = advance(model, params, tokens, rows.cache, start)
    last = length - 1 - at  # index in this piece of the token that ends the prompt
    here = (last >= 0) & (last < tokens.shape[1])
    index = jnp.clip(last, 0, tokens.shape[1] - 1)
    scores = head(model, params, jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0])
    given = jnp.arange(tokens.shape[1])[None] <= last[:, None]
    batch = jnp.arange(tokens.shape[0])[:, None]
    rows = Rows(
        cache=cache,
        logits=jnp.where(here[:, None], scores, rows.logits),
        seen=rows.seen.at[batch, tokens].max(given),
        length=jnp.minimum(length, at + tokens.shape[1]),
    )
    return placed(model, rows)


def step(
    model: Functional, params: dict, rows: Rows, choice: Choice
) -> tuple[Rows, Int[Array, " B"]]:
    """Chooses a token for each row, reads it, and scores what follows."""
    tokens = sample(rows.logits, rows.seen, choice, rows.length)
    # A row whose cache is full stays as it is; its later tokens mean nothing.
    start = jnp.minimum(rows.length, rows.cache[0][0].shape[1] - 1)
    hidden, cache = advance(model, params, tokens[:, None], rows.cache, start)
    seen = rows.seen.at[jnp.arange(tokens.shape[0]), tokens].set(True)
    logits = head(model, params, hidden[:, 0])
    # Whole on every device, so that every process sees which rows have ended.
    tokens = jax.lax.with_sharding_constraint(tokens, model.layout.replicated())
    return placed(model, Rows(cache, logits, seen, rows.length + 1)), tokens


def advance(
    model: Functional,
    params: dict,
    tokens: Int[Array, "B T"],
    cache: Cache,
    start: Int[Array, " B"],
) -> tuple[Float[Array, "B T D"], Cache]:
    """Final hidden states of the next T tokens of each row, and the extended cache."""
    c = model.config
    positions = start[:, None] + jnp.arange(tokens.shape[1])[None]
    rope = rope_angles(positions, head_dim=c.head_dim, theta=c.rope_theta)
    tables = model.layout.each(params["embed"]["table"])
    x = embed(tables, tokens, layout=model.layout, dtype=model.compute.dtype)
    extended: list[Any] = []
    for weights, layer_cache in zip(params["layers"], cache, strict=True):
        x, layer_cache = model.block(weights)(x, rope, None, layer_cache, start)
        extended.append(layer_cache)
    gain = params.get("final_norm", {}).get("gain")  # a model without gains has none here
    return reference_rms_norm(x, gain, c.norm_epsilon), tuple(extended)


def head(model: Functional, params: dict, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
    """Scores in fp32. Padding rows are cut from the scores: cutting the table would copy it."""
    table = params["embed" if model.config.tied else "head"]["table"]
    scores = einsum_fp32("bd,vd->bv", hidden, table)
    return scores[:, : model.config.vocab_size]
