"""Causal grouped-query attention."""

from teukenjax.kernels.attention.api import attention, cudnn_refusal, pallas_refusal

__all__ = ["attention", "cudnn_refusal", "pallas_refusal"]
