"""The recipe: one YAML file a run, read into frozen, strict sections.

A recipe is the whole truth about a run: what is not in it cannot change the result. So every
section forbids unknown keys and wrong types, the resolved recipe is printed and stored with each
checkpoint, and a value given on the command line (``key=value``) ends up in the same place as
one written in the file. A section given as a string is read from that file, relative to the
recipe, so that model shapes have one home in ``configs/models``.

YAML is read by the 1.2 rules: ``3e-4`` is a number and ``no`` is a string.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from teukenjax.errors import UserError, nearest

Share = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of the recipe: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelConfig(Section):
    """Shape and initialisation of a decoder-only model; the letters are those of the code."""

    vocab_size: PositiveInt | None = None  # V; none: the tokenizer's number of pieces
    width: PositiveInt  # D
    layers: PositiveInt  # L
    heads: PositiveInt  # H
    kv_heads: PositiveInt  # K, divides H
    head_dim: PositiveInt  # N, even
    ffn: PositiveInt  # F
    context: PositiveInt = 4096  # S, the sequence length of training
    rope_theta: PositiveFloat = 10_000.0
    norm_epsilon: PositiveFloat = 1e-5
    norms: Literal["pre", "everywhere"] = "pre"  # everywhere: a norm before every linear map
    norm_gain: bool = True
    tied: bool = True  # one table is both the embedding and the head
    init: Literal["normal", "boundary"] = "normal"  # boundary: on Scion's norm balls
    init_std: PositiveFloat = 0.0158
    vocab_multiple: PositiveInt = 256  # rows are padded to this, so that shards are equal

    @model_validator(mode="after")
    def _shapes_fit(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: RoPE rotates pairs")
        return self


class DataConfig(Section):
    """Where the tokens come from."""

    store: Path | None = None  # a token store; none: OUT/store
    text: Path | Literal["sample"] | None = None  # prepared into the store when that is missing
    train_tokenizer: PositiveInt | None = None  # vocabulary of a tokenizer trained on `text`
    tokenizer: Path | None = None  # or an existing sentencepiece model for `text`
    holdout: Share = 0.01  # share of each language's documents of `text` kept for validation
    weights: dict[str, PositiveFloat] | None = None  # language → weight; none: by temperature
    temperature: PositiveFloat = 1.0  # p ∝ tokens^(1/temperature); 1 is proportional


class BatchConfig(Section):
    """The global batch, whatever the mesh."""

    sequences: PositiveInt  # per optimizer step, over all devices
    accumulation: PositiveInt = 1  # micro-batches per optimizer step

    @model_validator(mode="after")
    def _divides(self):
        if self.sequences % self.accumulation:
            raise ValueError(
                f"sequences={self.sequences} must be a multiple of accumulation={self.accumulation}"
            )
        return self


class AdamWConfig(Section):
    """AdamW as Teuken used it (decay decoupled, norm gains exempt, the embedding decayed)."""

    name: Literal["adamw"]
    learning_rate: PositiveFloat = 3e-4
    beta1: Share = 0.9
    beta2: Share = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
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
    constrained: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # decoupled; unconstrained form only
    preset: Literal["tied", "untied"] = "tied"
    radius: RoleValues = RoleValues()  # default: the preset's
    multiplier: RoleValues = RoleValues()  # of the learning rate; default: 1
    epsilon: PositiveFloat = 1e-8
    coefficients: str = "kj"  # Newton–Schulz
    iterations: PositiveInt = 5
    clip_norm: PositiveFloat | None = None

    @model_validator(mode="after")
    def _decay_fits(self):
        if self.constrained and self.weight_decay:
            raise ValueError("weight_decay needs constrained=false: the constrained form decays")
        return self


class PhaseConfig(Section):
    """One piece of the learning-rate schedule; its values are factors of the learning rate."""

    shape: Literal["constant", "linear", "cosine"]
    steps: PositiveInt | None = None  # none: to the end of the run
    start: Annotated[float, Field(ge=0)] = 1.0
    end: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _constant_is_constant(self):
        if self.shape == "constant" and self.start != self.end:
            raise ValueError(f"a constant phase has start == end, not {self.start} and {self.end}")
        return self


class ShardingConfig(Section):
    """Strategy and mesh; -1 for one axis means "the rest of the devices"."""

    strategy: Literal["ddp", "zero1", "zero2", "fsdp", "hsdp", "fsdp_tp"] = "fsdp"
    replica: int = 1
    fsdp: int = -1
    tensor: int = 1


class ComputeConfig(Section):
    """How the same mathematics is run: precision, rematerialisation, kernels."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # activations and matmuls; weights are fp32
    remat: Literal["none", "full", "save_attention", "save_projections"] = "full"
    unroll: PositiveInt = 1  # layers per iteration of the scan
    attention: Literal["auto", "cudnn", "xla"] = "auto"
    head_chunk: PositiveInt = 1024  # tokens whose logits exist at one time, per device


