"""Many plans at once: a plan is a row, its choices are columns, nothing loops over rows."""

import functools
from dataclasses import dataclass, fields

import numpy as np

from teukenjax.planner.remat import POLICIES, Remat, remat
from teukenjax.planner.shape import Shape
from teukenjax.sharding import STRATEGIES, Rule

NAMES = tuple(STRATEGIES)


HALVED = {"hsdp": "replica", "fsdp_tp": "tensor"}  # the axis of two, where none is asked for


def sharding_of(strategy: str) -> dict[str, str | int]:
    """A recipe's ``sharding`` on any number of devices: ``HALVED``, and fsdp over the rest."""
    sizes = {"replica": 1, "fsdp": -1, "tensor": 1}
    sizes |= {HALVED[strategy]: 2} if strategy in HALVED else {}
    return {"strategy": strategy} | sizes


@dataclass(frozen=True)
class Plans:
    """P plans, each column an array [P].

    Attributes:
      strategy: position in ``NAMES``.
      replica, fsdp, tensor: sizes of the mesh.
      micro_batch: sequences of one micro-batch on each part of the batch.
      accumulation: micro-batches of a step.
      remat: position in ``POLICIES``.
      sequence: tokens of a sequence.
      light: gradients are summed into the momentum (Scion's light form).
      once: weights are gathered once a step (``compute.gather``).
    """

    strategy: np.ndarray
    replica: np.ndarray
    fsdp: np.ndarray
    tensor: np.ndarray
    micro_batch: np.ndarray
    accumulation: np.ndarray
    remat: np.ndarray
    sequence: np.ndarray
    light: np.ndarray
    once: np.ndarray

    def __len__(self) -> int:
        return len(self.strategy)

    def __getitem__(self, rows) -> "Plans":
        """Some of the plans."""
        return Plans(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def single(cls, *, strategy: str = "fsdp", remat: str = "full", **columns) -> "Plans":
        """One plan, by names; what is not given is 1."""
        values = {"strategy": NAMES.index(strategy), "remat": POLICIES.index(remat)}
        values |= {"light": False, "once": False} | columns
        return cls(*(np.atleast_1d(values.get(field.name, 1)) for field in fields(cls)))

    @property
    def devices(self) -> np.ndarray:
        """N."""
        return self.replica * self.fsdp * self.tensor

    @property
    def tokens(self) -> np.ndarray:
        """E, tokens of one micro-batch on each part of the batch."""
        return self.micro_batch * self.sequence

    @property
    def tokens_per_step(self) -> np.ndarray:
        """Of the global batch."""
        return self.tokens * self.accumulation * self.replica * self.fsdp

    def shards(self, part: str, axis: str = "width") -> np.ndarray:
        """Into how many pieces the strategy splits an axis of parameters, gradients or moments.

        Gradients are split where moments are: of zero1, whose sum may be whole, the compiler makes
        the program of zero2 (seen in both programs).
        """
        part = "optimizer" if part == "gradients" else part

        def over_fsdp(name: str) -> bool:
            rule: Rule = getattr(STRATEGIES[name], part)
            return "fsdp" in rule.get(axis, ())

        split = np.array([over_fsdp(name) for name in NAMES])[self.strategy]
        return np.where(split, self.fsdp, 1) * self.tensor

    def remats(self, shape: Shape) -> Remat:
        """The policies' numbers, each an array [P]."""
        table = _table(shape)
        return Remat(**{name: column[self.remat] for name, column in table.items()})


@functools.cache
def _table(shape: Shape) -> dict[str, np.ndarray]:
    """The numbers of ``POLICIES``, by name; GELU blocks know "none" and, for the rest, "full"."""
    names = POLICIES if shape.gated else ("none", *["full"] * (len(POLICIES) - 1))
    rows = [remat(shape, name) for name in names]
    return {
        field.name: np.array([getattr(row, field.name) for row in rows]) for field in fields(Remat)
    }
