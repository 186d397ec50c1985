"""A suite's benchmarks while a run goes on: the numbers of ``teukenjax eval --suite``."""

import functools
from collections.abc import Callable

import jax

from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.evaluate.suite import SuiteConfig, load_suite
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
    recipe: Recipe, model: Model, tokenizer: Tokenizer
) -> Callable[[dict], Shown] | None:
    """``evaluation.suite`` as a function of parameters; none where the recipe has none."""
    if recipe.evaluation.suite is None:
        return None
    suite = load_suite(recipe.evaluation.suite)
    benchmarks, harness = import_harness()
    lm = harness.TeukenLM(model.inner, None, tokenizer, batch_tokens=recipe.evaluation.batch_tokens)
    merged = jax.jit(model.merged)
    return functools.partial(_scores, benchmarks, lm, merged, suite, recipe)


def _scores(benchmarks, lm, merged, suite: SuiteConfig, recipe: Recipe, params: dict) -> Shown:
    lm.params = merged(params)
    options = {"folder": recipe.evaluation.suite_data, "limit": recipe.evaluation.suite_limit}
    scores = by_language(benchmarks.run_suite(lm, suite, **options), suite)
    lm.params = None  # the merged copy is not kept through training
    return scores
