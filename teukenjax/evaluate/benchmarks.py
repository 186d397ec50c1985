"""Runs a suite through the harness: task objects, and its results as one table of numbers."""

import logging
from typing import Any

import datasets
import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from teukenjax.errors import UserError
from teukenjax.evaluate.questions import NUMBER, WORDS
from teukenjax.evaluate.suite import Questions, TaskConfig

# task → language → metric → value; besides the harness's metrics, "questions": their number.
Scores = dict[str, dict[str, dict[str, float]]]


def run_suite(lm: LM, questions: Questions, *, limit: int | None = None) -> Scores:
    """Every task of a suite in every language, in the harness.

    Args:
      lm: ours (``harness.TeukenLM``), or one of the harness's own.
      questions: of a suite.
      limit: questions of each task and language; none: all.

    Raises:
      UserError: as ``Questions`` does, before anything is asked; and for answers that are as long
        as the model's context.
    """
    suite = questions.suite
    for name, task in suite.tasks.items():
        if task.kind == "gsm8k" and task.new_tokens >= lm.max_length:
            raise UserError(
                f"tasks.{name}.new_tokens={task.new_tokens}: leaves no room for a question in the "
                f"model's context of {lm.max_length} tokens"
            )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = {
        (name, language): _task(name, task, language, questions)
        for name, task in suite.tasks.items()
        for language in suite.languages
    }
    results = simple_evaluate(
        model=lm,
        tasks=list(tasks.values()),
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
        task_manager=TaskManager(include_defaults=False),
    )
    scores: Scores = {name: {} for name in suite.tasks}
    for name, language in tasks:
        values = results["results"][_id(name, language)]
        numbers = {
            key.removesuffix(",none").replace(",", "/"): float(value)
            for key, value in values.items()
            if isinstance(value, float) and "stderr" not in key
        }
        asked = results["n-samples"][_id(name, language)]["effective"]
        scores[name][language] = numbers | {"questions": asked}
    return scores


def _id(name: str, language: str) -> str:
    return f"{name}_{language}"


def _task(name: str, task: TaskConfig, language: str, questions: Questions) -> ConfigurableTask:
    asked = questions(name, language, task.split)
    splits = {"asked": datasets.Dataset.from_list(asked)}
    config: dict[str, Any] = {
        "task": _id(name, language),
        "test_split": "asked",
        "num_fewshot": task.shots,
        "doc_to_text": lambda doc: doc["prompt"],
        "custom_dataset": lambda **_: splits,
    }
    if examples := questions.examples(name, language):
        splits["examples"] = datasets.Dataset.from_list(examples)
        # The harness leaves a question out of its own examples only where both are of one split.
        config["fewshot_split"] = "asked" if examples == asked else "examples"
        config["fewshot_config"] = {"sampler": "first_n" if task.first_shots else "default"}
    config |= _generated(task, language) if task.kind == "gsm8k" else _chosen(task)
    return ConfigurableTask(config=config)


def _chosen(task: TaskConfig) -> dict[str, Any]:
    config = {
        "output_type": "multiple_choice",
        "doc_to_choice": lambda doc: doc["choices"],
        "doc_to_target": lambda doc: doc["gold"],
        "metric_list": [_mean(metric) for metric in task.metrics],
    }
    return config | ({"process_results": _true_mass} if task.kind == "truthfulqa_mc2" else {})


def _generated(task: TaskConfig, language: str) -> dict[str, Any]:
    question, _ = WORDS[language]
    stops = ["\n\n", f"{question}:"]
    options = {"until": stops, "do_sample": False, "max_gen_toks": task.new_tokens}
    ignored = [",", "\\$", "(?s).*#### ", "\\.$"]
    match = _mean(*task.metrics) | {"ignore_case": True, "regexes_to_ignore": ignored}
    number = [{"function": "regex", "regex_pattern": NUMBER}, {"function": "take_first"}]
    return {
        "output_type": "generate_until",
        "doc_to_target": lambda doc: doc["answer"],
        "generation_kwargs": options,
        "metric_list": [match],
        "filter_list": [{"name": "none", "filter": number}],
    }


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _true_mass(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """mc2: the share of probability that is on true answers (Lin et al. 2022, TruthfulQA)."""
    log_probs = np.array([score for score, _ in results])
    probabilities = np.exp(log_probs - log_probs.max())
    true = np.array(doc["labels"]) == 1
    return {"acc": float(probabilities[true].sum() / probabilities.sum())}
