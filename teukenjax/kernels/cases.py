"""All kernels' cases."""

import itertools
from collections.abc import Iterator

from teukenjax.errors import UserError, nearest
from teukenjax.kernels.case import Case
from teukenjax.kernels.cross_entropy import bench as cross_entropy
from teukenjax.kernels.rms_norm import bench as rms_norm
from teukenjax.kernels.symmetric_matmul import bench as symmetric_matmul

KERNELS = {
    "cross_entropy": cross_entropy.cases,
    "rms_norm": rms_norm.cases,
    "symmetric_matmul": symmetric_matmul.cases,
}


def find_cases(only: list[str], shrink: int) -> Iterator[Case]:
    """Of the kernels named, or of all; ``shrink`` divides their sizes.

    Raises:
      UserError: for a name that is none.
    """
    for name in only:
        if name not in KERNELS:
            raise UserError(f"kernel '{name}' is not known: {nearest(name, KERNELS)}")
    return itertools.chain.from_iterable(KERNELS[name](shrink) for name in only or KERNELS)
