"""From the recipe's optimizer section to an optax transformation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from teukenjax.optim.leaf import Specs
from teukenjax.optim.scion import light_start, scion
from teukenjax.optim.steer import steer_to_norm
from teukenjax.optim.telemetry import track_norms
from teukenjax.recipe import AdamWConfig, RoleValues, ScionConfig, TelemetryConfig

NEVER = TelemetryConfig(every=None)


def build_optimizer(
    config: AdamWConfig | ScionConfig,
    learning_rate: optax.Schedule,
    specs: Specs,
    telemetry: TelemetryConfig = NEVER,
    *,
    steps: int | None = None,
    shardings: Any = None,
    update_shardings: Any = None,
    symmetric_matmul: str = "reference",
) -> optax.GradientTransformation:
    """The optimizer that the recipe describes, clipping and telemetry included.

    Args:
      config: the section. Its ``learning_rate`` is not read here: the schedule contains it.
      learning_rate: as made by ``schedules.schedule``.
      specs: a pytree shaped like the parameters, of ``LeafSpec``.
      telemetry: the section; the default measures nothing.
      steps: of the run, where ``norm_target`` is to be reached.
      shardings: where the moments rest, and
      update_shardings: where the updates go; see ``scale_by_scion``.
      symmetric_matmul: the kernel of Newton–Schulz, see ``lmo.Spectral``.

    Raises:
      UserError: for an unknown name of Newton–Schulz coefficients.
    """
    if isinstance(config, AdamWConfig):
        optimizer = _adamw(config, learning_rate, specs)
    else:
        optimizer = _scion(
            config,
            learning_rate,
            specs,
            shardings=shardings,
            update_shardings=update_shardings,
            symmetric_matmul=symmetric_matmul,
        )
        if config.norm_target is not None:
            assert steps is not None, "a norm is reached at the end of so many steps"
            how = {"target": config.norm_target, "learning_rate": learning_rate, "steps": steps}
            optimizer = steer_to_norm(optimizer, specs, **how)
    if telemetry.every is not None:
        optimizer = _tracked(optimizer, config, learning_rate, specs, telemetry.every)
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def gradient_start(
    config: AdamWConfig | ScionConfig,
) -> Callable[[optax.OptState, optax.Params], optax.Updates]:
    """Where the sum of a step's gradients starts: at fp32 zeros, or at light Scion's momentum."""
    if is_light(config):
        return lambda opt_state, params: light_start(opt_state, config.momentum)
    return lambda opt_state, params: jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)


def is_light(config: AdamWConfig | ScionConfig) -> bool:
    """Whether the momentum is the accumulator of gradients."""
    return isinstance(config, ScionConfig) and config.light


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


def _scion(config: ScionConfig, learning_rate, specs: Specs, **where_and_how):
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
        method=config.method,
        light=config.light,
        **where_and_how,
    )


def _tracked(optimizer, config, learning_rate: optax.Schedule, specs: Specs, every: int):
    """AdamW steps in no norm ball, so it has no Frank–Wolfe gap."""
    gap = {}
    if isinstance(config, ScionConfig):
        gap = {"learning_rate": learning_rate, "multiplier": _given(config.multiplier)}
        gap["average"] = 1 - config.momentum if config.light else 1.0
    return track_norms(optimizer, specs, every=every, **gap)


def _given(values: RoleValues) -> dict[str, float]:
    return values.model_dump(exclude_none=True)
