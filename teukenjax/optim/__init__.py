"""Optimizers: Scion and AdamW by recipe, their schedules, and the maps beneath."""

from teukenjax.optim.build import build_optimizer
from teukenjax.optim.leaf import LeafSpec, match_specs
from teukenjax.optim.lmo import BiasRMS, ColNorm, RowNorm, Sign, Spectral, SpectralConv
from teukenjax.optim.orthogonalise import newton_schulz
from teukenjax.optim.schedules import schedule
from teukenjax.optim.scion import light_start, scale_by_scion, scion
from teukenjax.optim.telemetry import by_role, read_norms, track_norms

__all__ = [
    "BiasRMS",
    "ColNorm",
    "LeafSpec",
    "RowNorm",
    "Sign",
    "Spectral",
    "SpectralConv",
    "build_optimizer",
    "by_role",
    "light_start",
    "match_specs",
    "newton_schulz",
    "read_norms",
    "scale_by_scion",
    "schedule",
    "scion",
    "track_norms",
]
