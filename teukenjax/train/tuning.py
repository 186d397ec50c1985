"""Instruction tuning: the loop of pre-training on conversations, beginning with a trained model.

A base is a run, one of its checkpoints, or a recipe, whose run is trained first where it is not
yet. Its tokenizer is the tuned run's, and its shape must be; only the context may differ.
"""

from pathlib import Path

import jax
from rich.console import Console

from teukenjax.checkpoint import FOLDER
from teukenjax.data.chat.stream import ChatData, ChatStream, load_chat
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.evaluate import Evaluator, Score
from teukenjax.evaluate.answers import Answer, Answers, score_answers
from teukenjax.evaluate.fidelity import print_answers
from teukenjax.recipe import ModelConfig, Recipe, load
from teukenjax.run import LoadedRun, load_run
from teukenjax.train.loop import train
from teukenjax.train.state import Program, TrainState

SHOWN_TOKENS = 48  # of an answer
FREE = ("context", "vocab_size", "init", "init_std")  # what may differ from the base's shape


class TuningSource:
    """Conversations, and the base's parameters (see ``train.source.Source``)."""

    def __init__(self, recipe: Recipe, console: Console):
        """Finds base and tokenizer; reads nothing of the conversations yet."""
        self._base = find_base(recipe, console)
        if self._base is not None:
            _check_shape(self._base, recipe.model)
            self.tokenizer = self._base.tokenizer
        elif recipe.data.tokenizer is not None:
            self.tokenizer = Tokenizer.load(recipe.data.tokenizer)
        else:
            raise UserError("sft.base is not set: then data.tokenizer must name a tokenizer")
        self.name = "sft.sources"
        self._limit, self._console = recipe.evaluation.documents, console

    @property
    def digest(self) -> str:
        """Names the encoded conversations."""
        return self.data.digest

    def stream(self, recipe: Recipe) -> ChatStream:
        """See ``train.source.Source``; reads the conversations."""
        self.data = load_chat(recipe, self.tokenizer)
        print_chat(self._console, self.data)
        return ChatStream(recipe, self.data)

    def initial(self, program: Program) -> TrainState:
        """See ``train.source.Source``."""
        if self._base is None:
            return program.init()
        return program.init_from(self._base.params)

    def score(self, evaluator: Evaluator, params) -> dict[str, Score]:
        """See ``train.source.Source``: of the answers that were held out."""
        rows = {name: some[: self._limit] for name, some in self.data.held_out.items()}
        return score_answers(evaluator, params, rows)


def tune(recipe: Recipe, console: Console) -> Path:
    """Trains as ``sft`` says, and shows answers to held-out questions before and after.

    Raises:
      UserError: for a recipe without ``sft``, and as the loop does.
    """
    if recipe.sft is None:
        raise UserError("the recipe has no section sft: it is one for `teukenjax train`")
    path = train(recipe, console, TuningSource)
    if jax.process_count() > 1:  # decoding is for one process
        return path
    tuned = load_run(path)
    after = answers(tuned, tuned)
    base = find_base(recipe, console)
    before = answers(base, tuned) if base is not None else None
    print_answers(console, before, after)
    return path


def answers(run: LoadedRun, tuned: LoadedRun) -> list[Answer]:
    """One answer a language of ``run``'s model to the questions that ``tuned`` held out."""
    recipe = tuned.recipe
    data = load_chat(recipe, tuned.tokenizer)
    # Both models have one shape and one placement; the tuned one's context holds the prompts.
    ask = Answers(tuned.model, run.params, tuned.tokenizer, form=recipe.sft.form)
    rows = [row for some in data.held_out.values() for row, _ in some[:1]]
    return ask(rows, tokens=SHOWN_TOKENS, batch_tokens=recipe.evaluation.batch_tokens)


def find_base(recipe: Recipe, console: Console) -> LoadedRun | None:
    """The run that ``sft.base`` names, trained first if it is a recipe's that is not there."""
    base = recipe.sft.base
    if base is None:
        return None
    if not recipe.sft.base_is_recipe:
        return load_run(base)
    recipe = load(base)
    if not (recipe.out / FOLDER / str(recipe.steps)).is_dir():
        console.print(f"sft.base={base}: training it first, in {recipe.out}", highlight=False)
        train(recipe, console)
    return load_run(recipe.out)


def print_chat(console: Console, data: ChatData) -> None:
    """How much there is, what carries loss, and what was left out."""
    tokens = sum(data.tokens.values())
    conversations = sum(len(some) for some in data.train.values())
    held_out = sum(len(some) for some in data.held_out.values())
    console.print(
        f"conversations {conversations:,} in {len(data.train)} languages, {tokens:,} tokens, "
        f"{data.loss_tokens / tokens:.1%} of them with loss; held out {held_out:,}",
        highlight=False,
    )
    for count, what in (
        (data.too_long, "longer than the context: left out"),
        (data.shortened, "longer than the context: only their first turns are kept"),
        (len(data.found.broken), f"broken: left out; {''.join(data.found.broken[:1])}"),
    ):
        if count:
            console.print(f"  {count:,} are {what}", highlight=False)


def _check_shape(base: LoadedRun, model: ModelConfig) -> None:
    theirs, ours = base.recipe.model.model_dump(), model.model_dump()
    for key in theirs.keys() - set(FREE):
        if theirs[key] != ours[key]:
            raise UserError(f"model.{key}={ours[key]}: sft.base {base.path} has {theirs[key]}")
