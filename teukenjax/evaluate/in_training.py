"""A suite's benchmarks while a run goes on: the numbers of ``teukenjax eval --suite``."""

from collections.abc import Callable

import jax

from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.evaluate.suite import Questions, load_suite
from teukenjax.evaluate.tables import by_language
from teukenjax.model import Model
from teukenjax.recipe import Recipe

Shown = dict[str, dict[str, float]]  # task → language → the metric that tables show
MISSING = "is not installed: uv sync --extra eval"


def import_harness():
    """The two files that import the harness; a UserError where it is not installed."""
    try:
        from teukenjax.evaluate import benchmarks, harness
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} {MISSING}") from None
    return benchmarks, harness


def open_benchmarks(
    recipe: Recipe, model: Model, tokenizer: Tokenizer, say: Callable[[str], None]
) -> Callable[[dict], Shown] | None:
    """``evaluation.suite`` as a function of parameters; none where the recipe has none."""
    if recipe.evaluation.suite is None:
        return None
    questions = Questions(load_suite(recipe.evaluation.suite), recipe.evaluation.suite_data)
    benchmarks, harness = import_harness()
    questions.load()
    lm = harness.TeukenLM(model.inner, None, tokenizer, batch_tokens=recipe.evaluation.batch_tokens)
    merged, limit = jax.jit(model.merged), recipe.evaluation.suite_limit

    def scores(params: dict) -> Shown:
        lm.params, cut = merged(params), lm.cut_prompts
        found = benchmarks.run_suite(lm, questions, limit=limit)
        lm.params = None  # the merged copy is not kept through training
        if lm.cut_prompts > cut:  # the first time: they are the same each time
            say(lm.cut_said)
        return by_language(found, questions.suite)

    return scores
