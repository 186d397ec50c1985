"""A plan in words: the table of the best, the memory of the first, what binds it and would lift it.

Every number says how it was got: predicted by the model, or compiled. Tokens/s and MFU are as in
training: (6N + 6·L·H·N·S) FLOPs a token over the dense bf16 peak.
"""

from rich.console import Console
from rich.table import Table

from teukenjax.planner.bounds import Bounds, bounds
from teukenjax.planner.memory import capacity
from teukenjax.planner.plans import NAMES
from teukenjax.planner.predict import Prediction
from teukenjax.planner.remat import POLICIES
from teukenjax.planner.search import Answer, what_if
from teukenjax.units import DAY, GIB


def print_answer(console: Console, answer: Answer, *, top: int, tokens: float | None) -> None:
    """The best plans and, of the first, where memory goes, what binds, what would lift it."""
    question, prediction = answer.question, answer.prediction
    console.print(
        f"{len(prediction.plans):,} plans on {question.devices} × {question.hw.name}, "
        f"{len(answer.best):,} fit in {capacity(prediction.setting) / GIB:.1f} GiB; "
        f"{question.recipe.tokens_per_step:,} tokens a step; all numbers predicted"
    )
    console.print(best_table(answer, top=top, tokens=tokens))
    first = int(answer.best[0])
    console.print(memory_line(prediction, first))
    console.print(time_line(prediction, first))
    console.print(bounds_line(bounds(prediction, first)))
    lifts = ", ".join(f"{name}: {gain:+.1%}" for name, gain in what_if(answer).items())
    console.print(f"what would lift it: {lifts}")


def best_table(answer: Answer, *, top: int, tokens: float | None) -> Table:
    """One row a plan, fastest first."""
    table = Table(box=None)
    for title in ("strategy", "mesh r×f×t", "micro × acc", "sequence", "remat", "light", "gather"):
        table.add_column(title)
    for title in ("tok/s/GPU", "MFU", "HFU", "GiB", "exposed", "days", "GPU-hours", "binds"):
        table.add_column(title, justify="right")
    for index in answer.best[:top]:
        table.add_row(*plan_cells(answer.prediction, int(index), tokens))
    return table


def plan_cells(prediction: Prediction, index: int, tokens: float | None) -> list[str]:
    """One plan, as the cells of ``best_table``."""
    plans, time = prediction.plans, prediction.time
    speed, devices = prediction.tokens_per_s[index], int(plans.devices[index])
    seconds = None if tokens is None else tokens / (speed * devices)
    return [
        NAMES[plans.strategy[index]],
        f"{plans.replica[index]}×{plans.fsdp[index]}×{plans.tensor[index]}",
        f"{plans.micro_batch[index]} × {plans.accumulation[index]}",
        f"{plans.sequence[index]}",
        POLICIES[plans.remat[index]],
        "yes" if plans.light[index] else "no",
        "step" if plans.once[index] else "layer",
        f"{speed:,.0f}",
        f"{prediction.mfu[index]:.1%}",
        f"{prediction.hfu[index]:.1%}",
        f"{prediction.memory.total[index] / GIB:.1f}",
        f"{time.exposed[index] / time.total[index]:.1%}",
        "-" if seconds is None else f"{seconds / DAY:,.1f}",
        "-" if seconds is None else f"{seconds * devices / 3600:,.0f}",
        str(prediction.binding()[index]),
    ]


def memory_line(prediction: Prediction, index: int) -> str:
    """Where a plan's memory goes, in GiB."""
    split = prediction.memory.split(index)
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in split.items() if size)
    return f"memory of the first, GiB: {parts}"


def time_line(prediction: Prediction, index: int) -> str:
    """Where a step's time goes."""
    time = prediction.time
    names = ("products", "attention", "passes", "exposed", "latency", "optimizer")
    seconds = {name: getattr(time, name)[index] for name in names}
    parts = ", ".join(f"{name} {value:.3f}" for name, value in seconds.items() if value)
    return f"a step of {time.total[index]:.3f} s: {parts}"


def bounds_line(found: Bounds) -> str:
    """What no plan of this kind exceeds."""
    parts = [f"tokens/s/GPU by compute {found.compute:,.0f}", f"{found.tokens_max:,} tokens fit"]
    if found.tokens_even:  # there are collectives
        parts[0] += f", collectives {found.communication:,.0f}"
        parts[1] += f", {found.tokens_even:,} last as long as its collectives"
        even = f"{found.bandwidth_even / 1e9:.0f} GB/s"
        parts.append(f"collectives outlast computing with NVLink below {even}")
    fewest = found.devices_min or "no number of"
    parts.insert(2, f"at least {fewest} device{'' if fewest == 1 else 's'}")
    return f"bounds: {'; '.join(parts)}"
