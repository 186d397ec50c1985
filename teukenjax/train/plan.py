"""What a run is about to do, said before anything is compiled."""

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from teukenjax.data.location import Location
from teukenjax.data.mixture import Mixture
from teukenjax.data.shares import Shares
from teukenjax.data.store import TokenStore
from teukenjax.errors import UserError
from teukenjax.flags import describe
from teukenjax.hardware import Hardware
from teukenjax.model import flops_per_token, padded_vocab, parameter_count
from teukenjax.recipe import PhaseConfig, Recipe
from teukenjax.sharding import Layout, abstract_layout
from teukenjax.train.state import Program
from teukenjax.units import GIB


def print_plan(console: Console, program: Program, mixture: Mixture, hw: Hardware | None) -> None:
    """Model, batch, schedule, mesh, memory, kernels, flags and data mix."""
    print_lines(console, plan_lines(program, hw) | {"data": _mix(mixture)})


def plan_lines(program: Program, hw: Hardware | None) -> dict[str, str]:
    """Title → text of everything but the data."""
    recipe, layout = program.recipe, program.layout
    return {
        "model": _model(recipe),
        "batch": _batch(recipe),
        "optimizer": _optimizer(recipe),
        "mesh": _mesh(layout, hw),
        "state": f"{_gib(bytes_per_device(program.abstract_state))} per device",
        "compute": _compute(recipe),
        "kernels": _kernels(program),
        "flags": describe(recipe.compute),
    }


def print_lines(console: Console, lines: dict[str, str]) -> None:
    """Titles in bold, in a column of their own."""
    for title, text in lines.items():
        console.print(Text(f"{title:<10}", style="bold") + Text(text))


def _model(recipe: Recipe) -> str:
    model = recipe.model
    flops = flops_per_token(model) / 1e9
    padding = padded_vocab(model) - model.vocab_size
    return (
        f"{parameter_count(model):,} parameters, {flops:.3g} GFLOP per token (6N + 6·L·H·N·S); "
        f"vocabulary {model.vocab_size:,} + {padding} padding rows"
    )


def _batch(recipe: Recipe) -> str:
    batch, tokens = recipe.batch, recipe.tokens_per_step
    return (
        f"{batch.sequences} sequences × {recipe.model.context} = {tokens:,} tokens per step, "
        f"{batch.accumulation} micro-batch(es); {recipe.steps:,} steps = "
        f"{recipe.steps * tokens:,} tokens"
    )


def _optimizer(recipe: Recipe) -> str:
    phases = " → ".join(_phase(phase) for phase in recipe.schedule)
    return f"{recipe.optimizer.name}, learning rate {recipe.optimizer.learning_rate:g} × ({phases})"


def _phase(phase: PhaseConfig) -> str:
    length = "the rest" if phase.steps is None else f"{phase.steps:,} steps"
    return f"{phase.shape} {phase.start:g} to {phase.end:g} in {length}"


def _mesh(layout: Layout, hw: Hardware | None) -> str:
    devices = layout.mesh.devices
    peak = f"{hw.name}, {hw.bf16_tflops:g} TFLOP/s dense bf16" if hw else "unknown peak: mfu n/a"
    kind = f"{devices.size} × {devices.flat[0].device_kind} ({peak})"
    return f"{layout.strategy} on {kind}: {_shape(layout)}"


def _shape(layout: Layout) -> str:
    return " × ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items())


def _compute(recipe: Recipe) -> str:
    compute = recipe.compute
    return (
        f"{compute.dtype} on fp32 weights; remat {compute.remat}; "
        f"head in chunks of {compute.head_chunk} tokens"
    )


def _kernels(program: Program) -> str:
    return "; ".join(
        f"{name} {choice.implementation} ({choice.reason})"
        for name, choice in program.kernels.items()
    )


def _mix(mixture: Mixture) -> str:
    return " → ".join(_shares(stage) for stage in mixture.stages)


def _shares(stage: Shares) -> str:
    shares = sorted(stage.share.items(), key=lambda pair: -pair[1])
    text = ", ".join(f"{language} {share:.1%}" for language, share in shares)
    left_out = "; ".join(f"{language} left out: {why}" for language, why in stage.dropped.items())
    return f"{text}; {left_out}" if left_out else text


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB"


def bytes_per_device(abstract) -> int:
    """Bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )


def abstract_program(recipe: Recipe, devices: int) -> Program:
    """The program of a recipe on devices that need not exist.

    Raises:
      UserError: when the vocabulary is not known: neither in the recipe, nor from its store, nor
        the size of a tokenizer that it would train.
    """
    layout = abstract_layout(recipe.sharding, devices)
    return Program(with_vocabulary(recipe), layout, platform="gpu")


def with_vocabulary(recipe: Recipe) -> Recipe:
    """The recipe with ``model.vocab_size`` set; raises as ``abstract_program``."""
    store = Location(recipe.data.store or recipe.out / "store")
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


def print_shardings(console: Console, program: Program) -> None:
    """One row an array: shape, PartitionSpec, bytes per device; the totals at the end."""
    state, layout = program.abstract_state, program.layout
    table = Table(box=None)
    for title in ("array", "shape", "spec"):
        table.add_column(title, overflow="fold")
    table.add_column("bytes per device", justify="right", no_wrap=True)
    for part, tree in (("params", state.params), ("opt_state", state.opt_state)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = f"{part}.{jax.tree_util.keystr(path, simple=True, separator='.')}"
            spec = str(leaf.sharding.spec).removeprefix("PartitionSpec")
            table.add_row(name, str(leaf.shape), spec, f"{bytes_per_device(leaf):,}")
    console.print(table, highlight=False)
    console.print(f"mesh {_shape(layout)}, strategy {layout.strategy}", highlight=False)
    parameters, held = parameter_count(program.recipe.model), bytes_per_device(state)
    total = f"total: {parameters:,} parameters, {held:,} bytes per device"
    console.print(total, highlight=False)
