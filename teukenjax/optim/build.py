"""From the recipe's optimizer section to an optax transformation."""

import jax
import optax

from teukenjax.optim.scion import Specs, scion
from teukenjax.optim.telemetry import track_norms
from teukenjax.recipe import AdamWConfig, RoleValues, ScionConfig, TelemetryConfig

NEVER = TelemetryConfig(every=None)


def build_optimizer(
    config: AdamWConfig | ScionConfig,
    learning_rate: optax.Schedule,
    specs: Specs,
    telemetry: TelemetryConfig = NEVER,
) -> optax.GradientTransformation:
    """The optimizer that the recipe describes, clipping and telemetry included.

    Args:
      config: the section. Its ``learning_rate`` is not read here: the schedule contains it.
      learning_rate: as made by ``schedules.schedule``.
      specs: a pytree shaped like the parameters, of ``LeafSpec``.
      telemetry: the section; the default measures nothing.

    Raises:
      UserError: for an unknown name of Newton–Schulz coefficients.
    """
    build = _adamw if isinstance(config, AdamWConfig) else _scion
    optimizer = build(config, learning_rate, specs)
    if telemetry.every is not None:
        optimizer = _tracked(optimizer, config, learning_rate, specs, telemetry.every)
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def _adamw(config: AdamWConfig, learning_rate: optax.Schedule, specs: Specs):
    """Teuken's AdamW: every weight decays, the embedding too; norm gains do not.

    Megatron-LM finds the gains by their being 1-D; stacked over layers they are not, so the role
    decides. The decay is multiplied by the learning rate, as in PyTorch.
    """
    decayed = jax.tree.map(lambda spec: spec.role != "gain", specs)
    return optax.adamw(
        learning_rate,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
    )


def _scion(config: ScionConfig, learning_rate: optax.Schedule, specs: Specs):
    return scion(
        learning_rate,
        specs,
        preset=config.preset,
        momentum=config.momentum,
        nesterov=config.nesterov,
        constrained=config.constrained,
        weight_decay=config.weight_decay,
        radius=_given(config.radius),
        multiplier=_given(config.multiplier),
        epsilon=config.epsilon,
        coefficients=config.coefficients,
        iterations=config.iterations,
    )


def _tracked(optimizer, config, learning_rate: optax.Schedule, specs: Specs, every: int):
    """AdamW steps in no norm ball, so it has no Frank–Wolfe gap."""
    gap = {}
    if isinstance(config, ScionConfig):
        gap = {"learning_rate": learning_rate, "multiplier": _given(config.multiplier)}
    return track_norms(optimizer, specs, every=every, **gap)


def _given(values: RoleValues) -> dict[str, float]:
    return values.model_dump(exclude_none=True)
