"""The recipe: one YAML file a run.

A recipe is the whole truth about a run: what is not in it cannot change the result. So every
section forbids unknown keys and wrong types, the resolved recipe is printed and stored with each
checkpoint, and a value given on the command line (``key=value``) ends up in the same place as
one written in the file.
"""

from teukenjax.recipe.optimizer import AdamWConfig, PhaseConfig, RoleValues, ScionConfig
from teukenjax.recipe.reading import digest, flatten, load, read_yaml, to_yaml, validate
from teukenjax.recipe.schema import (
    BatchConfig,
    CheckpointConfig,
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    GuardConfig,
    KernelsConfig,
    MixtureConfig,
    ModelConfig,
    Recipe,
    ShardingConfig,
    StageConfig,
    TelemetryConfig,
)
from teukenjax.recipe.section import PositiveFloat, Section
from teukenjax.recipe.sft import ChatSource, LoraConfig, SftConfig

__all__ = [
    "AdamWConfig",
    "BatchConfig",
    "ChatSource",
    "CheckpointConfig",
    "ComputeConfig",
    "DataConfig",
    "EvaluationConfig",
    "GuardConfig",
    "KernelsConfig",
    "LoraConfig",
    "MixtureConfig",
    "ModelConfig",
    "PhaseConfig",
    "PositiveFloat",
    "Recipe",
    "RoleValues",
    "ScionConfig",
    "Section",
    "SftConfig",
    "ShardingConfig",
    "StageConfig",
    "TelemetryConfig",
    "digest",
    "flatten",
    "load",
    "read_yaml",
    "to_yaml",
    "validate",
]
