"""Products that are symmetric."""

from teukenjax.kernels.symmetric_matmul.api import PALLAS_PAYS_FROM, gram, symmetric_product

__all__ = ["PALLAS_PAYS_FROM", "gram", "symmetric_product"]