class CheckpointConfig(Section):
    """When to save and what to keep."""

    every: PositiveInt = 1000
    keep_last: PositiveInt = 3
    keep_every: PositiveInt | None = None  # besides, keep each checkpoint at a multiple of this


class EvaluationConfig(Section):
    """Bits per byte on the held-out documents of the store."""

    every: PositiveInt | None = None  # none: only before the first and after the last step
    documents: PositiveInt = 64  # at most, per language
    batch_tokens: PositiveInt = 32_768  # tokens of one evaluation batch


class Recipe(Section):
    """Everything that defines a run."""

    out: Path  # the run directory; a run found there is resumed
    steps: PositiveInt
    seed: Count = 42
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig
    optimizer: Annotated[AdamWConfig | ScionConfig, Field(discriminator="name")]
    schedule: tuple[PhaseConfig, ...] = (PhaseConfig(shape="constant"),)
    sharding: ShardingConfig = ShardingConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    prompt: str | None = None  # continued by the model when the run ends
    hardware: str | None = None  # a file of configs/hardware; none: recognised by device name

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch.sequences * self.model.context


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Reads the recipe at ``path``, applies ``key.subkey=value`` overrides, checks everything.

    Raises:
      UserError: for a missing or unreadable file, an unknown key (with the nearest spelling),
        or a value of the wrong type or range; the message names file and key.
    """
    path = Path(path)
    values = read_yaml(path)
    for key, section in values.items():
        if isinstance(section, str) and _is_section(key):
            values[key] = read_yaml(path.parent / section)
    for override in overrides:
        _override(values, override)
    return validate(Recipe, values, str(path))


def validate[S: Section](section: type[S], values: dict[str, Any], origin: str) -> S:
    """Checks plain ``values`` against ``section``; ``origin`` names them in errors."""
    try:
        # By way of JSON, where a list may become a tuple and a string a path, and nothing else.
        # YAML's dates become strings: out=2026-01-31 is a name.
        return section.model_validate_json(json.dumps(values, default=str))
    except pydantic.ValidationError as error:
        raise UserError(f"{origin}: {_explain(error, section)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping, as plain Python values."""
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: {where}{getattr(error, 'problem', None) or error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {values!r:.60}")
    return values


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that ``load`` reads back to an equal recipe."""
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


def digest(recipe: Section) -> str:
    """A short hash that changes when any value of the recipe does."""
    canonical = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def flatten(section: Section) -> dict[str, Any]:
    """Dotted key → value, for comparing two recipes."""

    def walk(prefix: str, value: Any):
        if isinstance(value, dict):
            for key, child in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, child)
        else:
            yield prefix, value

    return dict(walk("", section.model_dump(mode="json")))


def _is_section(key: str) -> bool:
    field = Recipe.model_fields.get(key)
    return field is not None and isinstance(field.annotation, type) and issubclass(
        field.annotation, Section
    )


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}': expected key=value, as in steps=100")
    try:
        value = YAML(typ="safe", pure=True).load(text) if text else None
    except YAMLError:
        raise UserError(
            f"override '{override}': the value is not YAML; text with : [ or @ goes in quotes"
        ) from None
    *parents, last = key.split(".")
    target: Any = values
    for name in parents:
        target = _child(target, name, override)
    if isinstance(target, list):
        target[_position(target, last, override)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise UserError(f"override '{override}': '{'.'.join(parents)}' has no keys")


def _child(target: Any, name: str, override: str) -> Any:
    if isinstance(target, list):
        return target[_position(target, name, override)]
    if not isinstance(target, dict):
        raise UserError(f"override '{override}': nothing lies below a plain value")
    if target.get(name) is None:
        target[name] = {}
    return target[name]


def _position(target: list, name: str, override: str) -> int:
    if not name.isdecimal() or int(name) >= len(target):
        raise UserError(f"override '{override}': '{name}' is not one of 0 … {len(target) - 1}")
    return int(name)


def _explain(error: pydantic.ValidationError, section: type[Section]) -> str:
    """The first complaint, in one line with the dotted key."""
    first = error.errors(include_url=False)[0]
    # Unions put the variant's name or its type into the location; neither is a key.
    location = [str(part) for part in first["loc"] if part not in ("adamw", "scion")]
    location = [part for part in location if "[" not in part]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}': {nearest(location[-1], _keys_at(section, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"key '{key}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    message = message[0].lower() + message[1:]
    return f"key '{key}' is {json.dumps(first['input'], default=str):.60}: {message}"


def _keys_at(section: type[Section], location: tuple) -> set[str]:
    """The keys that are allowed at a location of the recipe."""
    variants = {"adamw": AdamWConfig, "scion": ScionConfig}
    for part in location:
        if part in variants:
            section = variants[part]
        elif isinstance(part, str):
            section = _section_of(section.model_fields[part].annotation) or section
    return set(section.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    """The section inside an annotation such as ``tuple[PhaseConfig, ...]`` or ``Section | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inner = (_section_of(part) for part in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found), None)
