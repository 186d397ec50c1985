"""The published tables that our fits are checked against, and the rules that follow from them.

Source: Filatov et al., "Optimal Scaling Needs Optimal Norm", arXiv 2510.03871; each file says which
figure. Batches are sequences of 4096 tokens.
"""

import csv
from pathlib import Path

import numpy as np

from teukenjax.scaling.rules import Line, Rules

FOLDER = Path(__file__).parent / "tables"
CONTEXT = 4096
# What the paper prints: value and error of each coefficient.
PRINTED = {
    "rate, 4 horizons": "0.62(5) log2 batch + −0.56(5) log2 tokens + 9.8(1.6)   R² 0.92",
    "rate, 9 horizons": "0.55(3) log2 batch + −0.53(2) log2 tokens + 9.1(8)   R² 0.94",
    "batch": "0.450(66) log2 tokens + log2 0.009(13)   R² 0.868",
}


def table(name: str) -> list[dict[str, str]]:
    """The rows of one of the files, without the lines that say where they are from."""
    with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def rate_rule(kind: str) -> Line:
    """η*(B, D): "mean" has four horizons, means over the variants of the fit; "best" has nine."""
    rows = [row for row in table("rates") if row["kind"] == kind]
    return Line.fit(
        [float(row["log2_learning_rate"]) for row in rows],
        batch=[float(np.log2(int(row["batch"]))) for row in rows],
        tokens=[float(row["log2_tokens"]) for row in rows],
    )


def batch_rule() -> Line:
    """B*(D) of the nine horizons."""
    rows = [row for row in table("rates") if row["best_batch"] == "1"]
    return Line.fit(
        [float(np.log2(int(row["batch"]))) for row in rows],
        tokens=[float(row["log2_tokens"]) for row in rows],
    )


def rules() -> Rules:
    """The paper's rule, as our fit of its tables gives it."""
    best: dict[str, dict[str, str]] = {}
    for row in table("optima"):
        if row["model"] == "proxy":
            so_far = best.setdefault(row["log2_tokens"], row)
            best[row["log2_tokens"]] = min(so_far, row, key=lambda r: float(r["loss"]))
    norms = np.array([float(row["log2_norm"]) for row in best.values()])
    return Rules(
        rate=rate_rule("mean"),
        batch=batch_rule(),
        context=CONTEXT,
        log2_norm=(float(norms.mean()), float(norms.std(ddof=1))),
        log2_tokens=(29.0, 37.0),
        source="arXiv 2510.03871, proxy of 69M parameters, momentum 0, constant rate",
    )
