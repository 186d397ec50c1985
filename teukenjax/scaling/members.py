"""Many runs as one program: the step of ``train``, vmapped over what tells its runs apart.

Learning rate, seed and multipliers are arrays with one entry a member; the model's loss, the
optimizer and the step are those of a single run, traced once. All members read the same batch, so
the host loads it once, and small matrices that would leave a GPU idle become stacks of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt32

from teukenjax.flags import compiler_options
from teukenjax.optim import schedule
from teukenjax.optim.leaf import LeafSpec, Specs, leaf_name
from teukenjax.optim.observe import weight_norms
from teukenjax.recipe import ShardingConfig
from teukenjax.scaling.spec import Group, Multipliers
from teukenjax.sharding import make_layout
from teukenjax.train.batch import Batch
from teukenjax.train.state import Program, TrainState
from teukenjax.train.step import accumulate_values, train_step

ROLES = tuple(Multipliers.model_fields)


class Members(NamedTuple):
    """What the runs differ in."""

    learning_rate: Float[Array, " M"]
    seed: UInt32[Array, " M"]
    multiplier: Float[Array, "M R"]  # by role, in the order of ROLES

    @classmethod
    def of(cls, group: Group) -> "Members":
        """Those of a group."""
        rates = [2.0**member.log2_learning_rate for member in group.members]
        factors = [tuple(member.multiplier.model_dump().values()) for member in group.members]
        return cls(
            jnp.asarray(rates, jnp.float32),
            jnp.asarray([member.seed for member in group.members], jnp.uint32),
            jnp.asarray(factors, jnp.float32),
        )


class Together(NamedTuple):
    """The state of a group: that of each run, stacked, and the losses of all steps so far."""

    train: TrainState
    losses: Float[Array, "steps M"]  # NaN where no step has been


class GroupProgram:
    """A group on one device. Holds no arrays but the members'."""

    def __init__(self, group: Group, device: jax.Device):
        """Args: a group whose recipe has its vocabulary size."""
        recipe = group.recipe
        self.recipe, self.group = recipe, group
        self.members = Members.of(group)
        self.device = device
        # Norms are measured from outside, at a few steps: under vmap the telemetry's conditional
        # would be paid in every one.
        quiet = recipe.telemetry.model_copy(update={"every": None})
        self.program = Program(
            recipe.model_copy(update={"telemetry": quiet}),
            make_layout(ShardingConfig(strategy="ddp"), [device]),
            platform=device.platform,
        )
        whole = self.program.layout.replicated()  # said, or the second call compiles again
        self._init = jax.jit(self._born, out_shardings=whole)
        self.advance = jax.jit(
            self._advance,
            donate_argnums=0,
            in_shardings=whole,
            out_shardings=whole,
            compiler_options=compiler_options(recipe.compute),
        )
        self.norms = jax.jit(jax.vmap(self._norms))
        self.losses = jax.jit(jax.vmap(self._losses, in_axes=(0, None)))

    def init(self) -> Together:
        """Every run at its start."""
        return self._init(self.members)

    @property
    def abstract(self) -> Together:
        """Shapes and placements of the state, to restore it into."""
        whole = self.program.layout.replicated()
        shapes = jax.eval_shape(self._born, self.members)
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)  # noqa: E731
        return jax.tree.map(place, shapes)

    def _born(self, members: Members) -> Together:
        def born(member: Members) -> TrainState:
            return self._of(member).born(member.seed)

        shape = (self.recipe.steps, len(self.group.members))
        return Together(jax.vmap(born)(members), jnp.full(shape, jnp.nan, jnp.float32))

    def _of(self, member: Members) -> Program:
        """The program of one run; a member's numbers may be traced."""
        factor = schedule(self.recipe.schedule, learning_rate=1.0, steps=self.recipe.steps)
        specs = self.program.leaf_specs
        factors = dict(zip(ROLES, member.multiplier, strict=True))
        return self.program.steered(
            lambda step: member.learning_rate * factor(step),
            lambda optimizer: optax.chain(optimizer, scale_by_role(factors, specs)),
        )

    def _advance(self, state: Together, tokens: Int[Array, "n A B S1"], count: Int[Array, ""]):
        """The first ``count`` of n steps, all members; and the steps done, to wait for."""

        def one(member: Members, run: TrainState, batch):
            run, metrics = train_step(self._of(member), accumulate_values)(run, Batch(batch))
            return run, metrics["loss"]

        def step(i, state: Together) -> Together:
            done = state.train.step[0]
            runs, losses = jax.vmap(one, in_axes=(0, 0, None))(self.members, state.train, tokens[i])
            return Together(runs, state.losses.at[done].set(losses))

        state = jax.lax.fori_loop(0, count, step, state)
        return state, state.train.step[0] + 0

    def _norms(self, params: Any) -> dict[str, dict[str, Array]]:
        found = jax.tree.leaves_with_path(self.program.leaf_specs)
        leaves = jax.tree.leaves(params)
        keys = jax.random.split(jax.random.key(0), len(leaves))
        return {
            leaf_name(path): weight_norms(spec, leaf, key=key)
            for (path, spec), leaf, key in zip(found, leaves, keys, strict=True)
        }

    def _losses(self, params: Any, windows: Int[Array, "n B S1"]) -> Float[Array, "n B"]:
        """Mean loss of each window."""

        def some(tokens):
            weights = jnp.ones((tokens.shape[0], tokens.shape[1] - 1), jnp.float32)
            return self.program.model.bind(params).loss(tokens, weights)[1].mean(1)

        return jax.lax.map(some, windows)


def scale_by_role(factors: Mapping[str, Any], specs: Specs) -> optax.GradientTransformation:
    """Multiplies finished updates, decay included, by their role's factor.

    The same as Scion's ``multiplier`` up to rounding; there, it has to be known when the step is
    compiled.
    """

    def scale(spec: LeafSpec, update: Array) -> Array:
        return update * jnp.asarray(factors[spec.role], update.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(scale, specs, updates))


def by_layer(norms: dict[str, dict[str, np.ndarray]], member: int) -> dict[str, list[float]]:
    """``leaf/measure`` → the norms of its layers, of one member."""
    return {
        f"{leaf}/{measure}": np.atleast_1d(values[member]).astype(float).tolist()
        for leaf, measures in norms.items()
        for measure, values in measures.items()
    }


def by_role(specs: Specs, layers: Mapping[str, list[float]]) -> dict[str, float]:
    """Role → the largest norm of its weights in the geometry that its optimizer steps in.

    That is 1→RMS for an input, RMS→RMS for hidden weights, and RMS→∞ for an output, also for a
    tied table and for AdamW, so that runs can be compared.
    """
    measure = {"input": "one_to_rms", "hidden": "rms_to_rms", "output": "rms_to_inf"}
    largest: dict[str, float] = {}
    for path, spec in jax.tree.leaves_with_path(specs):
        if spec.role in measure:
            values = layers[f"{leaf_name(path)}/{measure[spec.role]}"]
            largest[spec.role] = max(largest.get(spec.role, 0.0), *values)
    return largest
