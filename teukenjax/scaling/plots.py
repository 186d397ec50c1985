"""Pictures of a sweep, each beside the numbers that are drawn: NAME.png and NAME.csv."""

import collections
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from teukenjax.picture import Picture
from teukenjax.scaling.curve import parabola
from teukenjax.scaling.fit import Fitted, Row, Scan

COLOURS = "viridis"


def plot(rows: Sequence[Row], traces: Sequence[Row], fitted: Fitted, out: Path) -> list[Path]:
    """Draws what the rows have something to show for; returns the files."""
    pictures: dict[str, Callable[[], Picture | None]] = {
        "loss-norm": lambda: loss_against_norm(fitted),
        "optimal-norm": lambda: optimal_norm(fitted, _sizes(rows)),
        "optimal-rate": lambda: optimal_rate(fitted),
        "trajectories": lambda: trajectories(traces),
        "rate-transfer": lambda: rate_transfer(rows),
        "roles": lambda: role_map(rows),
    }
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in pictures.items():
        picture = draw()
        if picture is not None:
            written += picture.save(out / name)
    return written


def loss_against_norm(fitted: Fitted) -> Picture:
    """One panel a setup and batch, one colour a horizon; the parabola with c fixed."""
    panels = _grouped(fitted.curves, lambda scan: (scan.setup, scan.batch))
    figure, axes = _panels(len(panels))
    table = [("scan", "log2_tokens", "log2_rate", "log2_norm", "loss")]
    for axis, scans in zip(axes, panels.values(), strict=True):
        for scan, colour in zip(scans, _colours(len(scans)), strict=True):
            curve = fitted.curves[scan]
            label = f"2^{np.log2(scan.tokens):g}"
            axis.plot(curve.log2_norm, curve.smoothed, ".", color=colour, label=label)
            fit = parabola(curve.log2_norm, curve.smoothed, curve.sigma, intercept=fitted.intercept)
            if fit is not None and scan in fitted.optima:
                x = np.linspace(curve.log2_norm[0], curve.log2_norm[-1], 100)
                axis.plot(x, fit(x), color=colour, linewidth=0.7)
                axis.plot(*fit.lowest, "x", color=colour)
            points = zip(curve.log2_rate, curve.log2_norm, curve.smoothed, strict=True)
            table += [(str(scan), np.log2(scan.tokens), *point) for point in points]
        lowest = min(fitted.curves[scan].smoothed.min() for scan in scans)
        highest = max(fitted.curves[scan].smoothed.min() for scan in scans)
        axis.set_ylim(lowest - 0.1, highest + 0.8)
        axis.set(title=str(scans[0]), xlabel=f"log2 norm of {fitted.role}", ylabel="loss")
        axis.legend(title="tokens", fontsize="x-small")
    return Picture(figure, table)


def optimal_norm(fitted: Fitted, sizes: dict[str, tuple[int, int]]) -> Picture:
    """Against the horizon, a line a setup and batch; against width and depth, where they vary."""

    def size(scan: Scan) -> tuple[int, int]:
        return sizes[scan.setup.model]

    horizon = max(scan.tokens for scan in fitted.optima)
    last = [scan for scan in fitted.optima if scan.tokens == horizon]
    varied = [which for which in (0, 1) if len({size(scan)[which] for scan in last}) > 1]
    figure, (first, *others) = _panels(1 + len(varied))
    header = ("model", "width", "layers", "batch", "log2_tokens", "log2_norm", "log2_norm_sd")
    table: list[tuple] = [header]
    for scan, found in fitted.optima.items():
        values = (found.log2_norm, found.log2_norm_sd)
        table.append((scan.setup.model, *size(scan), scan.batch, np.log2(scan.tokens), *values))
    for scans in _grouped(fitted.optima, lambda scan: (scan.setup, scan.batch)).values():
        _norms(first, [np.log2(s.tokens) for s in scans], scans, fitted, str(scans[0]))
    first.set_xlabel("log2 tokens")
    for axis, which in zip(others, varied, strict=True):
        for same in _grouped(last, lambda s: (s.setup[1:], s.batch, size(s)[1 - which])).values():  # noqa: B023
            same = sorted(same, key=lambda s: size(s)[which])
            label = f"{same[0].setup.optimizer} batch {same[0].batch}"
            _norms(axis, [np.log2(size(s)[which]) for s in same], same, fitted, label)
        axis.set_title(f"2^{np.log2(horizon):g} tokens")
        axis.set_xlabel(f"log2 {('width', 'layers')[which]}")
    for axis in (first, *others):
        axis.set_ylabel(f"optimal log2 norm of {fitted.role}")
        axis.legend(fontsize="x-small")
    return Picture(figure, table)


