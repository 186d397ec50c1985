"""NEFTune (Jain et al. 2023, arXiv 2310.05914): noise on the embeddings in training.

Each conversation of n tokens gets α/√(n·D) times uniform noise in [−1, 1]. The noise is a pure
function of (seed, number of the sample in the stream), which comes with the batch; so a resumed run
and another mesh have the same, and evaluation, whose batches have no such number, has none.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from teukenjax.model.teuken import Model, Teuken


class Noisy:
    """``model`` with noise on what ``loss`` embeds; everything else is the model's."""

    def __init__(self, model: Model, *, alpha: float, seed: int):
        self._model, self._alpha, self._seed = model, alpha, seed
        self.config, self.compute, self.layout = model.config, model.compute, model.layout
        self.abstract, self.specs, self.inner = model.abstract, model.specs, model.inner
        self.init, self.around, self.merged = model.init, model.around, model.merged
        self.split, self.join, self.copies = model.split, model.join, model.copies

    def bind(self, params: dict, copies: dict | None = None) -> "NoisyTeuken":
        """The module with these parameters, and the copies that were made of them."""
        return NoisyTeuken(self._model.bind(params, copies), self._alpha, self._seed)


class NoisyTeuken:
    """A bound model whose ``loss`` takes the numbers of its samples."""

    def __init__(self, module: Teuken, alpha: float, seed: int):
        self._module, self._alpha, self._seed = module, alpha, seed

    def __getattr__(self, name: str):
        return getattr(self._module, name)

    def loss(self, tokens, weights, segments=None, positions=None, rows=None):
        """As ``Teuken.loss``; ``rows`` [B, 1] number the samples, and without them is no noise."""
        noise = None if rows is None else self._noise(rows, segments)
        return self._module.loss(tokens, weights, segments, positions, noise)

    def _noise(self, rows: Int[Array, "B 1"], segments: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        width, key = self._module.config.width, jax.random.key(self._seed)

        def of_row(row, segment_S):
            noise = jax.random.uniform(
                jax.random.fold_in(key, row), (segment_S.size, width), minval=-1.0
            )
            lengths = jnp.sum(segment_S[:, None] == segment_S[None, :], axis=1)
            return noise * (self._alpha / jnp.sqrt(lengths * width))[:, None]

        return jax.vmap(of_row)(rows[:, 0], segments)
