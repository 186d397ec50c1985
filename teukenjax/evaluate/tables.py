"""Benchmark scores as papers show them: means beside other models', and by language."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, Field

from teukenjax.errors import UserError
from teukenjax.evaluate.suite import SuiteConfig

Rows = list[list[str]]
ByLanguage = Annotated[dict[str, float], Field(min_length=1)]


class _Scores(BaseModel):
    models: dict[str, dict[str, float | ByLanguage]]


class _Result(BaseModel):
    model: str
    shown: dict[str, ByLanguage]


def by_language(scores: Mapping[str, Any], suite: SuiteConfig) -> dict[str, dict[str, float]]:
    """Task → language → the metric that the suite shows."""
    return {
        task: {language: values[suite.tasks[task].metric] for language, values in found.items()}
        for task, found in scores.items()
    }


def means(shown: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Task → mean over languages, each counting the same."""
    return {task: _mean(found) for task, found in shown.items()}


def models_of(content: Any, origin: str) -> dict[str, dict[str, float]]:
    """Model → task → mean, of a file of scores: a mean, or values by language, for each task.

    Raises:
      UserError: when the content is neither such a file nor a result of ``eval --suite``.
    """
    try:
        if isinstance(content, Mapping) and "shown" in content:
            result = _Result.model_validate(content)
            return {result.model: means(result.shown)}
        models = _Scores.model_validate(content).models
    except pydantic.ValidationError:
        raise UserError(
            f'{origin}: holds no scores: {{"models": {{NAME: {{TASK: MEAN}}}}}} expected, or '
            "{LANGUAGE: SCORE} in place of MEAN"
        ) from None
    return {
        name: {task: x if isinstance(x, float) else _mean(x) for task, x in tasks.items()}
        for name, tasks in models.items()
    }


def _mean(by_language: Mapping[str, float]) -> float:
    return math.fsum(by_language.values()) / len(by_language)


def table_of_models(models: Mapping[str, Mapping[str, float]], tasks: list[str]) -> Rows:
    """A row a model, best average first; the average is of ``tasks``, where a model has all."""

    def average(name: str) -> float | None:
        values = [models[name].get(task) for task in tasks]
        return None if None in values else math.fsum(values) / len(values)

    ranked = sorted(models, key=lambda name: -(average(name) or 0))
    rows = [
        [name, *(_number(x) for x in (average(name), *(models[name].get(t) for t in tasks)))]
        for name in ranked
    ]
    return [["model", "average", *tasks], *rows]


def table_of_languages(shown: Mapping[str, Mapping[str, float]]) -> Rows:
    """A row a language, a column a task; the mean of each at the end."""
    languages = sorted({language for found in shown.values() for language in found})
    rows = [
        [language, *(_number(found.get(language)) for found in shown.values())]
        for language in languages
    ]
    last = ["mean", *(_number(x) for x in means(shown).values())]
    return [["language", *shown], *rows, last]


def markdown(rows: Rows) -> str:
    """A table for a README."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    rule = "|" + "|".join([" --- "] + [" ---: "] * (len(rows[0]) - 1)) + "|"
    return "\n".join([head, rule, *body]) + "\n"


def _number(x: float | None) -> str:
    return "n/a" if x is None else f"{x:.3f}"
