"""Text from a model: a prompt is read once into a key-value cache, then one token at a time.

The cache of a model holds 2·L·K·N values a token: 32 KiB for Teuken-7B in bf16.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.infer.sampling import Sampling, sample
from teukenjax.model import Functional

END_OF_TURN = 2  # </s>: a chat answer ends in it; a pre-training document ends in <eod>


class Generator:
    """Continues one text at a time on the model's device."""

    def __init__(self, model: Functional, params, tokenizer: Tokenizer):
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.stops = (END_OF_TURN, tokenizer.eod_id)

    def __call__(self, prompt: str, *, tokens: int, sampling: Sampling) -> str:
        """The continuation of ``prompt``: at most ``tokens`` tokens, ending before a stop token.

        Raises:
          UserError: when the prompt does not leave room in the context, or is no text.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError(f"prompt {prompt!r:.40}: is not UTF-8 text") from None
        # As in pre-training, a text begins after the end of another document.
        ids = [self.tokenizer.eod_id, *self.tokenizer.encode(prompt)]
        new = list(self.stream(ids, tokens=tokens, sampling=sampling))
        whole, given = self.tokenizer.decode(ids[1:] + new), self.tokenizer.decode(ids[1:])
        return whole.removeprefix(given)

    def stream(self, ids: list[int], *, tokens: int, sampling: Sampling) -> Iterator[int]:
        """New token ids, one by one."""
        context = self.model.config.context
        if len(ids) >= context:
            raise UserError(f"prompt: {len(ids)} tokens do not fit into a context of {context}")
        key = jax.random.key(sampling.seed)
        # Prompts are padded to powers of two to bound compilations; what the padding writes into
        # the cache lies after every position that is read, until it is overwritten.
        length = min(1 << (len(ids) - 1).bit_length(), context)
        prompt = np.zeros((1, length), np.int32)
        prompt[0, : len(ids)] = ids
        cache = self.empty_cache()
        logits, cache = self._advance(self.params, prompt, cache, 0, len(ids) - 1)
        for position in range(len(ids), min(len(ids) + tokens, context)):
            key, now = jax.random.split(key)
            token = int(sample(now, logits, sampling))
            if token in self.stops:
                return
            yield token
            logits, cache = self._advance(
                self.params, np.full((1, 1), token, np.int32), cache, position, 0
            )

    def empty_cache(self) -> tuple[Float[Array, "L 1 S K N"], Float[Array, "L 1 S K N"]]:
        """Room for the keys and the values of a whole context."""
        c = self.model.config
        shape = (c.layers, 1, c.context, c.kv_heads, c.head_dim)
        return tuple(jnp.zeros(shape, self.model.compute.dtype) for _ in range(2))

    @functools.cached_property
    def _advance(self):
        def advance(params, tokens: Int[Array, "1 T"], cache, start, last):
            """Reads tokens into the cache; scores what follows the one at index ``last``."""
            module = self.model.bind(params)
            hidden, cache = module.decode(tokens, cache, start)
            return module.logits(hidden[0, last]), cache

        return jax.jit(advance, donate_argnums=2)