def optimal_rate(fitted: Fitted) -> Picture:
    """log2 η* against tokens, a line a batch; and against the batch, a line a horizon."""
    figure, (left, right) = _panels(2)
    table: list[tuple] = [("scan", "batch", "log2_tokens", "log2_rate", "log2_rate_sd")]
    for scan, found in fitted.optima.items():
        where = (str(scan), scan.batch, np.log2(scan.tokens))
        table.append((*where, found.log2_rate, found.log2_rate_sd))
    for axis, key, x in (
        (left, lambda s: (s.setup, s.batch), lambda s: np.log2(s.tokens)),
        (right, lambda s: (s.setup, s.tokens), lambda s: np.log2(s.batch)),
    ):
        for scans in _grouped(fitted.optima, key).values():
            rates = [fitted.optima[scan] for scan in scans]
            tokens = "" if axis is left else f" 2^{np.log2(scans[0].tokens):g}"
            label = (str(scans[0]) if axis is left else scans[0].setup.model) + tokens
            y, sd = [r.log2_rate for r in rates], [r.log2_rate_sd for r in rates]
            axis.errorbar([x(s) for s in scans], y, sd, marker="o", label=label, linewidth=1)
        axis.legend(fontsize="x-small")
    left.set(xlabel="log2 tokens", ylabel="log2 η*")
    right.set(xlabel="log2 batch", ylabel="log2 η*")
    return Picture(figure, table)


def trajectories(traces: Sequence[Row]) -> Picture:
    """log2 norm of the output against log2 steps, a colour a rate; dotted: 1 + ηk, the bound."""
    panels = _grouped(traces, lambda row: row["run"].rpartition("/")[0])
    figure, axes = _panels(len(panels))
    table: list[tuple] = [("run", "log2_rate", "seed", "step", "log2_norm", "loss")]
    for axis, rows in zip(axes, panels.values(), strict=True):
        runs = _grouped(rows, lambda row: row["run"])
        rates = sorted({row["log2_learning_rate"] for row in rows})
        colours = dict(zip(rates, _colours(len(rates)), strict=True))
        for points in runs.values():
            rate, colour = points[0]["log2_learning_rate"], colours[points[0]["log2_learning_rate"]]
            points = [p for p in points if p["norm_output"]]
            step = np.array([p["step"] for p in points])
            norm = np.log2([p["norm_output"] for p in points])
            axis.plot(np.log2(step), norm, color=colour, label=f"2^{rate:g}", linewidth=1)
            axis.plot(np.log2(step), np.log2(1 + 2.0**rate * step), ":", color=colour, linewidth=1)
            table += [
                (p["run"], rate, p["seed"], p["step"], np.log2(p["norm_output"]), p["loss"])
                for p in points
            ]
        axis.set(title=f"{rows[0]['model']} batch {rows[0]['batch']}", xlabel="log2 step")
        axis.set_ylabel("log2 norm of output")
    named = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    axes[0].legend(named.values(), named.keys(), title="η", fontsize="xx-small")
    return Picture(figure, table)


