"""Does the best learning rate stay when the model gets wider? Scion and AdamW, side by side.

    uv run python tools/width_transfer.py --out runs/width-transfer
    uv run python tools/width_transfer.py --store STORE --out runs/width-transfer --dtype bfloat16

It trains a small Teuken at each width with each of a grid of learning rates, on the same batches in
the same order, and writes OUT/losses.csv and OUT/losses.png: the loss at the end of training
against the learning rate, one line a width, one panel an optimizer. All learning rates of one
width run at once, as one program (vmap), compiled once.

What is fixed across widths: depth, head size, FFN ratio, batch, steps, seed, and for Scion the
radii. Of a tied table that is 3000 at every width (see ``scion``): what a logit can move by in a
step is then the same. Without a store it takes the bundled sample, which is 110 KB: enough to
learn something in a few dozen steps, not in thousands.
"""

import csv
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import typer
from jaxtyping import Array, Float, Int
from rich.console import Console

from teukenjax.data.loader import batches
from teukenjax.data.prepare import open_store
from teukenjax.data.store import TokenStore
from teukenjax.data.stream import Stream
from teukenjax.optim import build_optimizer, schedule
from teukenjax.recipe import Recipe, load
from teukenjax.sharding import make_layout
from teukenjax.train.loop import resolve
from teukenjax.train.state import Program

RECIPE = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
HEAD_DIM = 32
Results = dict[tuple[str, int], np.ndarray]  # optimizer, width → loss by learning rate


class Form(NamedTuple):
    """A model and the Scion that goes with it."""

    model: tuple[str, ...]  # overrides of the recipe
    scion: str  # its optimizer section
    lowest: int  # log2 of the first learning rate of Scion's grid


FORMS = {
    "tied": Form((), "{name: scion}", lowest=-15),  # Teuken's
    "untied": Form(  # that of "Optimal Scaling Needs Optimal Norm", here with momentum
        (
            *("model.tied=false", "model.init=boundary"),
            *("model.norms=everywhere", "model.norm_gain=false"),
        ),
        "{name: scion, preset: untied, constrained: false}",
        lowest=-7,
    ),
}


def recipe_of(form: str, optimizer: str, width: int, options: dict) -> Recipe:
    """The quickstart's recipe at another width, with a warm-up and a decay to zero."""
    shape, scion, _ = FORMS[form]
    heads, steps = width // HEAD_DIM, options["steps"]
    phases = (
        f"[{{shape: linear, start: 0.0, steps: {max(steps // 10, 1)}}},"
        f" {{shape: constant, steps: {max(steps // 2, 1)}}}, {{shape: linear, end: 0.0}}]"
    )
    return load(
        RECIPE,
        [
            *shape,
            *(f"model.width={width}", f"model.heads={heads}", f"model.kv_heads={heads}"),
            *(f"model.head_dim={HEAD_DIM}", f"model.ffn={3 * width}", "model.layers=4"),
            *(f"model.context={options['context']}", f"batch.sequences={options['batch']}"),
            *(f"steps={steps}", f"schedule={phases}", f"compute.dtype={options['dtype']}"),
            f"optimizer={scion if optimizer == 'scion' else '{name: adamw}'}",
            f"out={options['out']}",
            *([f"data.store={options['store']}"] if options["store"] else []),
        ],
    )


def read_tokens(store: TokenStore, recipe: Recipe) -> Int[np.ndarray, "steps B S1"]:
    """Every batch of a run, in order: the same for all widths and learning rates."""
    size = recipe.batch.sequences
    loaded = batches(Stream.of(recipe, store), batch_size=size, first_step=0, rows=range(size))
    steps = zip(loaded, range(recipe.steps), strict=False)
    tokens = np.stack([batch["tokens"] for batch, _ in steps])
    loaded.close()
    return tokens


@partial(jax.jit, static_argnums=0)
def train_all(
    program: Program, rates: Float[Array, " R"], tokens: Int[Array, "steps B S1"]
) -> Float[Array, "R steps"]:
    """The loss curve of a run with each learning rate, all from the same start."""
    recipe, model = program.recipe, program.model
    factor = schedule(recipe.schedule, learning_rate=1.0, steps=recipe.steps)

    def loss_fn(params, batch):
        weights = jnp.ones((batch.shape[0], batch.shape[1] - 1), jnp.float32)
        return model.bind(params).loss(batch, weights)[0] / weights.size

    def train(rate):
        optimizer = build_optimizer(
            recipe.optimizer, lambda step: rate * factor(step), program.leaf_specs
        )

        def step(carry, batch):
            params, state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        params = model.init(jnp.uint32(recipe.seed))
        return jax.lax.scan(step, (params, optimizer.init(params)), tokens)[1]

    return jax.vmap(train)(rates)


