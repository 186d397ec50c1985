"""What the optimizer's step costs: memory traffic, Newton–Schulz, its exchange of matrices."""

from dataclasses import dataclass

import numpy as np

from teukenjax.hardware import Hardware
from teukenjax.optim.coefficients import steps_of
from teukenjax.optim.lmo import GRAM_PAYS_FROM
from teukenjax.planner.fabric import GIGA, TERA, Group
from teukenjax.planner.plans import NAMES, Plans
from teukenjax.planner.shape import Shape
from teukenjax.planner.software import Software
from teukenjax.recipe import AdamWConfig, ScionConfig

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
        """Of one update on each device, [P]: traffic + Newton–Schulz + collectives.

        Matrices of one shape are dealt out whole, so the device with ⌈count/N⌉ of them sets the
        time. They travel twice as 16-bit shards, and AdamW's strategies that own only moments
        gather fp32 updates. Nothing overlaps. Source: derived from ``optim/sharded.py``.
        """
        owned = shape.parameters / plans.shards("optimizer")
        traffic = self.traffic_bytes * owned / (hw.memory_gb_per_s * GIGA)
        rate = software.matmul * hw.matmul_tflops * TERA
        products = self.flops(plans, shape) / rate
        over = Group.lying(plans.devices, np.ones_like(plans.devices), hw)
        exchanged = 2 * 2.0 * shape.layer_weights / plans.devices if self.iterations else 0.0
        owns_less = plans.shards("optimizer") > plans.shards("parameters")
        # The compiler gathers zero1's new moments too, where AdamW's division is not split.
        times = np.where(plans.strategy == NAMES.index("zero1"), 3.0, 1.0)
        fp32 = 4.0 * times * shape.parameters
        gathered = np.where(owns_less, 2.0 * shape.parameters if self.iterations else fp32, 0.0)
        replicas = plans.strategy == NAMES.index("hsdp")
        if self.iterations:
            pieces = 2.0 * shape.layer_weights / (plans.fsdp * plans.tensor)
            gathered = gathered + np.where(replicas, pieces, 0.0)
        volume = exchanged + gathered
        wire = volume * np.maximum(over.fast_s_per_byte, over.network_s_per_byte)
        return traffic + products + wire

    def flops(self, plans: Plans, shape: Shape) -> np.ndarray:
        """Of the device that has most matrices to orthogonalise, [P]."""
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
