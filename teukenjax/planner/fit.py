"""Fitting a software's shares to measured throughput, and judging the fit on models left out."""

import numpy as np
from scipy.optimize import least_squares

from teukenjax.planner.software import Software
from teukenjax.planner.table import Run, errors, understand

# Of ``torch-fsdp``: what is fitted, and between which bounds. No product is faster than the best.
FITTED = {
    "matmul": (0.3, 1.0),
    "attention_flops_per_cycle": (100.0, 4000.0),
    "widths": (5.0, 120.0),
    "exposed": (0.0, 3.0),
}
OUTLIER = 0.05  # errors beyond this count linearly: published rows contain a few that are off


def fit(runs: list[Run], start: Software) -> Software:
    """The software with the fitted shares that bring the runs' log errors closest to zero."""
    low, high = (np.array([bounds[i] for bounds in FITTED.values()]) for i in (0, 1))
    first = np.clip([getattr(start, key) for key in FITTED], low, high)

    def with_shares(x: np.ndarray) -> Software:
        return start.model_copy(update=dict(zip(FITTED, x.tolist(), strict=True)))

    found = least_squares(
        lambda x: np.log1p(errors(runs, with_shares(x))),
        first,
        bounds=(low, high),
        x_scale=first,
        loss="soft_l1",
        f_scale=OUTLIER,
    )
    return with_shares(found.x)


def left_out(rows: list[dict[str, str]], start: Software, column: str = "model") -> np.ndarray:
    """Each row's error by a fit that saw no row with its value of ``column``."""
    runs = [understand(row) for row in rows]
    found = np.zeros(len(rows))
    for value in sorted({row[column] for row in rows}):
        held = np.array([row[column] == value for row in rows])
        seen, unseen = ([runs[i] for i in np.flatnonzero(held == out)] for out in (False, True))
        found[held] = errors(unseen, fit(seen, start))
    return found


def constant_mfu(rows: list[dict[str, str]]) -> np.ndarray:
    """The baseline: each row by the median MFU of the others, as relative errors."""
    mfus = np.array([float(row["mfu_pct"]) for row in rows])
    medians = np.array([np.median(np.delete(mfus, i)) for i in range(len(mfus))])
    return medians / mfus - 1
