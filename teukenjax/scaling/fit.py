"""From rows to rules: optima of all scans, then η*(B, D), B*(D) and the optimal norm.

A scan is what differs in learning rate and seed only; seeds are averaged. A scan whose lowest loss
is at an end of its grid has no optimum and takes no part, and is said.
"""

import collections
import contextlib
import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from teukenjax.data.begun import save
from teukenjax.errors import UserError
from teukenjax.scaling.curve import Curve, Optimum, optimum
from teukenjax.scaling.rules import Line, Rules

ROLES = ("output", "hidden", "input")
Row = dict[str, Any]


class Setup(NamedTuple):
    """What is trained, and how, apart from batch and horizon."""

    model: str
    optimizer: str
    momentum: float
    multipliers: tuple[float, float, float]  # input, hidden, output

    def __str__(self) -> str:
        ratio = " : ".join(f"{m:g}" for m in self.multipliers)
        return f"{self.model} {self.optimizer} β {self.momentum:g} {ratio}"


class Scan(NamedTuple):
    """What all points of a curve share."""

    setup: Setup
    batch: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.setup} batch {self.batch}"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What was found in a set of rows.

    Attributes:
      role: whose norm is x.
      intercept: the loss at the start.
      curves: by scan.
      optima: of those scans that have one.
      edges: the other scans.
      diverged: number of rows left out.
    """

    role: str
    intercept: float
    context: int
    curves: dict[Scan, Curve]
    optima: dict[Scan, Optimum]
    edges: list[Scan]
    diverged: int

    def best_batches(self) -> dict[Scan, Optimum]:
        """Of each setup and horizon, the scan with the lowest loss, if other batches surround it.

        With one batch there is nothing to choose, and the scan itself is given.
        """
        grouped = collections.defaultdict(dict)
        for scan, found in self.optima.items():
            grouped[scan.setup, scan.tokens][scan.batch] = (scan, found)
        best = {}
        for by_batch in grouped.values():
            scan, found = min(by_batch.values(), key=lambda pair: pair[1].loss)
            inside = min(by_batch) < scan.batch < max(by_batch)
            if inside or len(by_batch) == 1:
                best[scan] = found
        return best


def fit_rows(rows: Sequence[Row], traces: Sequence[Row], *, role: str = "output") -> Fitted:
    """Curves and optima of all scans.

    Args:
      rows: as ``results.read`` gives them.
      traces: likewise; the loss of step 1 is the intercept.
      role: input, hidden or output.

    Raises:
      UserError: when no scan has enough points, contexts differ, or a run has no weight of the
        role.
    """
    contexts = sorted({row["context"] for row in rows})
    if len(contexts) > 1:
        raise UserError(f"results of contexts {contexts}: a batch is counted in sequences: fit one")
    starts = [row["loss"] for row in traces if row["step"] == 1 and row["loss"] is not None]
    if not starts:
        raise UserError("no traces of step 1: the loss at the start is the intercept of the fit")
    intercept = float(np.mean(starts))
    curves = {scan: _curve(points, role) for scan, points in _scans(rows).items()}
    optima = {scan: optimum(curve, intercept=intercept) for scan, curve in curves.items()}
    found = {scan: best for scan, best in optima.items() if best is not None}
    if not found:
        most = max((len(curve.raw) for curve in curves.values()), default=0)
        raise UserError(
            f"too few points to fit: {len(rows)} rows in {len(curves)} scans, the longest of "
            f"{most} learning rates that did not diverge: an optimum needs four, two of them "
            "around it"
        )
    edges = [scan for scan, best in optima.items() if best is None]
    diverged = sum(row["diverged"] for row in rows)
    return Fitted(role, intercept, contexts[0], curves, found, edges, diverged)


def rate_rules(fitted: Fitted) -> dict[Setup, Line]:
    """η*(B, D) of every setup that has enough scans; with one batch, η*(D)."""
    lines = {}
    for setup, scans in _by_setup(fitted.optima).items():
        axes = {
            "batch": [float(np.log2(scan.batch)) for scan in scans],
            "tokens": [float(np.log2(scan.tokens)) for scan in scans],
        }
        axes = {name: values for name, values in axes.items() if len(set(values)) > 1}
        rates = [fitted.optima[scan].log2_rate for scan in scans]
        if axes:
            # Too few scans, or batches that only grow with the horizon, give no rule.
            with contextlib.suppress(UserError):
                lines[setup] = Line.fit(rates, **axes)
    return lines


def batch_rules(fitted: Fitted) -> dict[Setup, Line]:
    """B*(D) of every setup with best batches at three horizons or more."""
    lines = {}
    for setup, scans in _by_setup(fitted.best_batches()).items():
        several = {scan.batch for scan in fitted.optima if scan.setup == setup}
        if len(scans) >= 3 and len(several) > 1:
            tokens = [float(np.log2(scan.tokens)) for scan in scans]
            best = [float(np.log2(scan.batch)) for scan in scans]
            lines[setup] = Line.fit(best, tokens=tokens)
    return lines


def rules_of(fitted: Fitted, source: str) -> Rules | None:
    """For ``suggest``: of the setup with most scans; None if it has no η*(B, D)."""
    lines = {key: line for key, line in rate_rules(fitted).items() if "batch" in line.names}
    if not lines:
        return None
    setup = max(lines, key=lambda key: lines[key].points)
    scans = [scan for scan in fitted.optima if scan.setup == setup]
    best = [o.log2_norm for s, o in fitted.best_batches().items() if s.setup == setup]
    norms = np.array(best or [fitted.optima[scan].log2_norm for scan in scans])
    tokens = [float(np.log2(scan.tokens)) for scan in scans]
    return Rules(
        rate=lines[setup],
        batch=batch_rules(fitted).get(setup),
        context=fitted.context,
        log2_norm=(float(norms.mean()), float(norms.std(ddof=1)) if len(norms) > 1 else 0.0),
        log2_tokens=(min(tokens), max(tokens)),
        source=f"{source}: {setup.model}, {setup.optimizer}, momentum {setup.momentum:g}",
        role=fitted.role,
    )


def print_fit(console: Console, fitted: Fitted) -> None:
    """Every optimum, the best batches' norms, and the rules."""
    table = Table("scan", "log2 tokens", f"log2 norm ({fitted.role})", "loss", "log2 η*", box=None)
    best = fitted.best_batches()
    for scan, found in fitted.optima.items():
        table.add_row(
            str(scan),
            f"{np.log2(scan.tokens):g}",
            f"{found.log2_norm:.2f} ± {found.log2_norm_sd:.2f}",
            f"{found.loss:.3f} ± {found.loss_sd:.3f}" + (" *" if scan in best else ""),
            f"{found.log2_rate:.2f} ± {found.log2_rate_sd:.2f}",
        )
    console.print(table, highlight=False)
    console.print("± between the six variants of the fit; * best batch of its horizon")
    for scan in fitted.edges:
        where = f"{scan} at 2^{np.log2(scan.tokens):g} tokens"
        console.print(f"no optimum: {where}: the lowest loss is at an end of the grid")
    if fitted.diverged:
        console.print(f"{fitted.diverged} rows diverged: kept as rows, left out of fits")
    for lines, name in ((rate_rules(fitted), "η*"), (batch_rules(fitted), "B*")):
        for setup, line in lines.items():
            console.print(f"log2 {name} = {line}   [{setup}]")
    norms = np.array([found.log2_norm for found in best.values()])
    if len(norms) > 1:
        console.print(
            f"log2 norm at the best batches: {norms.mean():.2f} ± {norms.std(ddof=1):.2f}"
        )


