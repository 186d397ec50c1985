"""An observation of ``optim.telemetry`` as columns of a metrics row and as TensorBoard scalars.

In a row of metrics.jsonl the roles are flat keys, for tables, and the layers are nested, for plots:

    "norm/weight/hidden/rms_to_rms": 1.31     the largest over the role's leaves and layers
    "norm/gap/hidden": 0.042                  the sum over them
    "norms": {"weight": {"layers.attention.query": {"rms_to_rms": [1.02, 1.31, ...], ...}, ...},
              "update": {...}, "gap": {"layers.attention.query": [...], ...}}

A number that is not finite is null.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from teukenjax.optim.leaf import Specs
from teukenjax.optim.telemetry import by_role, unpack_norms


def norm_columns(packed: Mapping[str, Array], specs: Specs) -> dict[str, Any]:
    """The columns of one observation, read from the device in one transfer.

    Args:
      packed: as ``packed_norms`` gives it, and so the step's metrics.
      specs: those of the parameters.
    """
    norms = unpack_norms(jax.device_get(dict(packed)), specs)
    roles = {path: _number(x) for path, x in _leaves("norm", by_role(norms, specs))}
    layers = jax.tree.map(lambda x: jax.tree.map(_number, np.asarray(x).tolist()), norms)
    return roles | {"norms": layers}


def norm_scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """TensorBoard's tags and values of a row: its roles, and the largest layer of each leaf."""
    yield from ((key, value) for key, value in row.items() if key.startswith("norm/"))
    for path, layers in _leaves("norm", row.get("norms", {})):
        known = [x for x in jax.tree.leaves(layers) if x is not None]
        yield path, max(known, default=None)


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Whatever is not a dict, by its path in nested dicts."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _leaves(f"{prefix}/{key}", child)
    else:
        yield prefix, node


def _number(x: float) -> float | None:
    """Six digits, about what float32 has."""
    return float(f"{x:.6g}") if math.isfinite(x) else None
