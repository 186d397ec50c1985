"""Our models in EleutherAI's lm-evaluation-harness (pip ``lm_eval``, extra ``eval``).

The harness makes the questions and the metrics; what is here answers its three kinds of request.
Numbers are those of its own Hugging Face backend on the exported weights (tests/evaluate), with
one convention of ours: what follows nothing follows an end-of-document token, as in training.

Requests are sorted by length, padded to powers of two and batched over all devices. The head is
applied only to the positions that are asked about, a chunk of them at a time, so logits of whole
sequences never exist.
"""

import collections
import functools
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError, nearest
from teukenjax.infer import Generator, Sampling
from teukenjax.infer.continuations import Prompt, continuations
from teukenjax.model import Functional

MAX_NEW_TOKENS = 256  # the harness's default
GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")
SHORTEST = 64  # of the padded lengths


class Request(NamedTuple):
    """Tokens of which the last ``scored`` are asked about."""

    number: int
    ids: list[int]
    scored: int


class TeukenLM(TemplateLM):
    """A model, its parameters and its tokenizer as the harness's ``LM``."""

    def __init__(self, model: Functional, params, tokenizer: Tokenizer, *, batch_tokens: int):
        """Args: placed as the model's layout says; ``batch_tokens``: of one batch, all devices."""
        super().__init__()
        self.model, self.params, self.encoder = model, params, tokenizer
        self.max_length, self.batch_tokens = model.config.context, batch_tokens
        self._cut: set[int] = set()  # hashes of the prompts that did not fit

    @property
    def cut_prompts(self) -> int:
        """How many of the prompts so far did not fit; the choices of a question have one."""
        return len(self._cut)

    @property
    def cut_said(self) -> str:
        """The same as a sentence."""
        return (
            f"{self.cut_prompts:,} prompts did not fit in the model's context of "
            f"{self.max_length} tokens: only their ends were read"
        )

    @property
    def eot_token_id(self) -> int:
        """``<eod>``: also what a text without context is read after."""
        return self.encoder.eod_id

    def tok_encode(self, string: str, add_special_tokens=None, **kwargs) -> list[int]:
        """The tokenizer adds nothing at either end, whatever is asked for."""
        del add_special_tokens, kwargs
        return self.encoder.encode(string)

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the harness's own, which draws a bar also where nobody sees it move."""
        return super().loglikelihood(requests, disable_tqdm or not sys.stderr.isatty())

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """ln p of whole texts, each window of a long one after the last token before it."""
        del disable_tqdm
        windows, owner = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            ):
                context, continuation = make_disjoint_window(window)
                windows.append((None, context, continuation))
                owner.append(number)
        totals = np.zeros(len(requests))
        for number, (score, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += score
        return totals.tolist()

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Continuations, cut before the first of the request's stop strings.

        Raises:
          UserError: for an option that ``GENERATION`` lacks.
        """
        del disable_tqdm
        prompts = [self._prompt(number, *request.args) for number, request in enumerate(requests)]
        self._generator.decoder.load(self.params)
        found = continuations(self._generator, prompts, batch_tokens=self.batch_tokens)
        self._generator.decoder.load(None)
        return [one.text for one in found]

    def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
        """ln p of each continuation, and whether it is the greedy one."""
        del kwargs
        asked = [self._request(number, *request) for number, request in enumerate(requests)]
        results: list[tuple[float, bool]] = [(0.0, True)] * len(asked)
        for length, batch in self._batches(asked):
            for request, scored in zip(batch, self._score(batch, length), strict=True):
                results[request.number] = scored
        return results

    def _request(
        self, number: int, text: tuple[str, str] | None, context: list[int], continuation: list[int]
    ) -> Request:
        if len(continuation) > self.max_length:
            raise UserError(
                f"a choice of {len(continuation)} tokens does not fit in the model's context of "
                f"{self.max_length} tokens"
            )
        prompt = text and text[0]  # none: a window of a long text, which fits
        ids = self._end_of(context + continuation, self.max_length + 1, prompt)
        return Request(number, ids, len(continuation))

    def _end_of(self, ids: list[int], room: int, prompt: str | None) -> list[int]:
        """As the harness does: too long a prompt is cut from the left. It is counted."""
        if len(ids) > room:
            self._cut.add(hash(prompt))
        return ids[-room:]

    def _batches(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Request]]]:
        """Requests of one padded length together, longest first: what does not fit fails first."""
        groups = collections.defaultdict(list)
        for request in requests:
            length = 1 << max(len(request.ids) - 2, 1).bit_length()
            groups[min(max(SHORTEST, length), self.max_length)].append(request)
        for length, group in sorted(groups.items(), reverse=True):
            rows = self._rows(length)
            for start in range(0, len(group), rows):
                yield length, group[start : start + rows]

    def _rows(self, length: int) -> int:
        shards = self.model.layout.batch_shards
        return max(self.batch_tokens // length // shards, 1) * shards

    def _score(self, batch: list[Request], length: int) -> list[tuple[float, bool]]:
        tokens = np.full((self._rows(length), length), self.eot_token_id, np.int32)
        places = []  # (row, position, target) of each token that is asked about
        for row, request in enumerate(batch):
            tokens[row, : len(request.ids) - 1] = request.ids[:-1]
            first = len(request.ids) - request.scored
            places += [(row, at - 1, request.ids[at]) for at in range(first, len(request.ids))]
        chunk = self.model.compute.head_chunk
        padded = chunk << (max(len(places) - 1, 0) // chunk).bit_length()
        table = np.zeros((padded, 3), np.int32)
        table[: len(places)] = places
        placed = jax.device_put(tokens, self.model.layout.batch(trailing=1))
        found = jax.device_get(self._log_probs(self.params, placed, table))
        counts = np.cumsum([request.scored for request in batch])[:-1]
        scores, greedy = (np.split(x[: len(places)], counts) for x in found)
        return [
            (float(s.sum(dtype=np.float64)), bool(g.all()))
            for s, g in zip(scores, greedy, strict=True)
        ]

    @functools.cached_property
    def _log_probs(self):
        whole, chunk = self.model.layout.replicated(), self.model.compute.head_chunk

        def log_probs(params, tokens: Int[Array, "B S"], places: Int[Array, "M three"]):
            """ln p and "is it the likeliest" of M targets."""
            module = self.model.bind(params)
            hidden_MD = module.hidden(tokens)[places[:, 0], places[:, 1]]
            hidden_MD = jax.lax.with_sharding_constraint(hidden_MD, whole)

            def of_chunk(inputs) -> tuple[Float[Array, " C"], Array]:
                hidden_CD, targets_C = inputs
                logits_CV = module.logits(hidden_CD)
                target = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=1)[:, 0]
                score = target - jax.nn.logsumexp(logits_CV, axis=1)
                return score, jnp.argmax(logits_CV, axis=1) == targets_C

            chunks = (
                hidden_MD.reshape(-1, chunk, hidden_MD.shape[1]),
                places[:, 2].reshape(-1, chunk),
            )
            score, greedy = jax.lax.map(of_chunk, chunks)
            return score.reshape(-1), greedy.reshape(-1)

        return jax.jit(log_probs, out_shardings=whole)

    def _prompt(self, number: int, context: str, options: dict) -> Prompt:
        options = normalize_gen_kwargs(options, MAX_NEW_TOKENS)
        if unknown := options.keys() - GENERATION:
            name = min(unknown)
            raise UserError(f"generation_kwargs '{name}': {nearest(name, GENERATION)}")
        tokens = options["max_gen_toks"]
        if tokens >= self.max_length:
            raise UserError(
                f"max_gen_toks={tokens}: leaves no room for a question in {self.max_length} tokens"
            )
        # As the harness does: an empty context is the prefix.
        ids = self.tok_encode(context) or [self.prefix_token_id]
        ids = self._end_of(ids, self.max_length - tokens, context)
        sampling = Sampling(
            temperature=options.get("temperature", 0.0),
            top_k=options.get("top_k", 0),
            top_p=options.get("top_p", 1.0),
            seed=number,  # the same question asked again has another answer
        )
        return Prompt(ids, tokens, sampling, tuple(stop for stop in options["until"] if stop))

    @functools.cached_property
    def _generator(self) -> Generator:
        """Its programs are kept; of its weights there is a copy only while it is asked."""
        return Generator(self.model, None, self.encoder)