def write_optima(fitted: Fitted, path: Path) -> None:
    """One CSV row a scan that has an optimum."""
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(Optimum)]
    scans = ("model", "optimizer", "momentum", "multiplier_input", "multiplier_hidden")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*scans, "multiplier_output", "batch", "tokens", *names))
    for scan, found in fitted.optima.items():
        values = [f"{value:.5g}" for value in dataclasses.astuple(found)]
        *head, multipliers = scan.setup
        head += [*multipliers, scan.batch, scan.tokens]
        writer.writerow((*head, *values))
    save(path, text.getvalue().encode())


def _scans(rows: Sequence[Row]) -> dict[Scan, list[Row]]:
    scans = collections.defaultdict(list)
    for row in rows:
        multipliers = tuple(row[f"multiplier_{role}"] for role in ("input", "hidden", "output"))
        setup = Setup(row["model"], row["optimizer"], row["momentum"], multipliers)
        if not row["diverged"] and row["norm_target"] is None:
            scans[Scan(setup, row["batch"], row["tokens"])].append(row)
    return dict(sorted(scans.items()))


def _curve(rows: list[Row], role: str) -> Curve:
    """Seeds of one rate become one point: mean losses, geometric mean norms."""
    by_rate = collections.defaultdict(list)
    for row in rows:
        if row[f"norm_{role}"] is None:
            raise UserError(
                f"role {role}: run {row['run']} has no norm of it: a tied table is output"
            )
        by_rate[row["log2_learning_rate"]].append(
            (np.log2(row[f"norm_{role}"]), row["loss"], row["loss_last"], row["loss_sd"])
        )
    return Curve.of([(*np.mean(same, axis=0), rate) for rate, same in by_rate.items()])


def _by_setup(optima: dict[Scan, Optimum]) -> dict[Setup, list[Scan]]:
    grouped = collections.defaultdict(list)
    for scan in optima:
        grouped[scan.setup].append(scan)
    return grouped
