"""What a sweep is: a recipe and axes, and how they fall into groups that train together.

Runs of one shape (model, batch) are one group: its learning rates, seeds and multipliers are the
members of one program. Horizons cost nothing: they are read off the run of the longest, which a
constant learning rate makes the same run.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from teukenjax.errors import UserError, nearest
from teukenjax.recipe import PositiveFloat, Recipe, Section, digest, load, read_yaml, validate

# Set by an axis, so not by a recipe or a model of the sweep.
AXES = {
    "optimizer.learning_rate": "log2_learning_rate",
    "batch.sequences": "batch",
    "steps": "log2_tokens",
}


class Multipliers(Section):
    """Factors of the learning rate by role, over the recipe's own."""

    input: PositiveFloat = 1.0
    hidden: PositiveFloat = 1.0
    output: PositiveFloat = 1.0
    gain: PositiveFloat = 1.0


Nonempty = Field(min_length=1)
StartSeed = Annotated[int, Field(ge=0, lt=2**32)]


class SweepConfig(Section):
    """A file of configs/sweeps."""

    recipe: Path  # what all runs share; relative to the sweep's file
    models: Annotated[dict[str, dict[str, Any]], Nonempty]  # name → key: value over the recipe's
    batch: Annotated[tuple[PositiveInt, ...], Nonempty]  # sequences a step
    log2_learning_rate: Annotated[tuple[float, ...], Nonempty]
    log2_tokens: Annotated[tuple[float, ...], Nonempty]  # horizons
    # Of the start; the order of the data is by the recipe's seed.
    seeds: Annotated[tuple[StartSeed, ...], Nonempty] = (42,)
    multipliers: Annotated[tuple[Multipliers, ...], Nonempty] = (Multipliers(),)
    together: PositiveInt = 16  # runs of one program, at most


@dataclasses.dataclass(frozen=True)
class Member:
    """What tells a run of a group from the others."""

    log2_learning_rate: float
    seed: int
    multiplier: Multipliers


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that train together.

    Attributes:
      model: its name in the sweep.
      recipe: what they share; the axes that the members have are at the first member's values.
      members: the runs.
      horizons: optimizer steps after which rows are written, rising; the last is the end.
    """

    model: str
    recipe: Recipe
    members: tuple[Member, ...]
    horizons: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of its files; another one when anything that decides its numbers is."""
        members = [(*dataclasses.astuple(m)[:2], m.multiplier.model_dump()) for m in self.members]
        recipe = self.recipe.model_dump(mode="json", exclude={"out", "hardware", "checkpoint"})
        text = json.dumps([recipe, members, self.horizons], sort_keys=True)
        mark = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.model}-b{self.recipe.batch.sequences}-{mark}"


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> list[Group]:
    """The groups of the sweep at ``path``, in its order: models, then batches.

    Args:
      path: a YAML file.
      overrides: ``key=value`` over the recipe, as ``train`` takes them; a model's own win.

    Raises:
      UserError: for what ``recipe.load`` refuses, a key that is an axis, a horizon that is not a
        whole number of steps, or several horizons of runs whose rate does not stay constant.
    """
    config = validate(SweepConfig, read_yaml(path), str(path))
    for name, changes in [("KEY=VALUE", dict(o.split("=", 1) for o in overrides if "=" in o))] + [
        (f"{path}: models.{name}", changes) for name, changes in config.models.items()
    ]:
        for key in changes.keys() & AXES.keys():
            raise UserError(f"{name}: {key} is an axis of the sweep: {AXES[key]} in {path}")
    shapes = itertools.product(config.models, config.batch)
    return [
        group
        for model, batch in shapes
        for group in _groups(path, config, list(overrides), model, batch)
    ]


def select(groups: Sequence[Group], models: Sequence[str]) -> list[Group]:
    """The groups of some models, or all; a UserError for a name that the sweep has not."""
    known = {group.model for group in groups}
    for name in models:
        if name not in known:
            raise UserError(f"model '{name}': not in the sweep: {nearest(name, known)}")
    return [group for group in groups if not models or group.model in models]


def _groups(path, config: SweepConfig, overrides, model: str, batch: int) -> Iterator[Group]:
    changes = [f"{key}={json.dumps(value)}" for key, value in config.models[model].items()]
    members = [
        Member(rate, seed, multiplier)
        for multiplier in config.multipliers
        for seed in config.seeds
        for rate in config.log2_learning_rate
    ]
    first = load(
        path.parent / config.recipe, [*overrides, *changes, f"batch.sequences={batch}", "steps=1"]
    )
    horizons = [_steps(path, tokens, first) for tokens in sorted(set(config.log2_tokens))]
    recipe = first.model_copy(update={"steps": horizons[-1]})
    _refuse_changing_rates(path, recipe, horizons)
    for start in range(0, len(members), config.together):
        some = tuple(members[start : start + config.together])
        rate = 2.0 ** some[0].log2_learning_rate
        optimizer = recipe.optimizer.model_copy(update={"learning_rate": rate})
        update = {"optimizer": optimizer}
        yield Group(model, recipe.model_copy(update=update), some, tuple(horizons))


def _steps(path: Path, log2_tokens: float, recipe: Recipe) -> int:
    tokens = 2.0**log2_tokens
    steps = tokens / recipe.tokens_per_step
    if steps != int(steps) or steps < 1:
        raise UserError(
            f"{path}: log2_tokens={log2_tokens:g} is {tokens:,.6g} tokens, no whole number of "
            f"steps of batch={recipe.batch.sequences} × {recipe.model.context} = "
            f"{recipe.tokens_per_step:,} tokens: take powers of two, or other horizons"
        )
    return int(steps)


def _refuse_changing_rates(path: Path, recipe: Recipe, horizons: list[int]) -> None:
    """Several horizons are one run only if its rate is constant from the first of them on."""
    *before, last = recipe.schedule
    warm = sum(phase.steps or 0 for phase in before)
    steered = getattr(recipe.optimizer, "norm_target", None) is not None
    if len(horizons) > 1 and (steered or last.start != last.end or warm > horizons[0]):
        raise UserError(
            f"{path}: log2_tokens has {len(horizons)} horizons, but the learning rate changes "
            f"after step {horizons[0]}, the first of them: give one horizon, or a rate that is "
            "constant from there on"
        )


def member_recipe(group: Group, member: Member) -> Recipe:
    """The recipe of one run by itself: what ``train`` would do, but for the start's seed."""
    optimizer = group.recipe.optimizer
    update: dict[str, Any] = {"learning_rate": 2.0**member.log2_learning_rate}
    if optimizer.name == "scion":
        own = optimizer.multiplier.model_dump()
        factors = member.multiplier.model_dump()
        product = {role: (own[role] or 1.0) * factors[role] for role in factors}
        update["multiplier"] = optimizer.multiplier.model_copy(update=product)
    return group.recipe.model_copy(update={"optimizer": optimizer.model_copy(update=update)})


def member_hash(group: Group, member: Member) -> str:
    """``recipe_hash`` of a row: of the run's recipe, and the seed of its start."""
    text = f"{digest(member_recipe(group, member))} {member.seed}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
