"""What a run is about to do, said before anything is compiled."""

from collections.abc import Iterator

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from teukenjax.data.mixture import Mixture
from teukenjax.data.store import TokenStore
from teukenjax.errors import UserError
from teukenjax.hardware import Hardware
from teukenjax.kernels.attention import choose
from teukenjax.model import flops_per_token, padded_vocab, parameter_count
from teukenjax.recipe import Recipe
from teukenjax.sharding import abstract_layout
from teukenjax.train.state import Program

GIB = 2**30


def print_plan(console: Console, program: Program, mixture: Mixture, hw: Hardware | None) -> None:
    """Model, batch, mesh, memory, kernels and data mix."""
    for title, text in plan(program, mixture, hw):
        console.print(f"[bold]{title:<10}[/bold] {text}", highlight=False)


def plan(program: Program, mixture: Mixture, hw: Hardware | None) -> Iterator[tuple[str, str]]:
    """The plan as (title, text) pairs."""
    recipe, layout = program.recipe, program.layout
    model, devices = recipe.model, layout.mesh.devices
    padding = padded_vocab(model) - model.vocab_size
    yield "model", (
        f"{parameter_count(model):,} parameters; {flops_per_token(model) / 1e9:.3g} GFLOP per token "
        f"(6N + 6·L·D·S); vocabulary {model.vocab_size:,} + {padding} padding rows"
    )
    yield "batch", (
        f"{recipe.batch.sequences} sequences × {model.context} = {recipe.tokens_per_step:,} tokens "
        f"per step in {recipe.batch.accumulation} micro-batch(es); {recipe.steps:,} steps = "
        f"{recipe.steps * recipe.tokens_per_step:,} tokens"
    )
    shape = " × ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items())
    kind = devices.flat[0].device_kind
    peak = f"{hw.name}, {hw.bf16_tflops:g} TFLOP/s dense bf16" if hw else "unknown peak: mfu n/a"
    yield "mesh", f"{recipe.sharding.strategy} on {devices.size} × {kind} ({peak}): {shape}"
    held = bytes_per_device(program.abstract_state)
    yield "state", f"{held / GIB:.3g} GiB per device for parameters and optimizer"
    chosen, reason = choose(
        recipe.compute.attention,
        dtype=recipe.compute.dtype,
        head_dim=model.head_dim,
        platform=devices.flat[0].platform,
    )
    yield "compute", (
        f"{recipe.compute.dtype} on fp32 weights; attention {chosen} ({reason}); "
        f"remat {recipe.compute.remat}; head in chunks of {recipe.compute.head_chunk} tokens"
    )
    shares = sorted(mixture.shares.items(), key=lambda pair: -pair[1])
    yield "data", ", ".join(f"{language} {share:.1%}" for language, share in shares)


def abstract_program(recipe: Recipe, devices: int) -> Program:
    """The program of a recipe on devices that need not exist.

    Raises:
      UserError: when the vocabulary is not known: neither in the recipe, nor from its store, nor
        the size of a tokenizer that it would train.
    """
    layout = abstract_layout(recipe.sharding, devices)
    return Program(_with_vocabulary(recipe), layout, platform="gpu")


def _with_vocabulary(recipe: Recipe) -> Recipe:
    store = recipe.data.store or recipe.out / "store"
    if recipe.model.vocab_size is not None:
        return recipe
    if store.exists():
        size = TokenStore.open(store).manifest.vocab_size
    elif recipe.data.train_tokenizer is not None:
        size = recipe.data.train_tokenizer
    else:
        raise UserError(f"model.vocab_size is not set and there is no token store at {store}")
    model = recipe.model.model_copy(update={"vocab_size": size})
    return recipe.model_copy(update={"model": model})


def bytes_per_device(abstract) -> int:
    """Bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )


def print_shardings(console: Console, program: Program) -> None:
    """One row an array: shape, PartitionSpec, bytes per device; the totals at the end."""
    state = program.abstract_state
    table = Table(box=None)
    for title in ("array", "shape", "spec"):
        table.add_column(title, overflow="fold")
    table.add_column("bytes per device", justify="right", no_wrap=True)
    for part, tree in (("params", state.params), ("opt_state", state.opt_state)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = f"{part}.{jax.tree_util.keystr(path, simple=True, separator='.')}"
            spec = str(leaf.sharding.spec).removeprefix("PartitionSpec")
            table.add_row(name, str(leaf.shape), spec, f"{bytes_per_device(leaf):,}")
    console.print(table, highlight=False, soft_wrap=True)
    mesh = " × ".join(f"{axis} {size}" for axis, size in program.layout.mesh.shape.items())
    console.print(f"mesh {mesh}, strategy {program.layout.strategy}", highlight=False)
    console.print(
        f"total: {parameter_count(program.recipe.model):,} parameters, "
        f"{bytes_per_device(state):,} bytes per device",
        highlight=False,
    )
