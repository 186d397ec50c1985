"""Linear map to the vocabulary and cross-entropy, fused: logits never exist as a whole."""

from teukenjax.kernels.cross_entropy.api import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