def last_losses(recipe: Recipe, rates: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Mean loss of the last tenth of the steps, by learning rate; infinite where it diverged."""
    device = jax.devices()[0]
    program = Program(recipe, make_layout(recipe.sharding, [device]), platform=device.platform)
    curves = np.asarray(train_all(program, jnp.asarray(rates, jnp.float32), tokens))
    losses = curves[:, -max(recipe.steps // 10, 1) :].mean(1)
    return np.where(np.isnan(losses), np.inf, losses)


def best(rates: np.ndarray, losses: np.ndarray) -> float:
    """log2 of the best learning rate: the lowest point of a parabola through the best three."""
    x, i = np.log2(rates), int(np.argmin(losses))
    around = slice(i - 1, i + 2)
    if i in (0, len(x) - 1) or not np.isfinite(losses[around]).all():
        return float(x[i])
    a, b, _ = np.polyfit(x[around], losses[around], 2)
    return float(-b / (2 * a))


def write(results: Results, grids: dict[str, np.ndarray], path: Path) -> None:
    """One row a run."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("optimizer", "width", "learning_rate", "loss"))
        for (optimizer, width), losses in results.items():
            runs = zip(grids[optimizer], losses, strict=True)
            writer.writerows((optimizer, width, rate, loss) for rate, loss in runs)


def plot(results: Results, grids: dict[str, np.ndarray], path: Path) -> None:
    """One panel an optimizer, one line a width, a dot at each line's lowest point."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(grids), sharey=True, figsize=(5 * len(grids), 4))
    for axis, (optimizer, rates) in zip(axes, grids.items(), strict=True):
        for (name, width), losses in results.items():
            if name == optimizer:
                (line,) = axis.plot(rates, losses, label=f"width {width}", linewidth=1)
                lowest = np.argmin(losses)
                axis.plot(rates[lowest], losses[lowest], "o", color=line.get_color())
        axis.set_xscale("log", base=2)
        axis.set(title=optimizer, xlabel="learning rate")
        axis.grid(alpha=0.3)
    lowest = min(losses.min() for losses in results.values())
    axes[0].set(ylabel="loss (nats per token)", ylim=(lowest - 0.05, lowest + 2))
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(
    out: Annotated[Path, typer.Option(help="Directory of losses.csv and losses.png.")],
    store: Annotated[Path | None, typer.Option(help="A token store; none: the sample.")] = None,
    form: Annotated[Literal["tied", "untied"], typer.Option(help="Of model and Scion.")] = "tied",
    widths: Annotated[list[int], typer.Option(help="Multiples of 32.")] = [64, 128, 256, 512],  # noqa: B006
    scion_from: Annotated[
        int | None, typer.Option(help="log2 of Scion's lowest learning rate; none: by form.")
    ] = None,
    adamw_from: Annotated[int, typer.Option(help="log2 of AdamW's lowest learning rate.")] = -13,
    count: Annotated[int, typer.Option(help="Learning rates, each twice the last.")] = 8,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each run.")] = 250,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 32,
    context: Annotated[int, typer.Option(help="Tokens a sequence.")] = 256,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of products.")] = "float32",
) -> None:
    """Train every width with every learning rate of both optimizers."""
    console = Console(highlight=False)
    options = {"steps": steps, "batch": batch, "context": context, "dtype": dtype}
    options |= {"out": out, "store": store}
    scion_from = FORMS[form].lowest if scion_from is None else scion_from
    grids = {
        name: 2.0 ** np.arange(lowest, lowest + count)
        for name, lowest in (("scion", scion_from), ("adamw", adamw_from))
    }
    out.mkdir(parents=True, exist_ok=True)
    opened = open_store(recipe_of(form, "scion", widths[0], options), console)
    tokens = read_tokens(opened, recipe_of(form, "scion", widths[0], options))

    results = {}
    for optimizer, rates in grids.items():
        for width in widths:
            recipe = resolve(recipe_of(form, optimizer, width, options), opened.tokenizer())
            results[optimizer, width] = losses = last_losses(recipe, rates, tokens)
            console.print(
                f"{optimizer} width {width}: best loss {losses.min():.3f} "
                f"at 2^{best(rates, losses):.2f}"
            )
    write(results, grids, out / "losses.csv")
    plot(results, grids, out / "losses.png")


if __name__ == "__main__":
    typer.run(main)
