"""What a recipe can say about instruction tuning: conversations, base model, adapters."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from teukenjax.recipe.section import Count, PositiveFloat, Section, Share


class ChatSource(Section):
    """A file or a folder of conversations, in one of the forms of ``data.chat.messages``."""

    data: Path | Literal["toy"]  # toy: the bundled set
    language: str | None = None  # of rows that name none; none: the file's name, as in de.jsonl
    take: Count | None = None  # so many of its conversations, chosen by a hash


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) beside frozen weights; merged when a run is loaded."""

    rank: Count
    alpha: PositiveFloat  # adapters are scaled by alpha / rank
    targets: Annotated[
        tuple[Literal["query", "key", "value", "output", "gate", "up", "down"], ...],
        Field(min_length=1),
    ] = ("query", "key", "value", "output", "gate", "up", "down")


class SftConfig(Section):
    """Instruction tuning: on which conversations, and of which model."""

    # A run, one of its checkpoints, or a recipe, which is trained first; none: from scratch.
    base: Path | None = None
    sources: Annotated[tuple[ChatSource, ...], Field(min_length=1)]
    form: Literal["plain", "published"] = "plain"  # of the template: see data.chat.template
    too_long: Literal["error", "skip", "turns"] = "error"  # turns: keep the first that fit
    max_broken: Share = 0.0  # of rows
    holdout: Share = 0.0  # share of each language's conversations kept for validation
    neftune: PositiveFloat | None = None  # α of the noise on embeddings (arXiv 2310.05914)
    lora: LoraConfig | None = None  # none: all weights are trained

    @property
    def base_is_recipe(self) -> bool:
        """Whether the base is a recipe; else it is a run, or there is none."""
        return self.base is not None and self.base.suffix in (".yaml", ".yml")
