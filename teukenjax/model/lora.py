"""LoRA (Hu et al. 2021, arXiv 2106.09685) as a transformation of the parameter tree.

    base       the model's parameters, frozen
    adapters   weight → down [L, *in, r] and up [L, r, *out]

A weight of the model is base + (α/r)·down·up. The step trains ``adapters`` alone: gradients and
moments are of their size. The sum is formed before the forward pass, so there is one more copy of
the weights that have adapters, and their gradient, for the length of a micro-batch; nothing else of
the program knows of it, and what a run leaves is merged when it is loaded.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from teukenjax.model.teuken import Functional, Teuken
from teukenjax.precision import precision_of
from teukenjax.recipe import LoraConfig
from teukenjax.sharding import WeightSpec

GROUPS = {"attention": ("query", "key", "value", "output"), "mlp": ("gate", "up", "down")}


class Adapted:
    """``model`` with adapters: the same functions of a larger tree (see ``Functional``)."""

    def __init__(self, model: Functional, config: LoraConfig):
        self.inner, self.lora = model, config
        self.config, self.compute, self.layout = model.config, model.compute, model.layout
        found = {
            name: model.specs["layers"][group][name]
            for group, names in GROUPS.items()
            for name in names
            if name in config.targets
        }
        adapters = {name: _specs(spec) for name, spec in found.items()}
        self._paths = {name: (_group(name), name) for name in found}
        self.specs = {"base": model.specs, "adapters": adapters}
        shapes = jax.eval_shape(self._fresh, jnp.uint32(0))
        self.abstract = {"base": model.abstract, "adapters": shapes}

    def init(self, seed: Integer[Array, ""]) -> dict:
        """A fresh model with adapters that change nothing yet."""
        return self.around(self.inner.init(seed), seed)

    def around(self, params: dict, seed: Integer[Array, ""]) -> dict:
        """The tree that begins as the model with ``params``."""
        return {"base": params, "adapters": self._fresh(seed)}

    def split(self, params: dict) -> tuple[dict, dict]:
        """What is trained, and the rest; of specs and placements too."""
        return params["adapters"], params["base"]

    def join(self, trained: dict, frozen: dict) -> dict:
        """The inverse of ``split``."""
        return {"base": frozen, "adapters": trained}

    def copies(self, trained: dict) -> None:
        """None: a weight with its adapter is made anew in every micro-batch."""
        del trained

    def bind(self, params: dict, copies: None = None) -> Teuken:
        """The module with these parameters."""
        return self.inner.bind(self.merged(params), copies)

    def merged(self, params: dict) -> dict:
        """The parameters of the model alone, adapters added to them."""
        layers = {key: dict(value) for key, value in params["base"]["layers"].items()}
        for name, adapter in params["adapters"].items():
            group, _ = self._paths[name]
            equation = _equation(self.specs["base"]["layers"][group][name])
            down, up = adapter["down"], adapter["up"]
            added = jnp.einsum(equation, down, up, precision=precision_of(down.dtype))
            layers[group][name] = layers[group][name] + self.lora.alpha / self.lora.rank * added
        return params["base"] | {"layers": layers}

    def _fresh(self, seed: Integer[Array, ""]) -> dict:
        """down ~ N(0, 1/fan-in), up = 0."""
        adapters = {}
        key = jax.random.fold_in(jax.random.key(seed), 0x10AA)  # not the key of the model's own
        for number, (name, (group, _)) in enumerate(self._paths.items()):
            spec = self.inner.specs["layers"][group][name]
            shape = self.inner.abstract["layers"][group][name].shape
            into = tuple(shape[at] for at in spec.positions(spec.fan_in))
            out = tuple(shape[at] for at in spec.positions(spec.fan_out))
            fan_in, rank = math.prod(into), self.lora.rank
            down = jax.random.normal(jax.random.fold_in(key, number), (shape[0], *into, rank))
            up = jnp.zeros((shape[0], rank, *out), jnp.float32)
            adapters[name] = {"down": down / fan_in**0.5, "up": up}
        return adapters


def _group(name: str) -> str:
    return next(group for group, names in GROUPS.items() if name in names)


def _specs(spec: WeightSpec) -> dict[str, WeightSpec]:
    """Declarations of the two factors of a weight [layers, *in, *out]."""
    return {
        "down": WeightSpec(("layers", *spec.fan_in, "rank"), "hidden", spec.fan_in, ("rank",)),
        "up": WeightSpec(("layers", "rank", *spec.fan_out), "hidden", ("rank",), spec.fan_out),
    }


def _equation(spec: WeightSpec) -> str:
    """The product of the factors, as the weight stands: "lar,lrbc->labc" for a query."""
    letters = dict(zip(spec.axes[1:], "abcd", strict=False))
    into = "".join(letters[axis] for axis in spec.fan_in)
    out = "".join(letters[axis] for axis in spec.fan_out)
    return f"l{into}r,lr{out}->l{''.join(letters.values())}"
