"""Whether two runs are the same run: every row of their metrics, bit for bit."""

import json
from pathlib import Path

STATISTICS = ("loss", "lr", "grad_norm", "update_norm", "param_norm")


def curve(run: Path) -> list[tuple]:
    """The statistics of each step; a last line that is being written is left out."""
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "rows are missing"
    return [tuple(row[key] for key in STATISTICS) for row in rows]


def steps_done(run: Path) -> int:
    """How many rows there are."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def first_difference(one: Path, other: Path, *, steps: int | None = None) -> int | None:
    """The first of all, or of ``steps``, in which two runs differ; None: equal in every bit."""
    a, b = curve(one)[:steps], curve(other)[:steps]
    pairs = enumerate(zip(a, b, strict=False), start=1)
    differing = [step for step, (x, y) in pairs if x != y]
    if differing:
        return differing[0]
    return None if len(a) == len(b) else min(len(a), len(b)) + 1
