"""RMSNorm, with the residual sum before it."""

from teukenjax.kernels.rms_norm.api import add_rms_norm, refusal, rms_norm

__all__ = ["add_rms_norm", "refusal", "rms_norm"]
