"""Optimizers: Scion and AdamW by recipe, their schedules, and the maps beneath."""

from teukenjax.optim.build import build_optimizer
from teukenjax.optim.leaf import LeafSpec
from teukenjax.optim.orthogonalise import newton_schulz
from teukenjax.optim.schedules import schedule
from teukenjax.optim.scion import scale_by_scion, scion

__all__ = [
    "LeafSpec",
    "build_optimizer",
    "newton_schulz",
    "scale_by_scion",
    "schedule",
    "scion",
]
