"""Silent corruption: copies of a weight that should be equal, compared bit by bit.

A device that computes or stores wrongly says nothing, and its copy of a replicated weight then
drifts from the others'. Each device sums the bits of its own shard, a scalar a weight travels, and
whoever disagrees with most of those that hold the same shard is named.
"""

from collections import Counter, defaultdict
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import UInt32

from teukenjax.bits import bit_sum


class Corrupt(NamedTuple):
    """A device whose copy of an array differs from the others'."""

    device: jax.Device
    array: str
    others: int  # that hold the same shard and agree


class ReplicaCheck:
    """Compares the replicas of one tree of arrays on one mesh; compiles once."""

    def __init__(self, mesh: jax.sharding.Mesh, abstract: Any):
        """Args: the mesh; the tree as ``ShapeDtypeStruct`` with shardings."""
        axes = mesh.axis_names
        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, abstract)

        def sums(tree: Any) -> Any:
            return jax.tree.map(lambda shard: bit_sum(shard).reshape((1,) * len(axes)), tree)

        # Each device's own sum, as an array shaped like the mesh; nothing claims that they agree.
        local = jax.shard_map(
            sums, mesh=mesh, in_specs=(specs,), out_specs=P(*axes), check_vma=False
        )
        self._sums = jax.jit(local, out_shardings=NamedSharding(mesh, P()))
        self._mesh, self._abstract = mesh, abstract

    def __call__(self, tree: Any) -> list[Corrupt]:
        """Whoever differs; empty where all agree, or no array has a second copy."""
        found = []
        leaves = jax.tree_util.tree_leaves_with_path(self._abstract)
        sums = jax.tree.leaves(jax.device_get(self._sums(tree)))
        for (path, leaf), of_devices in zip(leaves, sums, strict=True):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            found += self._outliers(name, leaf, of_devices)
        return found

    def _outliers(self, name: str, leaf: jax.ShapeDtypeStruct, sums: UInt32[np.ndarray, "..."]):
        shards = defaultdict(list)
        by_device = dict(zip(self._mesh.devices.flat, sums.flat, strict=True))
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            shards[str(index)].append(device)
        for holders in shards.values():
            counts = Counter(int(by_device[device]) for device in holders)
            agreed, others = counts.most_common(1)[0]
            yield from (
                Corrupt(device, name, others)
                for device in holders
                if int(by_device[device]) != agreed
            )


def describe(corrupt: Corrupt) -> str:
    """One line: the device, its process, the array."""
    device = corrupt.device
    return (
        f"{device.platform}:{device.id} of process {device.process_index} holds another "
        f"'{corrupt.array}' than {corrupt.others} other(s) that should have the same"
    )
