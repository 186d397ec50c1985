"""Text from a model: batches of prompts, one token a step, streamed."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.infer.decoder import Decoder
from teukenjax.infer.sampling import Choice, Sampling
from teukenjax.infer.text import TextStream
from teukenjax.model import Functional


@dataclass
class Speed:
    """How long the last call took, without compilation."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        prefill = self.prompt_tokens / max(self.prompt_seconds, 1e-9)
        decode = self.new_tokens / max(self.seconds, 1e-9)
        return (
            f"prompt: {self.prompt_tokens:,} tokens, {prefill:,.1f} tokens/s; "
            f"new: {self.new_tokens:,} tokens, {decode:,.1f} tokens/s"
        )


class Generator:
    """Continues texts on the model's devices."""

    def __init__(
        self, model: Functional, params: dict | None, tokenizer: Tokenizer, form: str = "plain"
    ):
        """Args: as ``Decoder``; the tokenizer; the form of the chat template of its tuning."""
        self.model, self.tokenizer, self.form = model, tokenizer, form
        self.decoder = Decoder(model, params)
        # A chat answer ends in </s>, a pre-training document in <eod>.
        self.stops = (tokenizer.end_of_turn_id, tokenizer.eod_id)
        self.speed = Speed()
        self.met_stop = False  # the last text: it ended before one of its stop strings

    def __call__(self, prompt: str, *, tokens: int, sampling: Sampling) -> str:
        """The continuation of ``prompt``: at most ``tokens`` tokens, ending before a stop token.

        Raises:
          UserError: when the prompt does not leave room in the context, or is no text.
        """
        return "".join(self.text(self.prompt_ids(prompt), tokens=tokens, sampling=sampling))

    def prompt_ids(self, prompt: str) -> list[int]:
        """A text to continue, as ids: as in pre-training it begins after another document's end.

        Raises:
          UserError: when it is no text.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError(f"prompt {prompt!r:.40}: is not UTF-8 text") from None
        return [self.tokenizer.eod_id, *self.tokenizer.encode(prompt)]

    def text(
        self, ids: list[int], *, tokens: int, sampling: Sampling, stops: Sequence[str] = ()
    ) -> Iterator[str]:
        """Pieces of the continuation of ``ids``; they end before a string of ``stops``."""
        text, self.met_stop = TextStream(self.tokenizer, ids, stops), False
        for token in self.stream(ids, tokens=tokens, sampling=sampling):
            piece, self.met_stop = text.push(token), text.stopped
            yield piece
            if self.met_stop:
                return
        yield text.rest()

    def stream(self, ids: list[int], *, tokens: int, sampling: Sampling) -> Iterator[int]:
        """New token ids of one prompt, one by one."""
        for (token,) in self.batch([ids], tokens=tokens, sampling=[sampling]):
            assert token is not None, "the batch ends with its only row"
            yield token

    def batch(
        self,
        prompts: list[list[int]],
        *,
        tokens: int | Sequence[int],
        sampling: Sequence[Sampling],
    ) -> Iterator[list[int | None]]:
        """New token ids of several prompts, a step at a time; None for a row that has ended.

        Args:
          prompts: ids, of any lengths.
          tokens: at most this many, for all or for each.
          sampling: how each chooses. A row's result does not depend on the others, up to rounding.

        Raises:
          UserError: for a prompt that is empty or leaves no room in the context.
        """
        context = self.model.config.context
        for prompt in prompts:
            if not prompt:
                raise UserError("prompt: has no token")
            if len(prompt) >= context:
                raise UserError(
                    f"prompt: {len(prompt)} tokens do not fit into a context of {context}"
                )
        each = [tokens] * len(prompts) if isinstance(tokens, int) else tokens
        most = [min(n, context - len(prompt)) for n, prompt in zip(each, prompts, strict=True)]
        return self._batch(prompts, most, sampling)

    def _batch(self, prompts, most: list[int], sampling) -> Iterator[list[int | None]]:
        real = len(prompts)
        fill = -real % self.model.layout.batch_shards  # a sharded batch has equal parts
        choice = Choice.of([*sampling, *[Sampling(temperature=0.0)] * fill])
        length = max(len(p) + n for p, n in zip(prompts, most, strict=True))
        self.decoder.compile(real + fill, length)
        begin = time.perf_counter()
        rows = self.decoder.start(real + fill, length)
        rows = self.decoder.read(rows, [*prompts, *[[0]] * fill])
        jax.block_until_ready(rows.logits)
        self.speed = Speed(sum(map(len, prompts)), time.perf_counter() - begin)
        begin = time.perf_counter()
        going = [n > 0 for n in most]
        pending = None  # a step's tokens are read while the next step runs
        for step in range(max(most) + 1):
            ready, pending = pending, None
            if step < max(most):
                rows, pending = self.decoder.step(self.decoder.params, rows, choice)
            if ready is None:
                continue
            found = self._keep(np.asarray(ready)[:real], going)
            if not any(going):
                return
            self.speed.new_tokens += sum(going)
            self.speed.seconds = time.perf_counter() - begin
            yield found
            going = [on and step < n for on, n in zip(going, most, strict=True)]

    def _keep(self, tokens: np.ndarray, going: list[bool]) -> list[int | None]:
        """The tokens of the rows that go on; rows that chose a stop end in ``going``."""
        for row, token in enumerate(tokens):
            going[row] = going[row] and int(token) not in self.stops
        return [int(t) if on else None for t, on in zip(tokens, going, strict=True)]