def rate_transfer(rows: Sequence[Row]) -> Picture | None:
    """Loss against the learning rate at the longest horizon, a line a model, a panel an optimizer.

    None with fewer than two models.
    """
    rows = _at_the_end([row for row in rows if not row["diverged"] and _plain(row)])
    if len({row["model"] for row in rows}) < 2:
        return None
    panels = _grouped(rows, lambda row: (row["optimizer"], row["momentum"], row["batch"]))
    best = min(row["loss"] for row in rows)  # of all panels, to be compared
    figure, axes = _panels(len(panels))
    table: list[tuple] = [("optimizer", "momentum", "model", "batch", "log2_rate", "loss")]
    for axis, ((optimizer, momentum, batch), panel) in zip(axes, panels.items(), strict=True):
        models = _grouped(panel, lambda row: (row["width"], row["layers"], row["model"]))
        for (_, _, model), points in models.items():
            rates = _grouped(points, lambda row: row["log2_learning_rate"])
            losses = [float(np.mean([row["loss"] for row in same])) for same in rates.values()]
            (line,) = axis.plot(list(rates), losses, ".-", label=model, linewidth=1)
            lowest = int(np.argmin(losses))
            axis.plot(list(rates)[lowest], losses[lowest], "o", color=line.get_color())
            pairs = zip(rates, losses, strict=True)
            table += [(optimizer, momentum, model, batch, *pair) for pair in pairs]
        axis.set(title=f"{optimizer} β {momentum:g} batch {batch}", xlabel="log2 learning rate")
        axis.set(ylabel="loss", ylim=(best - 0.05, best + 1.5))
        axis.legend(fontsize="x-small")
    return Picture(figure, table)


def role_map(rows: Sequence[Row]) -> Picture | None:
    """Loss by multipliers and base rate at the longest horizon, the mean over seeds.

    Of the setup with most multipliers; None without any.
    """
    rows = _at_the_end([row for row in rows if row["loss"] is not None and not row["norm_target"]])
    setup = ("model", "optimizer", "momentum", "batch")
    programs = _grouped(rows, lambda row: tuple(row[name] for name in setup))
    layouts = {key: {_ratio(row) for row in some} for key, some in programs.items()}
    key = max(layouts, key=lambda key: len(layouts[key]))
    if len(layouts[key]) < 2:
        return None
    ratios = sorted(layouts[key], reverse=True)
    rates = sorted({row["log2_learning_rate"] for row in programs[key]})
    grid = np.full((len(ratios), len(rates)), np.nan)
    runs = _grouped(programs[key], lambda row: (_ratio(row), row["log2_learning_rate"]))
    for (ratio, rate), seeds in runs.items():
        losses = [row["loss"] for row in seeds]
        grid[ratios.index(ratio), rates.index(rate)] = np.mean(losses)
    figure, (axis,) = _panels(1)
    image = axis.imshow(grid, cmap=COLOURS, aspect="auto", vmax=np.nanmin(grid) + 0.5)
    axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axis.set_yticks(range(len(ratios)), [" : ".join(f"{m:g}" for m in r) for r in ratios])
    for (i, j), loss in np.ndenumerate(grid):
        axis.text(j, i, f"{loss:.3f}", ha="center", va="center", fontsize="x-small", color="w")
    axis.set(xlabel="log2 learning rate", ylabel="input : hidden : output", title=f"{key[0]} loss")
    figure.colorbar(image)
    table = [("input", "hidden", "output", "log2_rate", "loss")]
    for i, ratio in enumerate(ratios):
        table += [(*ratio, rate, grid[i, j]) for j, rate in enumerate(rates)]
    return Picture(figure, table)


def _ratio(row: Row) -> tuple[float, float, float]:
    return row["multiplier_input"], row["multiplier_hidden"], row["multiplier_output"]


def _plain(row: Row) -> bool:
    return _ratio(row) == (1.0, 1.0, 1.0) and row["norm_target"] is None


def _at_the_end(rows: Sequence[Row]) -> list[Row]:
    """Those of the longest horizon."""
    longest = max((row["tokens"] for row in rows), default=0)
    return [row for row in rows if row["tokens"] == longest]


def _sizes(rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    return {row["model"]: (row["width"], row["layers"]) for row in rows}


def _norms(axis, x: Sequence[float], scans: Sequence[Scan], fitted: Fitted, label: str) -> None:
    found = [fitted.optima[scan] for scan in scans]
    y, sd = [o.log2_norm for o in found], [o.log2_norm_sd for o in found]
    axis.errorbar(x, y, sd, marker="o", label=label, linewidth=1)


def _grouped[T](items: Sequence[T] | dict[T, Any], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """In the order of the keys."""
    groups = collections.defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(sorted(groups.items()))


def _panels(count: int) -> tuple[Figure, list]:
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.4 * columns, 3.6 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.grid(alpha=0.3)
    return figure, axes[:count]


def _colours(count: int) -> Iterator[Any]:
    return iter(colormaps[COLOURS](np.linspace(0, 0.9, count)))
