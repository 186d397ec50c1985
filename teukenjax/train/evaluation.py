"""Evaluations before, during and after training: bits per byte, and a suite if there is one."""

from rich.console import Console

from teukenjax.evaluate import Evaluator, mean
from teukenjax.evaluate.in_training import open_benchmarks
from teukenjax.evaluate.tables import means
from teukenjax.run import RunDirectory
from teukenjax.train.metrics import MetricsLog, NoLog
from teukenjax.train.source import Source
from teukenjax.train.state import Program


class Evaluations:
    """Those of one run, which keeps them in its directory."""

    def __init__(self, program: Program, source: Source, directory: RunDirectory, console: Console):
        """Args: what is trained; its held-out data; where scores go, and who is told."""
        self._recipe, model = program.recipe, program.model
        self._source, self._directory, self._console = source, directory, console
        self._evaluator = Evaluator(
            model,
            eod=source.tokenizer.eod_id,
            batch_tokens=self._recipe.evaluation.batch_tokens,
        )
        self._benchmarks = open_benchmarks(self._recipe, model, source.tokenizer, self._say)

    def due_at(self, step: int) -> bool:
        """Whether the recipe asks for one between this step and the next."""
        every = self._recipe.evaluation.every
        return every is not None and step % every == 0 and step < self._recipe.steps

    def __call__(self, params: dict, step: int, log: MetricsLog | NoLog) -> None:
        """Scores the parameters, and writes the scores down."""
        if self._benchmarks is not None:
            shown = self._benchmarks(params)
            self._directory.record_benchmarks(step, shown)
            scores = ", ".join(f"{task} {mean_:.3f}" for task, mean_ in means(shown).items())
            self._say(f"step {step}: {scores}, means over languages")
        if scores := self._source.score(self._evaluator, params):
            self._directory.record_evaluation(step, scores)
            log.write_scores(step, scores)
            of = f"mean of {len(scores)} languages"
            self._say(f"step {step}: {mean(scores):.3f} bits per byte, {of}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False)
