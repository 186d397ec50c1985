"""What a recipe can say about the optimizer, and how its learning rate changes."""

from typing import Literal

from pydantic import model_validator

from teukenjax.recipe.section import (
    Count,
    Epsilon,
    NonNegativeFloat,
    PositiveFloat,
    Section,
    Share,
)


class AdamWConfig(Section):
    """AdamW as Teuken used it (decay decoupled, norm gains exempt, the embedding decayed)."""

    name: Literal["adamw"]
    learning_rate: PositiveFloat = 3e-4
    beta1: Share = 0.9
    beta2: Share = 0.95
    epsilon: Epsilon = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: PositiveFloat | None = 1.0


class RoleValues(Section):
    """A value for each role that a weight can have; none: the default of that role."""

    input: PositiveFloat | None = None
    hidden: PositiveFloat | None = None
    output: PositiveFloat | None = None
    gain: PositiveFloat | None = None


class ScionConfig(Section):
    """Scion (arXiv 2502.07529): steps of fixed size in each layer's own operator norm."""

    name: Literal["scion"]
    learning_rate: PositiveFloat = 2**-12
    momentum: Share = 0.9  # β; the paper's α is 1 − β
    nesterov: bool = False
    light: bool = False  # the momentum is the accumulator of gradients: one buffer less
    constrained: bool = True
    weight_decay: NonNegativeFloat = 0.0  # decoupled; unconstrained form only
    preset: Literal["tied", "untied"] = "tied"
    radius: RoleValues = RoleValues()  # default: the preset's
    multiplier: RoleValues = RoleValues()  # of the learning rate; default: 1
    epsilon: Epsilon = 1e-8
    coefficients: str = "kj"  # Newton–Schulz
    iterations: Count | None = None  # none: as many as the set of coefficients has
    method: Literal["standard", "gram"] = "standard"  # gram is cheaper for oblong matrices
    clip_norm: PositiveFloat | None = None
    norm_target: PositiveFloat | None = None  # output norm at the end: steers the rate there

    @model_validator(mode="after")
    def _target_fits(self):
        if self.norm_target is not None and (self.constrained or self.weight_decay):
            raise ValueError("norm_target needs constrained=false and weight_decay=0: they shrink")
        return self

    @model_validator(mode="after")
    def _decay_fits(self):
        if self.constrained and self.weight_decay:
            raise ValueError("weight_decay needs constrained=false: the constrained form decays")
        return self

    @model_validator(mode="after")
    def _light_fits(self):
        if self.light and (self.nesterov or not self.momentum or self.clip_norm is not None):
            raise ValueError("light needs momentum > 0, nesterov=false and clip_norm=null")
        return self


class PhaseConfig(Section):
    """One piece of the learning-rate schedule; its values are factors of the learning rate."""

    shape: Literal["constant", "linear", "cosine"]
    steps: Count | None = None  # none: to the end of the run
    start: NonNegativeFloat = 1.0
    end: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _constant_is_constant(self):
        if self.shape == "constant" and self.start != self.end:
            raise ValueError(f"a constant phase has start == end, not {self.start} and {self.end}")
        return self
