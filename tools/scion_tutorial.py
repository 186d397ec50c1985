"""Scion on a Flax model of your own: say what each weight does, and use it as any optax optimizer.

    uv run python tools/scion_tutorial.py

A character model of this file: which character comes after the last eight?
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from teukenjax.optim import LeafSpec, match_specs, scion

CONTEXT, WIDTH, STEPS = 8, 64, 300


class Model(nnx.Module):
    """Eight characters in, scores for the next one out."""

    def __init__(self, characters: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(characters, WIDTH, rngs=rngs)  # embedding [characters, WIDTH]
        self.mix = nnx.LinearGeneral((CONTEXT, WIDTH), WIDTH, axis=(-2, -1), rngs=rngs)
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, characters, use_bias=False, rngs=rngs)

    def __call__(self, x):
        """Scores [batch, characters] of what follows x [batch, CONTEXT]."""
        return self.head(self.norm(nnx.gelu(self.mix(self.embed(x)))))


text = Path(__file__).read_text()
letters = sorted(set(text))
ids = jnp.array([letters.index(letter) for letter in text])
windows = jnp.stack([ids[i : i + CONTEXT + 1] for i in range(len(ids) - CONTEXT)])

model = Model(len(letters), nnx.Rngs(0))
specs = match_specs(  # the first pattern found in a parameter's path decides
    nnx.as_pure(nnx.state(model, nnx.Param)),
    {
        "embed": LeafSpec("input", fan_in=(0,), fan_out=(1,)),
        "mix.*kernel": LeafSpec("hidden", fan_in=(0, 1), fan_out=(2,)),  # a map of 8 · WIDTH
        "bias|scale": LeafSpec("gain", fan_in=(), fan_out=(0,)),
        "head": LeafSpec("output", fan_in=(0,), fan_out=(1,)),
    },
)
# Steps do not shrink with the gradient, so the learning rate has to.
rate = optax.linear_schedule(0.1, 0.0, STEPS)
transform = scion(rate, specs, preset="untied", constrained=False)
optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, batch):
    """One step; the loss before it."""

    def loss_fn(model):
        scores = model(batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(scores, batch[:, -1]).mean()

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


for number in range(STEPS):
    batch = jax.random.choice(jax.random.key(number), windows, (64,))
    loss = step(model, optimizer, batch)
    if number % 50 == 0 or number + 1 == STEPS:
        print(f"step {number + 1}: loss {float(loss):.3f}")
