"""Everything that a recipe can say; what it says of optimizer and tuning has files of its own."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from teukenjax.errors import UserError
from teukenjax.recipe.optimizer import AdamWConfig, PhaseConfig, ScionConfig
from teukenjax.recipe.section import (
    Count,
    Epsilon,
    NonNegativeFloat,
    PositiveFloat,
    Section,
    Share,
)
from teukenjax.recipe.sft import SftConfig

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what a key of JAX takes
Weights = dict[str, NonNegativeFloat]  # 0 leaves a language out


class ModelConfig(Section):
    """Shape and initialisation of a decoder-only model; the letters are those of the code."""

    vocab_size: Count | None = None  # V; none: the tokenizer's number of pieces
    width: Count  # D
    layers: Count  # L
    heads: Count  # H
    kv_heads: Count  # K, divides H
    head_dim: Count  # N, even
    ffn: Count  # F
    context: Count = 4096  # S, the sequence length of training
    rope_theta: PositiveFloat = 10_000.0
    norm_epsilon: Epsilon = 1e-5
    norms: Literal["pre", "everywhere"] = "pre"  # everywhere: a norm before every linear map
    norm_gain: bool = True
    z_loss: NonNegativeFloat = 0.0  # factor of log²(Σ exp logits) in the loss
    tied: bool = True  # one table is both the embedding and the head
    init: Literal["normal", "boundary"] = "normal"  # boundary: on Scion's norm balls
    init_std: PositiveFloat = 0.0158
    vocab_multiple: Count = 256  # rows are padded to this, so that shards are equal

    @model_validator(mode="after")
    def _shapes_fit(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: RoPE rotates pairs")
        return self


def _check_some_weight(weights: Weights | None) -> None:
    if weights is not None and not any(weights.values()):
        raise ValueError("weights: all are zero: one language at least needs a positive one")


class StageConfig(Section):
    """A stretch of training with one mix of languages."""

    tokens: PositiveInt | None = None  # its length; none: endless, for the last stage only
    weights: Weights | None = None  # language → weight, others take no part; none: by temperature
    temperature: PositiveFloat = 1.0  # p ∝ tokens^(1/temperature); 1 is proportional
    # Language → factor on its weight: {en: 0.5} halves English.
    factors: Weights = Field(default_factory=dict)

    @model_validator(mode="after")
    def _some_weight(self):
        _check_some_weight(self.weights)
        return self


class MixtureConfig(Section):
    """Which languages training reads, in which shares, until when; see ``data.mixture``."""

    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)] = (StageConfig(),)
    # A language is read at most this often in all stages together (give or take one row a stage, or
    # one in 32 where all are held down); the others give the rest.
    max_epochs: PositiveFloat | None = None
    # Language → its own, instead.
    max_epochs_of: dict[str, PositiveFloat] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _stages_end(self):
        endless = [n for n, stage in enumerate(self.stages) if stage.tokens is None]
        if endless and (self.max_epochs is not None or self.max_epochs_of):
            raise ValueError(f"max_epochs is spread over stages: set stages.{endless[0]}.tokens")
        if endless and endless[0] < len(self.stages) - 1:
            raise ValueError(f"stages.{endless[0]}.tokens: only the last stage can be endless")
        return self


class DataConfig(Section):
    """Where the tokens come from, and in which order."""

    store: str | None = None  # path or URL of a token store; none: OUT/store
    text: Path | Literal["sample"] | None = None  # prepared into the store when that is missing
    train_tokenizer: Count | None = None  # vocabulary of a tokenizer trained on `text`
    tokenizer: Path | None = None  # or an existing sentencepiece model for `text`
    holdout: Share = 0.01  # share of each language's documents of `text` kept for validation
    weights: Weights | None = None  # of a mixture of one endless stage: see StageConfig
    temperature: PositiveFloat = 1.0  # likewise
    mixture: MixtureConfig | None = None  # or a whole one, as in configs/mixtures
    packing: Literal["concat", "best_fit"] = "concat"  # see data.packing
    segments: bool = False  # attention stays inside documents; best_fit always does

    @model_validator(mode="after")
    def _one_mixture(self):
        if self.mixture is not None and (self.weights is not None or self.temperature != 1.0):
            raise ValueError("mixture: its stages have weights and temperature: leave out data's")
        _check_some_weight(self.weights)
        return self

    @property
    def segmented(self) -> bool:
        """Whether attention stays inside documents."""
        return self.segments or self.packing == "best_fit"

    @property
    def mix(self) -> MixtureConfig:
        """The mixture, however it was given."""
        stage = StageConfig(weights=self.weights, temperature=self.temperature)
        return self.mixture or MixtureConfig(stages=(stage,))


class BatchConfig(Section):
    """The global batch, whatever the mesh."""

    sequences: Count  # per optimizer step, over all devices
    accumulation: Count = 1  # micro-batches per optimizer step

    @model_validator(mode="after")
    def _divides(self):
        if self.sequences % self.accumulation:
            raise ValueError(
                f"sequences={self.sequences} must be a multiple of accumulation={self.accumulation}"
            )
        return self

    def micro_batch(self, shards: int) -> int:
        """Sequences of a micro-batch on each part; a UserError where they do not divide."""
        parts = self.accumulation * shards
        if self.sequences % parts:
            raise UserError(
                f"batch.sequences={self.sequences} in {self.accumulation} micro-batches does not "
                f"divide over replica×fsdp={shards}: set batch.sequences to a multiple of {parts}"
            )
        return self.sequences // parts


class ShardingConfig(Section):
    """Strategy and mesh; -1 for one axis means "the rest of the devices"."""

    strategy: Literal["ddp", "zero1", "zero2", "fsdp", "hsdp", "fsdp_tp"] = "fsdp"
    replica: int = 1
    fsdp: int = -1
    tensor: int = 1


class KernelsConfig(Section):
    """Which implementation of each kernel runs; auto: the fastest where it was measured."""

    attention: Literal["auto", "cudnn", "pallas", "reference"] = "auto"
    cross_entropy: Literal["auto", "pallas", "reference"] = "auto"
    rms_norm: Literal["auto", "pallas", "reference"] = "auto"
    symmetric_matmul: Literal["auto", "pallas", "reference"] = "auto"  # of Newton–Schulz


class ComputeConfig(Section):
    """How the same mathematics is run: precision, rematerialisation, kernels."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # activations and matmuls; weights are fp32
    remat: Literal[
        "none",
        "full",
        "save_attention",
        "save_projections",
        "offload_projections",
        "offload_attention",
    ] = "full"  # see model.remat
    # Layers per iteration of the scan; with all of them there is none: under fsdp a step is faster
    # then, under hsdp and fsdp_tp it sends up to half as much again.
    unroll: Count = 1
    # When a layer's matrices are cast and gathered: in each of its passes, or once a step, which
    # takes 2 bytes a parameter on every device and saves a gather per pass and micro-batch.
    gather: Literal["layer", "step"] = "layer"
    kernels: KernelsConfig = KernelsConfig()
    head_chunk: Count = 1024  # tokens whose logits exist at one time, per device
    strict: bool = False  # an error if "auto" finds no kernel for attention
    flags: str = "default"  # what XLA and the process are told: a set of configs/flags.yaml
    # Besides or instead of the set's, one by one.
    xla_flags: dict[str, bool | int | str] = Field(default_factory=dict)

    def scans(self, layers: int) -> bool:
        """Whether the layers are the body of a scan, not written out one after the other."""
        return self.unroll < layers


