"""A report for whoever buys the machines: one HTML file, every number with its origin."""

import base64
import html
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from teukenjax.errors import UserError
from teukenjax.planner.bounds import bounds
from teukenjax.planner.inverse import counts, days
from teukenjax.planner.own import own_errors
from teukenjax.planner.plans import NAMES
from teukenjax.planner.predict import doubled
from teukenjax.planner.remat import POLICIES
from teukenjax.planner.report import GIB
from teukenjax.planner.search import Answer, Question, search, what_if
from teukenjax.planner.table import mape
from teukenjax.run import write_atomically

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 52em; margin: 2em auto; color: #222 }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
img { max-width: 100% } small { color: #666 }
"""


def write_document(answer: Answer, tokens: float, out: Path) -> None:
    """Writes the report of a question whose answer fits.

    Raises:
      UserError: when the file cannot be written.
    """
    question = answer.question
    title = f"{question.recipe.out.name} on {question.devices} × {question.hw.name}"
    body = "\n".join(
        (
            f"<h1>{html.escape(title)}</h1>",
            _summary(answer, tokens),
            "<h2>Where memory and time go</h2>",
            _shares(answer),
            "<h2>What would make it faster</h2>",
            _rows([(name, f"{gain:+.1%}") for name, gain in what_if(answer).items()]),
            "<h2>Other sizes of cluster</h2>",
            _picture(cluster_figure(question, tokens)),
            "<h2>What the network and the sequence length do</h2>",
            _picture(sweep_figure(question)),
            "<h2>How these numbers were got</h2>",
            _origin(question),
        )
    )
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>"
    try:
        write_atomically(out, f"{page}<style>{STYLE}</style>\n{body}\n")
    except OSError as error:
        raise UserError(f"--report {out}: cannot be written: {error.strerror}") from None


def _summary(answer: Answer, tokens: float) -> str:
    first, prediction, plans = int(answer.best[0]), answer.prediction, answer.prediction.plans
    needed = days(answer, tokens)
    mesh = f"{plans.replica[first]} × {plans.fsdp[first]} × {plans.tensor[first]}"
    return _rows(
        [
            (f"days for {tokens:.3g} tokens (predicted)", f"{needed:,.1f}"),
            ("GPU-hours (predicted)", f"{needed * 24 * answer.question.devices:,.0f}"),
            ("tokens per second and GPU (predicted)", f"{answer.tokens_per_s:,.0f}"),
            ("model FLOPs utilisation (predicted)", f"{prediction.mfu[first]:.1%}"),
            ("bound by", str(prediction.binding()[first])),
            ("strategy, mesh replica × fsdp × tensor", f"{NAMES[plans.strategy[first]]}, {mesh}"),
            ("recomputation", POLICIES[plans.remat[first]]),
            ("roof by compute, tokens/s/GPU", f"{bounds(prediction, first).compute:,.0f}"),
        ]
    )


def _shares(answer: Answer) -> str:
    first, prediction = int(answer.best[0]), answer.prediction
    held = [(f"{k}, GiB", f"{v / GIB:.2f}") for k, v in prediction.memory.split(first).items() if v]
    names = ("products", "attention", "passes", "exposed", "latency", "optimizer")
    total = prediction.time.total[first]
    time = [(f"{k}, of a step", f"{getattr(prediction.time, k)[first] / total:.1%}") for k in names]
    return _rows(held) + "<br>" + _rows(time)


def _origin(question: Question) -> str:
    found = own_errors()
    return (
        "<p>All throughputs, days and memory sizes are <b>predicted</b>. On "
        f"{len(found.seconds)} of our own steps, measured on one H200, the model is off by "
        f"{mape(found.seconds):.1%} in time and {mape(found.temporary):.1%} in temporary memory on "
        f"average. Hardware numbers are those of configs/hardware for {question.hw.name}; "
        f"{question.hw.node.devices} devices a node, NVLink "
        f"{question.hw.node.fast_gb_per_s:g} GB/s per device, network "
        f"{question.hw.node.network_gb_per_s:g} GB/s per node.</p>"
    )


def _rows(rows: list[tuple[str, str]]) -> str:
    cells = (f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{''.join(cells)}</table>"


def _picture(figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


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


def _points(pairs) -> tuple[list[float], list[float]]:
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
