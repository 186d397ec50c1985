"""The best plans, compiled: what the model predicted beside what the compiler made."""

from collections import Counter
from dataclasses import dataclass

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from teukenjax.errors import UserError
from teukenjax.planner.compiled import Compiled, compile_step
from teukenjax.planner.plans import NAMES
from teukenjax.planner.search import Answer, recipe_of
from teukenjax.planner.step_time import wire_bytes
from teukenjax.units import GIB, GIGA


@dataclass(frozen=True)
class Check:
    """One plan: predicted against compiled; ``compiled`` is none if it failed, for ``reason``."""

    index: int
    memory: float  # bytes without reserve, predicted
    flops: float
    wire: float  # bytes that each device sends in a step, predicted
    compiled: Compiled | None
    reason: str = ""

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step, compiled."""
        return sum(c.sent for c in self.compiled.collectives)


def check(answer: Answer, index: int) -> Check:
    """Compiles one plan of an answer."""
    question, prediction = answer.question, answer.prediction
    rows = np.array([index])
    held = prediction.memory
    predicted = {
        "memory": float(held.counted[index]),
        "flops": float(prediction.time.hardware_flops[index]),
        "wire": float(wire_bytes(prediction.plans[rows], prediction.setting)[0]),
    }
    recipe = recipe_of(question.recipe, prediction.plans, index)
    try:
        made = compile_step(recipe, question.hw, question.devices)
    except jax.errors.JaxRuntimeError as error:
        return Check(index, **predicted, compiled=None, reason=str(error).splitlines()[0])
    return Check(index, **predicted, compiled=made)


def check_best(console: Console, answer: Answer, count: int) -> list[Check]:
    """Compiles the first ``count`` plans and prints each when it is done.

    Raises:
      UserError: when the compiler for GPUs is not installed, or nothing fits.
    """
    if not len(answer.best):
        raise UserError("--compile: no plan fits, so there is none to compile")
    checks = []
    for index in answer.best[:count]:
        console.print(f"compiling {_name(answer, int(index))} …", highlight=False)
        checks.append(check(answer, int(index)))
    console.print(_table(answer, checks))
    for done in checks:
        if done.compiled is not None:
            console.print(f"{_name(answer, done.index)}: {_collectives(done.compiled)}")
    return checks


def _table(answer: Answer, checks: list[Check]) -> Table:
    table = Table(box=None, title="predicted / compiled (error), per device and step")
    for title in ("plan", "GiB", "temporary GiB", "TFLOP", "GB sent", "compiled in"):
        table.add_column(title, justify="left" if title == "plan" else "right")
    for done in checks:
        name = _name(answer, done.index)
        if done.compiled is None:
            table.add_row(name, f"cannot be compiled: {done.reason:.100}")
            continue
        made = done.compiled
        table.add_row(
            name,
            _pair(done.memory / GIB, made.memory / GIB, ".2f"),
            f"{made.temporary / GIB:.2f}",
            _pair(done.flops / 1e12, made.flops / 1e12, ".0f"),
            _pair(done.wire / GIGA, done.sent / GIGA, ".1f"),
            f"{made.seconds:.0f} s",
        )
    return table


def _pair(predicted: float, compiled: float, form: str) -> str:
    error = f" ({predicted / compiled - 1:+.1%})" if compiled else ""
    return f"{predicted:{form}} / {compiled:{form}}{error}"


def _name(answer: Answer, index: int) -> str:
    plans = answer.prediction.plans
    mesh = f"{plans.replica[index]}×{plans.fsdp[index]}×{plans.tensor[index]}"
    return f"{NAMES[plans.strategy[index]]} {mesh} micro-batch {plans.micro_batch[index]}"


def _collectives(made: Compiled) -> str:
    """By kind and group: how many, of how many bytes in all, over which devices."""
    bytes_, counts = Counter(), Counter()
    for found in made.collectives:
        key = (found.kind, found.group)
        bytes_[key] += found.count * found.bytes
        counts[key] += found.count
    parts = (
        f"{counts[key]} {key[0]} of {size / GIGA:.2f} GB over {_group(key[1])}"
        for key, size in bytes_.most_common()
        if size > 1e6
    )
    return "; ".join(parts)


def _group(members: tuple[int, ...]) -> str:
    stride = members[1] - members[0]
    return f"{len(members)} devices" + (f" {stride} apart" if stride > 1 else "")
