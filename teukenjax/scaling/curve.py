"""One scan over learning rates, and where its loss is lowest as a function of the norm.

The procedure of "Optimal Scaling Needs Optimal Norm" (arXiv 2510.03871, appendix A.4): with
x = log2 of a norm, loss = a x² + b x + c is fitted by least squares weighted with 1/σ² to the seven
points nearest to the lowest one, c free or fixed to the loss at the start, where x is 0. Six
variants, {no fit, c fixed, c free} × {smoothed, raw}, give the systematic error: the standard
deviation of what they find.

Two departures. The best rate is read at the optimal norm between the two points around it, where
the paper takes the nearer point's: our grids are coarser. And smoothed and raw are the mean of
three evaluations and the last of them, at every horizon and batch; the paper smooths some.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

Method = Literal["nearest", "fixed", "free"]
METHODS: tuple[Method, ...] = ("nearest", "fixed", "free")
POINTS = 7
LEAST_SIGMA = 1e-3  # nats: three equal evaluations are no proof of a perfect one


@dataclasses.dataclass(frozen=True)
class Curve:
    """Runs that differ in their learning rate only, in the order of the norm.

    Attributes:
      log2_norm: x, rising.
      smoothed: mean loss of the last evaluations.
      raw: the last one's.
      sigma: standard deviation of an evaluation.
      log2_rate: of each run.
    """

    log2_norm: Float[np.ndarray, " n"]
    smoothed: Float[np.ndarray, " n"]
    raw: Float[np.ndarray, " n"]
    sigma: Float[np.ndarray, " n"]
    log2_rate: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, points: Sequence[tuple[float, float, float, float, float]]) -> "Curve":
        """From tuples in the order of the attributes."""
        ordered = np.array(sorted(points), float).reshape(-1, 5)
        return cls(*ordered.T)

    @property
    def bracketed(self) -> bool:
        """Whether there are points on both sides of the lowest."""
        return 0 < int(np.argmin(self.smoothed)) < len(self.smoothed) - 1


@dataclasses.dataclass(frozen=True)
class Optimum:
    """Means over the variants of the fit, and their standard deviations."""

    log2_norm: float
    log2_norm_sd: float
    loss: float
    loss_sd: float
    log2_rate: float
    log2_rate_sd: float


@dataclasses.dataclass(frozen=True)
class Parabola:
    """loss = a x² + b x + c."""

    a: float
    b: float
    c: float

    @property
    def lowest(self) -> tuple[float, float]:
        """Where, and the loss there."""
        x = -self.b / (2 * self.a)
        return x, self(x)

    def __call__(self, x):
        """The loss at x."""
        return (self.a * x + self.b) * x + self.c


def parabola(
    x: Float[np.ndarray, " n"],
    loss: Float[np.ndarray, " n"],
    sigma: Float[np.ndarray, " n"],
    *,
    intercept: float | None = None,
) -> Parabola | None:
    """The weighted fit to the points nearest to the lowest; None if it has no lowest point.

    Args:
      x: log2 norms.
      loss: at each.
      sigma: of each.
      intercept: c; None: free.
    """
    near = np.argsort(np.abs(x - x[np.argmin(loss)]), kind="stable")[:POINTS]
    x, loss, weight = x[near], loss[near], 1 / np.maximum(sigma[near], LEAST_SIGMA)
    columns = [x**2, x] if intercept is not None else [x**2, x, np.ones_like(x)]
    if len(x) <= len(columns):
        return None
    target = (loss - (intercept or 0.0)) * weight
    found, *_ = np.linalg.lstsq(np.column_stack(columns) * weight[:, None], target)
    a, b, c = (*found, intercept) if intercept is not None else found
    return Parabola(float(a), float(b), float(c)) if a > 0 else None


def optimum(curve: Curve, *, intercept: float) -> Optimum | None:
    """By all variants; None unless the lowest point has neighbours on both sides.

    Args:
      curve: at least four points.
      intercept: the loss at norm 1, where x is 0.
    """
    if len(curve.raw) < 4 or not curve.bracketed:
        return None
    found = []
    for method, losses in itertools.product(METHODS, (curve.smoothed, curve.raw)):
        x, loss = _lowest(method, curve, losses, intercept)
        if curve.log2_norm[0] <= x <= curve.log2_norm[-1]:
            found.append((x, loss, np.interp(x, curve.log2_norm, curve.log2_rate)))
    means, spreads = np.mean(found, axis=0), np.std(found, axis=0)
    return Optimum(*np.column_stack([means, spreads]).ravel().tolist())


def _lowest(method: Method, curve: Curve, loss, intercept: float) -> tuple[float, float]:
    at = int(np.argmin(loss))
    if method != "nearest":
        c = intercept if method == "fixed" else None
        fit = parabola(curve.log2_norm, loss, curve.sigma, intercept=c)
        if fit is not None:
            return fit.lowest
    return float(curve.log2_norm[at]), float(loss[at])
