"""Causal grouped-query attention."""

from teukenjax.kernels.attention.api import attention, choose

__all__ = ["attention", "choose"]
