"""Power laws with their uncertainty: η*(B, D) and B*(D), fitted, kept and applied.

In logarithms to the base of 2 both are linear, so ordinary least squares gives exponents, their
covariance, and the scatter of single points around the rule, which is what a new run will see.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from teukenjax.data.begun import save
from teukenjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Line:
    """log2 y = Σ exponent · log2 x + constant.

    Attributes:
      names: of the x, and "constant".
      values: the exponents, and the constant last.
      covariance: of the values.
      scatter: standard deviation of a point around the line.
      r_squared: share of the variance that the line explains.
      points: how many were fitted.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    scatter: float
    r_squared: float
    points: int

    @classmethod
    def fit(cls, y: Sequence[float], **x: Sequence[float]) -> "Line":
        """Ordinary least squares of log2 y on log2 x's.

        Raises:
          UserError: for no more points than coefficients, or x that do not vary independently.
        """
        target = np.asarray(y, float)
        design = np.column_stack([*(np.asarray(v, float) for v in x.values()), np.ones(len(y))])
        free = len(target) - design.shape[1]
        if free < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
            known = ", ".join(f"{len(set(v))} of {name}" for name, v in x.items())
            raise UserError(
                f"too few points to fit: {len(target)} with values {known}: "
                f"{design.shape[1] + 1} are needed that differ in each of {', '.join(x)}"
            )
        values, *_ = np.linalg.lstsq(design, target)
        residual = target - design @ values
        variance = residual @ residual / free
        covariance = variance * np.linalg.inv(design.T @ design)
        total = np.square(target - target.mean()).sum()
        return cls(
            (*x, "constant"),
            tuple(values.tolist()),
            tuple(map(tuple, covariance.tolist())),
            float(np.sqrt(variance)),
            float(1 - residual @ residual / total) if total else 1.0,
            len(target),
        )

    @property
    def errors(self) -> tuple[float, ...]:
        """Standard errors of the values."""
        return tuple(np.sqrt(np.diag(self.covariance)).tolist())

    def at(self, **x: float) -> tuple[float, float]:
        """log2 y there, and its standard deviation for a new point."""
        row = self._row(x)
        spread = np.sqrt(row @ np.array(self.covariance) @ row + self.scatter**2)
        return float(row @ np.array(self.values)), float(spread)

    def _row(self, x: Mapping[str, float]) -> Float[np.ndarray, " n"]:
        return np.array([*(x[name] for name in self.names[:-1]), 1.0])

    def __str__(self) -> str:
        terms = [
            f"{value:.3f}({error:.3f})" + ("" if name == "constant" else f" log2 {name}")
            for name, value, error in zip(self.names, self.values, self.errors, strict=True)
        ]
        return " + ".join(terms) + f"   R² {self.r_squared:.3f}, {self.points} points"


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a fit hands to ``suggest``.

    Attributes:
      rate: log2 η* on ``batch`` and ``tokens``.
      batch: log2 B* on ``tokens``, or None where the best batch was not bracketed.
      context: tokens of a sequence: B counts sequences of this length.
      log2_norm: mean of the best batches' optimal norms, and their standard deviation.
      log2_tokens: smallest and largest horizon that was fitted.
      source: of the numbers, for people.
      role: whose norms they are: input, hidden or output.
    """

    rate: Line
    batch: Line | None
    context: int
    log2_norm: tuple[float, float]
    log2_tokens: tuple[float, float]
    source: str
    role: str = "output"

    def save(self, path: Path) -> None:
        """As JSON."""
        save(path, json.dumps(dataclasses.asdict(self), indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> "Rules":
        """What ``save`` wrote; a UserError for anything else."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            lines = {key: _line(content[key]) for key in ("rate", "batch")}
            pairs = {key: tuple(content[key]) for key in ("log2_norm", "log2_tokens")}
            return cls(**content | lines | pairs)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: is no fit.json of `teukenjax scaling fit`") from None


def _line(content: dict[str, Any] | None) -> Line | None:
    if content is None:
        return None
    lists = ("names", "values")
    covariance = tuple(map(tuple, content["covariance"]))
    return Line(**content | {k: tuple(content[k]) for k in lists} | {"covariance": covariance})
