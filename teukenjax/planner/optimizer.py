"""What the optimizer's step costs: memory traffic, Newton–Schulz, its exchange of matrices."""

from dataclasses import dataclass

import numpy as np

from teukenjax.hardware import Hardware
from teukenjax.optim.coefficients import steps_of
from teukenjax.optim.lmo import GRAM_PAYS_FROM
from teukenjax.planner.fabric import Group
from teukenjax.planner.plans import NAMES, Plans
from teukenjax.planner.shape import Shape
from teukenjax.planner.software import Software
from teukenjax.recipe import AdamWConfig, ScionConfig
from teukenjax.units import GIGA, TERA

# Beside its own work: three global norms, clipping, and the addition, per parameter.
METRICS_BYTES = 12


@dataclass(frozen=True)
class Optimizer:
    """One optimizer.

    Attributes:
      state_bytes: of moments, per parameter.
      traffic_bytes: read and written per parameter that a device owns, parameters included.
      iterations: of Newton–Schulz; 0 without orthogonalisation.
      gram: Newton–Schulz on the smaller side.
      light: gradients may be summed into the momentum.
    """

    state_bytes: int
    traffic_bytes: int
    iterations: int = 0
    gram: bool = False
    light: bool = False

    @classmethod
    def of(cls, config: AdamWConfig | ScionConfig) -> "Optimizer":
        """The recipe's: AdamW 8 + 28 bytes (p, g, m, v read, p, m, v written), Scion 4 + 24."""
        if isinstance(config, AdamWConfig):
            return cls(state_bytes=8, traffic_bytes=28 + METRICS_BYTES)
        return cls(
            state_bytes=4 if config.momentum else 0,
            traffic_bytes=24 + METRICS_BYTES,
            iterations=len(steps_of(config.coefficients, config.iterations)),
            gram=config.method == "gram",
            light=bool(config.momentum and not config.nesterov and config.clip_norm is None),
        )

    def seconds(self, plans: Plans, shape: Shape, hw: Hardware, software: Software) -> np.ndarray:
        """Of one update on each device, [P]: memory traffic + Newton–Schulz + collectives.

        Nothing overlaps. Source: derived from ``optim/sharded.py``.
        """
        owned = shape.parameters / plans.shards("optimizer")
        traffic = self.traffic_bytes * owned / (hw.memory_gb_per_s * GIGA)
        rate = software.orthogonalise * hw.matmul_tflops * TERA
        over = Group.lying(plans.devices, np.ones_like(plans.devices), hw)
        wire = np.maximum(over.fast_s_per_byte, over.network_s_per_byte)
        return traffic + self.flops(plans, shape) / rate + self.volume(plans, shape) * wire

    def volume(self, plans: Plans, shape: Shape) -> np.ndarray:
        """Bytes of whole arrays that an update moves, [P].

        Scion's matrices travel twice as 16-bit shards, 1/N of them on each device, and once more
        to replicas. Strategies that own only moments gather the updates in fp32, and Scion's
        factors in 16 bits before that.
        """
        hsdp = plans.strategy == NAMES.index("hsdp")
        owns_less = plans.shards("optimizer") > plans.shards("parameters")
        if not self.iterations:
            return np.where(owns_less, 4.0 * shape.parameters, 0.0)
        exchanged = 2 * 2.0 * shape.layer_weights / plans.devices
        pieces = 2.0 * shape.layer_weights / (plans.fsdp * plans.tensor)
        updates = 4.0 * shape.parameters + 2.0 * shape.layer_weights
        gathered = np.where(owns_less, updates, np.where(hsdp, pieces, 0.0))
        return exchanged + gathered

    def flops(self, plans: Plans, shape: Shape) -> np.ndarray:
        """Of the device that has most matrices to orthogonalise, ⌈count/N⌉ of each shape, [P]."""
        costs = [(count, self.of_matrix(m, n)) for count, m, n in shape.matrices()]
        return sum(np.ceil(count / plans.devices) * cost for count, cost in costs)

    def of_matrix(self, m: int, n: int) -> float:
        """Of Newton–Schulz on one m × n matrix, m ≤ n.

        With r = n/m: (4 r + 2) m³ a step; in the Gram form 4 r m³ for each of its restarts and,
        inside, 6 m³ for the first step, 8 m³ for others, less 4 m³ for the last of each. Source:
        ``optim/orthogonalise.py``, whose counts these are.
        """
        steps, r = self.iterations, n / m
        if not steps:
            return 0.0
        if not self.gram or r < GRAM_PAYS_FROM:
            return steps * (4 * r + 2) * m**3
        restarts = 1 + max(0, -(-(steps - 2) // 3))
        return (restarts * 4 * r + 8 * steps - 6 * restarts) * m**3
