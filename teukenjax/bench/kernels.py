"""``teukenjax bench kernels``: every kernel beside what XLA and cuDNN make of the same call."""

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from teukenjax.hardware import Hardware
from teukenjax.kernels.case import Case
from teukenjax.kernels.choice import Device
from teukenjax.planner.stopwatch import seconds

CALLS_S = 0.02  # a sample is a run of calls at least this long: they queue, as in a step
SAMPLES = 8


@dataclass(frozen=True)
class Row:
    """One implementation of one case.

    Attributes:
      times: seconds of a call, by sample; empty where it cannot run.
      error: the largest difference from the case's first implementation in fp32, as a share of
        the largest value of the array it occurs in.
      refusal: why it did not run.
    """

    case: Case
    implementation: str
    times: tuple[float, ...] = ()
    error: float | None = None
    refusal: str = ""

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.times)


def measure(cases: Iterator[Case]) -> Iterator[Row]:
    """Checks and times each implementation of each case on the first device."""
    device = Device.of(jax.devices()[0])
    refusals = {
        "pallas": device.pallas_refusal,
        "cudnn": device.gpu_refusal,
        "reference": None,
    }
    for case in cases:
        inputs = case.inputs()
        widened = wide(inputs)
        exact = _compiled(case, case.implementations[0], widened)(*widened)
        del widened  # the memory is wanted
        for name in case.implementations:
            if refusals[name] is not None:
                yield Row(case, name, refusal=refusals[name])
                continue
            call = _compiled(case, name, inputs)
            error = largest_error(call(*inputs), exact)
            yield Row(case, name, samples(call, inputs), error)


def _compiled(case: Case, implementation: str, inputs: tuple) -> Callable:
    def call(*inputs):
        return case.call(*inputs, implementation=implementation)

    return jax.jit(call).lower(*inputs).compile()


def wide(tree: Any) -> Any:
    """The same with fp32 for all shorter floating point."""

    def widened(x):
        return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(widened, tree)


def largest_error(found: Any, exact: Any) -> float:
    """Over all arrays of two trees: the largest difference over the largest exact value."""

    @jax.jit
    def error(x, y):
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        return jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y))

    errors = jax.tree.leaves(jax.tree.map(error, found, exact))
    return max(float(x) for x in errors)


def samples(call: Callable, inputs: tuple, *, count: int = SAMPLES) -> tuple[float, ...]:
    """Seconds of a call in each sample, after a first run that sets their length."""
    calls = max(1, round(CALLS_S / seconds(call, *inputs, repeats=3)))
    return tuple(seconds(call, *inputs, repeats=calls) for _ in range(count))


def show(console: Console, rows: Iterator[Row], hw: Hardware | None) -> list[Row]:
    """A table, one line an implementation; returns the rows."""
    table = Table("call", "by", "median ms", "min … max", "rate", "of the roof", "error")
    done = []
    for row in rows:
        done.append(row)
        is_first = row.implementation == row.case.implementations[0]
        label = f"{row.case.kernel}: {row.case.what}" if is_first else ""
        table.add_row(label, row.implementation, *_cells(row, hw))
    console.print(table)
    return done


def _cells(row: Row, hw: Hardware | None) -> Iterator[str]:
    if not row.times:
        yield row.refusal
        return
    case = row.case
    yield f"{row.median * 1e3:.3f}"
    yield f"{min(row.times) * 1e3:.3f} … {max(row.times) * 1e3:.3f}"
    by_flops = f"{case.flops / row.median / 1e12:,.3g} TFLOP/s"
    yield by_flops if case.flops else f"{case.bytes / row.median / 1e9:,.4g} GB/s"
    yield "" if hw is None else f"{roof(case, hw) / row.median:.0%}"
    yield f"{row.error:.1e}"


def roof(case: Case, hw: Hardware) -> float:
    """Seconds that the definition's FLOPs and the least traffic need at the datasheet's rates.

    A symmetric product may go beyond: it needs half of the FLOPs of its definition.
    """
    return max(case.flops / hw.bf16_tflops / 1e12, case.bytes / hw.memory_gb_per_s / 1e9)


def choices(rows: list[Row], gpu: str) -> Iterator[str]:
    """Lines for ``kernels/measured.yaml``: the cases that decide, with all that ran."""
    deciding = (row for row in rows if row.case.shape and row.times)
    for case, ran in itertools.groupby(deciding, key=lambda row: row.case):
        times = ", ".join(f"{row.implementation}: {row.median * 1e3:.3g}" for row in ran)
        sizes = ", ".join(f"{letter}: {size}" for letter, size in case.shape.items())
        yield f"- {{kernel: {case.kernel}, gpu: {gpu}, shape: {{{sizes}}}, ms: {{{times}}}}}"
