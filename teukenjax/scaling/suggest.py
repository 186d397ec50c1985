"""A batch and a learning rate for a recipe and a number of tokens, from a rule.

What the rule was measured on is compared with what the recipe is, and every difference is said: a
rule knows nothing of tied tables, momentum or a decaying rate.
"""

import dataclasses
from pathlib import Path

import numpy as np
from rich.console import Console

from teukenjax.errors import UserError
from teukenjax.recipe import Recipe, to_yaml
from teukenjax.run import write_atomically
from teukenjax.scaling.rules import Rules

# Role → its norm for people, and its name in metrics.jsonl.
NORMS = {
    "input": ("‖W_in‖ 1→RMS", "one_to_rms"),
    "hidden": ("‖W_hidden‖ RMS→RMS", "rms_to_rms"),
    "output": ("‖W_out‖ RMS→∞", "rms_to_inf"),
}


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """What to train with.

    Attributes:
      recipe: with batch, learning rate and steps set.
      log2_rate: and its standard deviation for a single run.
      log2_batch: in sequences of the recipe's context, before rounding; none: kept.
      caveats: how the recipe differs from what the rule was measured on.
    """

    recipe: Recipe
    log2_rate: tuple[float, float]
    log2_batch: tuple[float, float] | None
    caveats: list[str]


def suggest(recipe: Recipe, rules: Rules, *, tokens: float) -> Suggestion:
    """The rule, applied: micro-batches to the nearest power of two, rate for that batch.

    Raises:
      UserError: for no tokens, fewer than a step, or a recipe whose optimizer is not Scion.
    """
    if recipe.optimizer.name != "scion":
        raise UserError(f"optimizer.name={recipe.optimizer.name}: the rule is one of Scion's rates")
    if not 0 < tokens < np.inf:  # nor NaN
        raise UserError(f"--tokens {tokens:g}: must be positive and finite")
    log2_tokens = float(np.log2(tokens))
    sequences, log2_batch = recipe.batch.sequences, None
    # A rule's batch is in tokens, whatever the sequences it was counted in.
    ratio = float(np.log2(rules.context / recipe.model.context))
    if rules.batch is not None:
        value, spread = rules.batch.at(tokens=log2_tokens)
        log2_batch = value + ratio, spread
        parts = recipe.batch.accumulation
        sequences = parts * 2 ** max(round(log2_batch[0] - float(np.log2(parts))), 0)
    known = {"batch": float(np.log2(sequences)) - ratio, "tokens": log2_tokens}
    rate = rules.rate.at(**{name: known[name] for name in rules.rate.names[:-1]})
    steps = int(tokens // (sequences * recipe.model.context))
    if steps < 1:
        raise UserError(f"--tokens {tokens:g}: less than a step of {sequences} sequences")
    optimizer = recipe.optimizer.model_copy(update={"learning_rate": float(2.0 ** rate[0])})
    batch = recipe.batch.model_copy(update={"sequences": sequences})
    changed = {"optimizer": optimizer, "batch": batch, "steps": steps}
    return Suggestion(
        recipe.model_copy(update=changed), rate, log2_batch, caveats(recipe, rules, log2_tokens)
    )


def caveats(recipe: Recipe, rules: Rules, log2_tokens: float) -> list[str]:
    """Where the recipe is not what "Optimal Scaling Needs Optimal Norm" and our fits measured."""
    model, optimizer = recipe.model, recipe.optimizer
    factors = {factor for phase in recipe.schedule for factor in (phase.start, phase.end)}
    differences = {
        "model.tied=true": model.tied,
        f"model.norms={model.norms}": model.norms != "everywhere",
        "model.norm_gain=true": model.norm_gain,
        f"optimizer.momentum={optimizer.momentum:g}": optimizer.momentum != 0,
        "optimizer.constrained=true": optimizer.constrained,
        f"optimizer.weight_decay={optimizer.weight_decay:g}": optimizer.weight_decay > 0,
        f"optimizer.preset={optimizer.preset}": optimizer.preset != "untied",
        "a schedule that is not constant": len(factors) > 1,
    }
    found = [name for name, differs in differences.items() if differs]
    low, high = rules.log2_tokens
    beyond = max(low - log2_tokens, log2_tokens - high)
    if beyond > 0:
        found.append(f"{beyond:.1f} octaves of tokens outside of 2^{low:g} … 2^{high:g}")
    return found


def print_suggestion(console: Console, made: Suggestion, rules: Rules) -> None:
    """The numbers, with what one standard deviation is, and what they rest on."""
    recipe, (rate, spread) = made.recipe, made.log2_rate
    console.print(f"rule      {rules.source}", highlight=False)
    if made.log2_batch is None:
        console.print(f"batch     {recipe.batch.sequences} sequences, as given: the rule has no B*")
    else:
        value, sd = made.log2_batch
        low, high = 2 ** (value - sd), 2 ** (value + sd)
        console.print(
            f"batch     {recipe.batch.sequences} sequences × {recipe.model.context}: "
            f"{2**value:.4g}, from {low:.4g} to {high:.4g}",
            highlight=False,
        )
    low, high = 2 ** (rate - spread), 2 ** (rate + spread)
    (norm, norm_sd), (of, name) = rules.log2_norm, NORMS[rules.role]
    lines = (
        f"rate      {2**rate:.3g} (2^{rate:.2f}), from {low:.3g} to {high:.3g}, constant",
        f"steps     {recipe.steps:,} = {recipe.steps * recipe.tokens_per_step:,} tokens",
        f"look for  {of} of 2^{norm:.1f} ± {norm_sd:.1f} at the end "
        f"(norm/weight/{rules.role}/{name} in metrics.jsonl)",
        f"as        batch.sequences={recipe.batch.sequences} "
        f"optimizer.learning_rate={recipe.optimizer.learning_rate:.4g} steps={recipe.steps}",
    )
    for line in lines:
        console.print(line, highlight=False)
    for caveat in made.caveats:
        console.print(f"caution   the rule was not measured with this: {caveat}", highlight=False)


def write_recipe(made: Suggestion, path: Path) -> None:
    """The recipe with the suggestion in it."""
    write_atomically(path, to_yaml(made.recipe))
