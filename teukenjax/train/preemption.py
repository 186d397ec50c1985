"""Being told to stop: SIGTERM and SIGUSR1 become a save and an exit that asks for a restart.

The signal may reach one process of many, or each at another moment, but all have to save the same
step. So every process casts a vote with every step, and the sum of the votes of step n comes back
with its metrics: then all know it at the same place of the loop.
"""

import signal
from types import FrameType

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """Listens while its ``with`` block runs; only in the main thread, as Python has it."""

    def __init__(self, mesh: jax.sharding.Mesh):
        self.asked: signal.Signals | None = None
        whole = NamedSharding(mesh, P())
        self._split = NamedSharding(mesh, P(mesh.axis_names))
        self._sum = jax.jit(lambda votes: votes.sum(), out_shardings=whole)
        self._before: dict = {}

    def __enter__(self) -> "Preemption":
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.asked = signal.Signals(number)

    def votes(self) -> Int[Array, ""] | Int[np.ndarray, ""]:
        """How many devices' processes have been told to stop; not waited for."""
        mine = np.array(self.asked is not None, np.int32)
        if jax.process_count() == 1:
            return mine
        shape = (self._split.mesh.size,)
        cast = jax.make_array_from_callback(shape, self._split, lambda _: mine.reshape(1))
        return self._sum(cast)
