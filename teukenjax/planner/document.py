"""A report for whoever buys the machines: one HTML file, every number with its origin."""

import base64
import html
import io
from pathlib import Path

from teukenjax.errors import UserError
from teukenjax.planner.bounds import bounds
from teukenjax.planner.figures import cluster_figure, plane_figure, sweep_figure
from teukenjax.planner.inverse import days
from teukenjax.planner.own import own_errors
from teukenjax.planner.plans import NAMES
from teukenjax.planner.remat import POLICIES
from teukenjax.planner.search import Answer, Question, what_if
from teukenjax.planner.table import mape
from teukenjax.run import write_atomically
from teukenjax.units import GIB

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
            "<h2>Memory against bandwidth</h2>",
            "<p>What binds the best plan if the device had other memory and other fabrics; the "
            "star is the device as it is, lines are MFU.</p>",
            _picture(plane_figure(question)),
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
    seconds, peaks = own_errors("step_s"), own_errors("peak_gib")
    node = question.hw.node
    return (
        "<p>All throughputs, days and memory sizes are <b>predicted</b>. On "
        f"{len(seconds)} of our own steps that ran the model is off by {mape(seconds):.1%} in "
        f"time and, on {len(peaks)}, by {mape(peaks):.1%} in peak memory, on average. Hardware "
        f"numbers are those of configs/hardware for {question.hw.name}, its profile if it has "
        f"one; {node.devices} devices a node, NVLink {node.fast_gb_per_s:g} GB/s per device, "
        f"network {node.network_gb_per_s:g} GB/s per node.</p>"
    )


def _rows(rows: list[tuple[str, str]]) -> str:
    cells = (f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{''.join(cells)}</table>"


def _picture(figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'
