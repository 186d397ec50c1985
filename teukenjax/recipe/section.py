"""What all sections of a recipe have in common: frozen, strict, and the numbers they share."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Count = Annotated[int, Field(gt=0, lt=2**31)]  # JAX counts in 32 bits
Share = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _some_in_float32(value: float) -> float:
    if value < 2**-126:
        raise ValueError(
            f"{value:g} is nothing in float32, and would divide by zero: at least 2e-38"
        )
    return value


Epsilon = Annotated[PositiveFloat, AfterValidator(_some_in_float32)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the recipe: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
