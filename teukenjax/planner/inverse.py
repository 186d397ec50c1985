"""The questions asked backwards: how many devices, how large a model, how slow a network."""

from dataclasses import dataclass

import numpy as np

from teukenjax.errors import UserError
from teukenjax.planner.plans import NAMES
from teukenjax.planner.predict import doubled
from teukenjax.planner.search import Answer, Question, divisors, search
from teukenjax.recipe import ModelConfig
from teukenjax.units import DAY

MOST_DEVICES = 8192


@dataclass(frozen=True)
class Cluster:
    """The smallest cluster of one kind that meets a target."""

    answer: Answer
    days: float

    @property
    def gpu_hours(self) -> float:
        """Of the whole run."""
        return 24 * self.days * self.answer.question.devices


def days(answer: Answer, tokens: float) -> float:
    """For that many tokens, by the best plan; infinite when none fits."""
    speed = answer.tokens_per_s * answer.question.devices
    return tokens / (speed * DAY) if speed else np.inf


def counts(question: Question) -> list[int]:
    """The numbers of devices over which the batch divides, ascending."""
    tokens = question.recipe.tokens_per_step
    found = {
        n for length in question.lengths if tokens % length == 0 for n in divisors(tokens // length)
    }
    return sorted(n for n in found if n <= MOST_DEVICES)


def answers(question: Question, numbers: list[int]):
    """The answer for each number of devices that some mesh suits."""
    for count in numbers:
        try:
            yield search(question.on(devices=count))
        except UserError:
            continue  # the model does not divide over so many


def cluster_for(question: Question, *, tokens: float, target_days: float) -> Cluster | None:
    """The fewest devices that train so many tokens in time; none if no number does."""
    for answer in answers(question, counts(question)):
        if (needed := days(answer, tokens)) <= target_days:
            return Cluster(answer, needed)
    return None


def fewest_devices(question: Question) -> int | None:
    """The smallest number of devices on which any plan fits."""
    found = (a.question.devices for a in answers(question, counts(question)) if len(a.best))
    return next(found, None)


def longest_sequence(question: Question) -> int | None:
    """The longest sequence, below those asked for, with which any plan fits; multiples of 128."""
    tokens, shortest = question.recipe.tokens_per_step, min(question.lengths)
    lengths = [n for n in divisors(tokens) if n < shortest and n % 128 == 0]
    for length in reversed(lengths):
        try:
            answer = search(question.on(sequences=(length,)))
        except UserError:
            continue
        if len(answer.best):
            return length
    return None


def largest_model(question: Question, *, mfu: float) -> tuple[ModelConfig, Answer] | None:
    """The widest model of the recipe's form whose best plan reaches that MFU.

    Width grows in steps of one head, layers and FFN in proportion to it, KV heads and vocabulary
    stay. Widths that divide over no mesh are passed over.
    """
    found = None
    model = question.recipe.model
    for heads in range(model.kv_heads, 16 * model.heads + 1, model.kv_heads):
        grown = _of_heads(model, heads)
        recipe = question.recipe.model_copy(update={"model": grown})
        try:
            answer = search(question.on(recipe=recipe))
        except UserError:
            continue
        if len(answer.best) and answer.prediction.mfu[answer.best[0]] >= mfu:
            found = grown, answer
    return found


def _of_heads(model: ModelConfig, heads: int) -> ModelConfig:
    width = heads * model.head_dim
    ffn = round(model.ffn * width / model.width / 128) * 128
    layers = max(1, round(model.layers * width / model.width))
    return model.model_copy(
        update={"heads": heads, "width": width, "ffn": max(128, ffn), "layers": layers}
    )


def tensor_pays(question: Question) -> str:
    """At which network of a node FSDP × TP beats FSDP: "never", "always", or a bound in GB/s.

    Between a hundredth and four times the hardware's network, where the gain changes sign once at
    most. It need not be a slow network: a node receives as many bytes of weights either way.
    """

    def gain(factor: float) -> float:
        hw = doubled(question.hw, ("network_gb_per_s",), factor)
        answer = search(question.on(hw=hw))
        return best_of(answer, "fsdp_tp") - best_of(answer, "fsdp")

    low, high = 0.01, 4.0
    slow, fast = gain(low) > 0, gain(high) > 0
    if slow == fast:
        return "always" if slow else "never"
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if (gain(middle) > 0) == slow else (low, middle)
    return f"{'below' if slow else 'above'} {low * question.hw.node.network_gb_per_s:.0f} GB/s"


def best_of(answer: Answer, strategy: str) -> float:
    """Tokens/s per device of the best plan of one strategy; 0 when none fits."""
    prediction = answer.prediction
    mine = answer.best[prediction.plans.strategy[answer.best] == NAMES.index(strategy)]
    return float(prediction.tokens_per_s[mine[0]]) if len(mine) else 0.0