class CheckpointConfig(Section):
    """When to save and what to keep."""

    every: Count = 1000
    keep_last: Count = 3
    keep_every: Count | None = None  # besides, keep each checkpoint at a multiple of this


class EvaluationConfig(Section):
    """Bits per byte on the held-out documents of the store."""

    every: Count | None = None  # none: only before the first and after the last step
    documents: Count = 64  # at most, per language
    batch_tokens: Count = 32_768  # tokens of one evaluation batch
    suite: str | None = None  # benchmarks as well: a file of configs/suites (extra `eval`)
    suite_data: Path | None = None  # a folder with its questions; none: from the hub
    suite_limit: Count | None = None  # questions of each task and language; none: all


class TelemetryConfig(Section):
    """When the operator norms of weights and updates are measured (``optim.telemetry``)."""

    every: Count | None = 20  # steps; none: never


class GuardConfig(Section):
    """What a run does about a step that went wrong, and about a part that does not answer."""

    nonfinite: Literal["skip", "stop"] = "skip"  # a gradient that is NaN or infinite
    spikes: Literal["ignore", "skip", "rewind"] = "ignore"  # rewind: to a checkpoint, past the data
    z: PositiveFloat = 8.0  # robust deviations above the median of the last 64 losses: a spike
    limit: Count = 10  # bad steps among the last 1000; one more ends the run
    checksums: Count | None = None  # steps from one comparison of replicas to the next
    timeout_s: PositiveFloat = 900.0  # for one step, save or meeting of processes


class Recipe(Section):
    """Everything that defines a run."""

    out: Path  # the run directory; a run found there is resumed
    steps: Count
    seed: Seed = 42
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig
    optimizer: Annotated[AdamWConfig | ScionConfig, Field(discriminator="name")]
    schedule: tuple[PhaseConfig, ...] = (PhaseConfig(shape="constant"),)
    sharding: ShardingConfig = ShardingConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    sft: SftConfig | None = None  # for `teukenjax sft`
    evaluation: EvaluationConfig = EvaluationConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    guard: GuardConfig = GuardConfig()
    prompt: str | None = None  # continued by the model when the run ends
    hardware: str | None = None  # a file of configs/hardware; none: recognised by device name

    @model_validator(mode="after")
    def _constrained_weights_stay_inside(self):
        if self.optimizer.name == "scion" and self.optimizer.constrained:
            factor = max(value for phase in self.schedule for value in (phase.start, phase.end))
            for role, multiplier in self.optimizer.multiplier:
                rate = self.optimizer.learning_rate * factor * (multiplier or 1.0)
                if role != "gain" and rate > 1:  # gains are not drawn towards a ball
                    raise ValueError(
                        f"optimizer.learning_rate={self.optimizer.learning_rate:g} comes to "
                        f"{rate:g} for the role {role}: at most 1 with optimizer.constrained=true, "
                        "where a step goes from W towards its ball"
                    )
        return self

    @model_validator(mode="after")
    def _conversations_are_whole(self):
        if self.sft is not None and self.data.packing != "best_fit":
            raise ValueError("sft: conversations are packed whole: set data.packing=best_fit")
        return self

    @model_validator(mode="after")
    def _adapters_gather_by_layer(self):
        if self.sft is not None and self.sft.lora is not None and self.compute.gather == "step":
            raise ValueError(
                "compute.gather=step: a weight with its adapter (sft.lora) is made anew in every "
                "micro-batch: set compute.gather=layer"
            )
        return self

    @property
    def chat_form(self) -> str:
        """Of the chat template that its run is tuned with; plain where none is tuned."""
        return "plain" if self.sft is None else self.sft.form

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch.sequences * self.model.context
