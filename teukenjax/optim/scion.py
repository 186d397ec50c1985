"""Scion: every layer takes steps of a fixed size, measured in its own operator norm.

Adam asks how large each entry's gradient has been; Scion asks what a layer does to vectors. Each
role of a weight has a norm (``lmo``) and a radius ρ, and with d the averaged gradient, γ the
learning rate and map(d) the unit matrix best aligned with d,

    constrained     W ← (1 − γ) W − γ ρ map(d)      stays in the ball ‖W‖ <= ρ: built-in decay
    unconstrained   W ← W − γ ρ map(d)              moves by γ ρ a step

The size of the gradient cancels; the best learning rate carries over from narrow to wide models.

    >>> import jax, jax.numpy as jnp, optax
    >>> from teukenjax.optim import LeafSpec, scion
    >>> x = jax.random.normal(jax.random.key(0), (64, 8))
    >>> params = {"up": jnp.eye(8, 16), "down": jnp.zeros((16, 4))}  # [in, out]
    >>> def loss(params):
    ...     return jnp.mean((jax.nn.gelu(x @ params["up"]) @ params["down"] - x[:, :4]) ** 2)
    >>> dense = {"fan_in": (0,), "fan_out": (1,)}
    >>> specs = {"up": LeafSpec("hidden", **dense), "down": LeafSpec("output", **dense)}
    >>> optimizer = scion(0.05, specs, preset="untied", constrained=False)
    >>> state = optimizer.init(params)
    >>> for _ in range(100):
    ...     updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> bool(loss(params) < 0.1)
    True

Source: Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs",
arXiv 2502.07529; Filatov et al., "Optimal Scaling Needs Optimal Norm", arXiv 2510.03871.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from teukenjax.errors import UserError, nearest
from teukenjax.optim.leaf import LeafSpec, Role, Specs, check_specs, map_leaves
from teukenjax.optim.lmo import BiasRMS, ColNorm, OperatorNorm, RowNorm, Sign, Spectral
from teukenjax.optim.steepest import steepest

# ρ by preset and role; see ``scion`` for where they come from.
RADIUS: dict[str, dict[Role, float]] = {
    "tied": {"input": 3000 / 768, "hidden": 50.0, "output": 3000.0, "gain": 1.0},
    "untied": {"input": 1.0, "hidden": 1.0, "output": 1.0, "gain": 1.0},
}


def preset_norms(
    preset: str,
    *,
    epsilon: float = 1e-8,
    coefficients: str = "kj",
    iterations: int | None = None,
    method: Literal["standard", "gram"] = "standard",
    symmetric_matmul: str = "reference",
) -> dict[Role, OperatorNorm]:
    """The norm of each role: tied Sign → Spectral → Sign, untied ColNorm → Spectral → RowNorm.

    Raises:
      UserError: for an unknown name of a preset or of coefficients.
    """
    if preset not in RADIUS:
        raise UserError(f"preset='{preset}': {nearest(preset, RADIUS)}")
    spectral = Spectral(
        epsilon=epsilon,
        coefficients=coefficients,
        iterations=iterations,
        method=method,
        symmetric_matmul=symmetric_matmul,
    )
    if preset == "tied":
        ends = {"input": Sign(normalised=False), "output": Sign()}
    else:
        ends = {"input": ColNorm(epsilon=epsilon), "output": RowNorm(epsilon=epsilon)}
    return {**ends, "hidden": spectral, "gain": BiasRMS(epsilon=epsilon)}


class ScaleByScionState(NamedTuple):
    """State of ``scale_by_scion``: the averaged gradient, or None without momentum."""

    momentum: optax.Updates | None


def scale_by_scion(
    specs: Specs,
    *,
    norms: Mapping[Role, OperatorNorm],
    radius: Mapping[Role, float],
    multiplier: Mapping[Role, float],
    momentum: float = 0.9,
    nesterov: bool = False,
    light: bool = False,
    shardings: Any = None,
    update_shardings: Any = None,
) -> optax.GradientTransformation:
    """Replaces gradients g by −m ρ map(d), ready to be scaled by a learning rate and added.

    d ← β d + (1 − β) g, from d = 0. There is no bias correction: the maps ignore the length of d
    (up to ε). With ``nesterov`` they see β d + (1 − β) g of the new d.

    The light form has no buffer beside the gradient: the sum of a step's gradients starts at
    ``light_start`` instead of zero, so that d ← β d + g is already done when it gets here. Its d
    is 1/(1 − β) times as long, which the maps ignore.

    Args:
      specs: a pytree shaped like the parameters, of ``LeafSpec``.
      norms: the norm of each role that occurs in ``specs``.
      radius: ρ of each role, in units of its norm.
      multiplier: m of each role, a factor of the learning rate.
      momentum: β, the weight of the past; the authors' ``momentum`` is α = 1 − β. Without it
        there is no buffer. The buffer, and so the update, has the parameters' dtype.
      nesterov: look one gradient ahead; an addition of Disco's, not in the paper.
      light: take the gradients for β d + g, and keep them.
      shardings: where the leaves of d rest: a pytree of ``NamedSharding`` on one mesh, such as
        ``jax.tree.map(lambda x: x.sharding, params)``. With it matrices are orthogonalised whole,
        each on one device (``sharded``); without it the compiler decides how.
      update_shardings: where the updates go, if elsewhere: the same with fewer mesh axes.

    Returns:
      A transformation with ``ScaleByScionState``. Leaves that are None or masked pass through.

    Raises:
      UserError: for nesterov or no momentum in the light form.
      ValueError: here, for a spec that is wrong by itself; at init and update, for one that does
        not fit its leaf, by the leaf's path.
    """
    check_specs(specs)
    if light and (nesterov or not momentum):
        raise UserError(
            f"light with momentum={momentum}, nesterov={nesterov}: needs plain momentum"
        )

    def norm_of(spec: LeafSpec) -> OperatorNorm:
        return spec.norm or norms[spec.role]

    def scaled(spec: LeafSpec, mapped):
        rho = radius[spec.role] if spec.radius is None else spec.radius
        return -(spec.rate(multiplier) * rho) * mapped

    def init(params):
        zeros = map_leaves(lambda _, leaf: jnp.zeros_like(leaf), specs, params)
        return ScaleByScionState(zeros if momentum else None)

    def update(updates, state, params=None):
        del params
        seen, buffer = updates, None
        if light:
            buffer = updates
        elif momentum:
            seen = buffer = _average(momentum, state.momentum, updates)
            if nesterov:
                seen = _average(momentum, buffer, updates)
        with jax.named_scope("scion"):
            directions = steepest(specs, norm_of, seen, shardings, update_shardings)
            return map_leaves(scaled, specs, directions), ScaleByScionState(buffer)

    return optax.GradientTransformation(init, update)


def light_start(opt_state: optax.OptState, momentum: float) -> optax.Updates:
    """β d: where the sum of the next step's gradients starts in the light form.

    Args:
      opt_state: of an optimizer that contains ``scale_by_scion(..., light=True)``.
      momentum: β, as given to it.
    """
    return jax.tree.map(lambda d: momentum * d, optax.tree.get(opt_state, "momentum"))


def scion(
    learning_rate: optax.ScalarOrSchedule,
    specs: Specs,
    *,
    preset: str = "tied",
    momentum: float = 0.9,
    nesterov: bool = False,
    constrained: bool = True,
    weight_decay: float = 0.0,
    radius: Mapping[str, float] | None = None,
    multiplier: Mapping[str, float] | None = None,
    epsilon: float = 1e-8,
    coefficients: str = "kj",
    iterations: int | None = None,
    method: Literal["standard", "gram"] = "standard",
    light: bool = False,
    shardings: Any = None,
    update_shardings: Any = None,
    symmetric_matmul: str = "reference",
) -> optax.GradientTransformation:
    """The whole optimizer: direction, decay and learning rate.

    With γ the learning rate times the role's multiplier and µ the weight decay,

        constrained     W ← (1 − γ) W − γ ρ map(d)
        unconstrained   W ← (1 − γ µ) W − γ ρ map(d)

    The second with (γ, µ, ρ) is the first with step γ µ and radius ρ/µ.

    Presets. *untied*: all radii are 1, for models with a norm before every linear map and a start
    on the unit balls ("Optimal Scaling Needs Optimal Norm", there unconstrained and momentum 0).
    *tied*: the authors' 124M GPT of width D = 768 and γ = 2⁻¹² to 3.6e-4, with hidden radius 50
    and 3000 for the one table. Sign divides by D, so each entry of the table moves by γ·3000/768
    ≈ 3.9 γ a step and stays below 3.9 in size; a logit, D such entries against an activation of
    RMS 1, moves by at most 3000 γ. At another width keep 3000: the bound on the logits, and with
    it γ, stays, while an entry moves by 3000 γ/D. (To keep the entries' step instead, as an
    embedding alone would want, set 3000·D/768.) The role input, for a model with this preset
    and a separate embedding, has the un-normalised Sign: its radius 3000/768 is the size of an
    entry at any width, and gives the authors' step at theirs.

    Gains are never shrunk, in either form, just as AdamW's mask spares them. They start at one,
    and a constrained step would pull them to zero wherever their gradient is mostly noise. So
    they take plain steps of RMS γ ρ, with ρ = 1: relative to their size, as large as γ says.

    Args:
      learning_rate: γ, a number or a schedule; at most 1 if constrained.
      specs: a pytree shaped like the parameters, of ``LeafSpec``.
      preset: tied or untied: norms and default radii.
      momentum: β, see ``scale_by_scion``. 0.9 is the authors' α = 0.1.
      nesterov: see ``scale_by_scion``.
      constrained: the form of the step.
      weight_decay: µ, decoupled and multiplied by the learning rate; unconstrained form only.
      radius: ρ of some roles, instead of the preset's.
      multiplier: of the learning rate, decay included, for some roles; 1 for the others.
      epsilon: added to every norm that divides. A row of a large table may have a gradient below
        1e-8; then this must be smaller ("Optimal Norm" takes 1e-20).
      coefficients: of Newton–Schulz, see ``coefficients``.
      iterations: of Newton–Schulz; None: as many as the set of coefficients has.
      method, symmetric_matmul: of Newton–Schulz, see ``Spectral``.
      light: see ``scale_by_scion``.
      shardings: see ``scale_by_scion``.
      update_shardings: see ``scale_by_scion``.

    Raises:
      UserError: for an unknown preset, role or name of coefficients, a radius or multiplier that
        is not positive, or for a decay of the constrained form, which has its own.
      ValueError: for a spec that is wrong or does not fit its leaf, and for an update without
        params where there is decay.
    """
    if constrained and weight_decay:
        raise UserError(f"weight_decay={weight_decay}: the constrained form has its own decay")
    norms = preset_norms(
        preset,
        epsilon=epsilon,
        coefficients=coefficients,
        iterations=iterations,
        method=method,
        symmetric_matmul=symmetric_matmul,
    )
    multiplier = _override("multiplier", dict.fromkeys(norms, 1.0), multiplier)
    return optax.chain(
        scale_by_scion(
            specs,
            norms=norms,
            radius=_override("radius", RADIUS[preset], radius),
            multiplier=multiplier,
            momentum=momentum,
            nesterov=nesterov,
            light=light,
            shardings=shardings,
            update_shardings=update_shardings,
        ),
        _shrink(specs, multiplier, decay=1.0 if constrained else weight_decay),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
    )


def _shrink(
    specs: Specs, multiplier: Mapping[Role, float], *, decay: float
) -> optax.GradientTransformation:
    """Adds −m · decay · W to the updates, except for gains."""

    def shrink(spec: LeafSpec, update, weight):
        if spec.role == "gain":
            return update
        return update - (spec.rate(multiplier) * decay * weight).astype(update.dtype)

    def update(updates, params):
        if params is None:
            raise ValueError("scion: a form that decays needs update(gradients, state, params)")
        return map_leaves(shrink, specs, updates, params)

    return optax.stateless(update) if decay else optax.identity()


def _average(weight: float, past: optax.Updates, new: optax.Updates) -> optax.Updates:
    """weight · past + (1 − weight) · new, in the dtypes of the past."""
    return jax.tree.map(lambda d, g: weight * d + (1 - weight) * g.astype(d.dtype), past, new)


def _override(
    name: str, default: Mapping[Role, float], given: Mapping[str, float] | None
) -> dict[Role, float]:
    given = given or {}
    for role in given:
        if role not in default:
            raise UserError(f"{name}.{role}: unknown role: {nearest(role, default)}")
        if not given[role] > 0:
            raise UserError(f"{name}.{role}={given[role]}: must be positive")
    return {**default, **given}
