"""Pictures of what decides a plan: devices, network, sequence length, memory against bandwidth."""

import dataclasses

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from teukenjax.errors import UserError
from teukenjax.planner.inverse import counts, days
from teukenjax.planner.predict import doubled
from teukenjax.planner.search import Answer, Question, more_memory, search
from teukenjax.units import GIGA

REGIONS = {
    "fits nowhere": "#dddddd",
    "memory": "#e9a15b",
    "bandwidth": "#6f9ed6",
    "compute": "#8fc48f",
}
LOSS = 0.05  # of the step: below it, what is lost is not what binds


def _axes(columns: int):
    figure = Figure(figsize=(5 * columns, 3.6), layout="constrained")
    return figure, figure.subplots(1, columns)


def cluster_figure(question: Question, tokens: float):
    """Days and MFU against the number of devices."""
    sizes, found = [], []
    for count in counts(question):
        answer = _answer(question.on(devices=count))
        if answer is not None:
            sizes.append(count)
            found.append(answer)
    figure, (left, right) = _axes(2)
    left.loglog(sizes, [days(answer, tokens) for answer in found], "o-")
    left.set(xlabel="devices", ylabel=f"days for {tokens:.3g} tokens, predicted")
    right.semilogx(sizes, [100 * best_mfu(answer) for answer in found], "o-")
    right.set(xlabel="devices", ylabel="MFU, %, predicted")
    return figure


def sweep_figure(question: Question):
    """MFU against the network and against the sequence length, batch tokens kept."""
    figure, (left, right) = _axes(2)
    factors = 2.0 ** np.arange(-6, 3)
    networks = [doubled(question.hw, ("network_gb_per_s",), float(f)) for f in factors]
    points = [(hw.node.network_gb_per_s, _answer(question.on(hw=hw))) for hw in networks]
    left.semilogx(*_points(points), "o-")
    left.set(xlabel="network, GB/s per node", ylabel="MFU, %, predicted")
    context = question.recipe.model.context
    lengths = [context * 2**k // 8 for k in range(9)]
    points = [(n, _answer(question.on(sequences=(n,)))) for n in lengths]
    right.semilogx(*_points(points), "o-")
    right.set(xlabel="sequence, tokens", ylabel="MFU, %, predicted")
    return figure


def _points(pairs) -> tuple[list, list]:
    found = [(x, 100 * best_mfu(answer)) for x, answer in pairs if answer is not None]
    return [x for x, _ in found], [y for _, y in found]


def best_mfu(answer: Answer) -> float:
    """Of the best plan."""
    return float(answer.prediction.mfu[answer.best[0]])


def _answer(question: Question) -> Answer | None:
    """The answer if there is a plan that fits."""
    try:
        answer = search(question)
    except UserError:
        return None  # the batch does not divide
    return answer if len(answer.best) else None


def plane_figure(question: Question, *, points: int = 12) -> Figure:
    """The memory-bandwidth plane: what binds the best plan, and its MFU.

    Both fabrics are scaled together. Memory binds where recomputation, which more memory would
    spare, takes a larger part of the step than exposed collectives; bandwidth where it is the
    other way; compute where neither takes 5 %.
    """
    has, node = question.hw.target.memory_bytes / GIGA, question.hw.node
    memories = np.geomspace(has / 8, has * 4, points)
    factors = np.geomspace(1 / 64, 4, points)
    region, mfu = np.zeros((points, points)), np.zeros((points, points))
    for row, column in np.ndindex(points, points):
        hw = more_memory(question.hw, (memories[column] - has) * GIGA)
        hw = doubled(hw, ("fast_gb_per_s", "network_gb_per_s"), float(factors[row]))
        answer = _answer(question.on(hw=hw))
        if answer is not None:
            region[row, column] = list(REGIONS).index(what_binds(answer))
            mfu[row, column] = 100 * best_mfu(answer)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = ListedColormap(list(REGIONS.values()))
    bandwidth = factors * node.fast_gb_per_s
    axes.pcolormesh(memories, bandwidth, region, cmap=colours, vmin=-0.5, vmax=3.5)
    lines = axes.contour(memories, bandwidth, mfu, levels=range(5, 60, 5), colors="black")
    axes.clabel(lines, fmt="%d %%", fontsize=8)
    axes.plot([has], [node.fast_gb_per_s], "k*", markersize=12)
    axes.set(xscale="log", yscale="log", xlabel="memory, GB per device")
    axes.set_ylabel("NVLink, GB/s per device (network in proportion)")
    axes.legend(handles=[Patch(color=c, label=name) for name, c in REGIONS.items()], fontsize=8)
    return figure


def what_binds(answer: Answer) -> str:
    """The region of the plane in which the best plan lies."""
    first, time, plans = int(answer.best[0]), answer.prediction.time, answer.prediction.plans
    spared = dataclasses.replace(plans, remat=np.zeros_like(plans.remat))
    free = answer.prediction.on(spared).products[first]
    total = time.total[first]
    recomputed = (time.products[first] - free) / total
    exposed = (time.exposed[first] + time.latency[first]) / total
    if max(recomputed, exposed) < LOSS:
        return "compute"
    return "memory" if recomputed > exposed else "bandwidth"
