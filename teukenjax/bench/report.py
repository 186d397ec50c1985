"""A measured step as a row of the results file, and as lines for a person."""

import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from teukenjax.bench.classes import CLASSES
from teukenjax.bench.step import Measured, versions
from teukenjax.flags import compiler_options
from teukenjax.hardware import find_hardware, mfu
from teukenjax.model import flops_per_token
from teukenjax.recipe import Recipe, digest
from teukenjax.train.plan import plan_lines
from teukenjax.train.state import Program
from teukenjax.units import GIB

# The step then runs kernel by kernel, and each says what it is for.
WITHOUT_GRAPHS = 'compute.xla_flags.xla_gpu_enable_command_buffer=""'


def whole_square_flops(recipe: Recipe) -> int:
    """FLOPs per token with causal attention counted in full: 6N + 12·L·H·N·S."""
    model = recipe.model
    attention = model.layers * model.heads * model.head_dim * model.context
    return flops_per_token(model) + 6 * attention


def row_of(source: Path, program: Program, measured: Measured, *, fake_data: bool) -> dict:
    """Everything about a measurement that a later reader needs, as JSON values."""
    recipe, devices = program.recipe, program.layout.mesh.devices
    hw = find_hardware(recipe.hardware, devices.flat[0])
    tokens_per_s = recipe.tokens_per_step / measured.median
    of_optimizer = measured.shares.share("optimizer")

    def used(flops: int, scale: float = 1.0) -> float | None:
        share = mfu(tokens_per_s * scale, flops, devices.size, hw)
        return None if share is None else round(share, 4)

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": devices.flat[0].device_kind,
        "devices": devices.size,
        "versions": versions(),
        "recipe": str(source),
        "recipe_hash": digest(recipe),
        "data": "random" if fake_data else "store",
        "plan": plan_lines(program, hw),
        "xla_flags": compiler_options(recipe.compute),
        "tokens_per_step": recipe.tokens_per_step,
        "compile_s": round(measured.compile_s, 1),
        "step_s": {
            "median": round(measured.median, 5),
            "min": round(min(measured.times), 5),
            "max": round(max(measured.times), 5),
            "steps": len(measured.times),
        },
        "tokens_per_s_per_device": round(tokens_per_s / devices.size, 1),
        "mfu_causal": used(flops_per_token(recipe.model)),
        "mfu_whole_square": used(whole_square_flops(recipe)),
        "mfu_causal_without_optimizer": used(flops_per_token(recipe.model), 1 / (1 - of_optimizer)),
        "loss": round(measured.loss, 4),
        "gib": {
            "arguments": _gib(measured.arguments),
            "temporary": _gib(measured.temporary),
            "peak": _gib(measured.peak),
        },
        "profile": _profile(measured),
    }


def _profile(measured: Measured) -> dict[str, Any]:
    shares, window = measured.shares, measured.shares.window_s
    return {
        "window_s": round(window, 5),
        "share": {kind: round(shares.share(kind), 4) for kind in CLASSES if shares.share(kind)},
        "communication_hidden": round(shares.hidden_s / window, 4),
        "idle": round(shares.idle_s / window, 4),
        "known_by_kernel_name_only": round(shares.by_name, 4),
    }


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / GIB, 2)


def show(console: Console, row: dict[str, Any]) -> None:
    """The measurement, in a few lines."""
    step, memory, found = row["step_s"], row["gib"], row["profile"]
    lines = {
        "compiled": f"in {row['compile_s']} s",
        "step": f"{step['median']} s, median of {step['steps']} ({step['min']} … {step['max']})",
        "speed": f"{row['tokens_per_s_per_device']:,} tokens/s per device",
        "MFU": f"{_percent(row['mfu_causal'])} by 6N + 6·L·H·N·S (causal attention halved), "
        f"{_percent(row['mfu_whole_square'])} with attention counted in full, "
        f"{_percent(row['mfu_causal_without_optimizer'])} (halved) without the optimizer's share",
        "memory": f"compiler {memory['arguments']} + {memory['temporary']} GiB (state and batch + "
        f"temporary), peak measured {memory['peak'] or 'n/a'} GiB",
        "loss": f"{row['loss']}",
        "profile": ", ".join(f"{kind} {share:.1%}" for kind, share in found["share"].items()),
        "": f"idle {found['idle']:.1%}, communication hidden {found['communication_hidden']:.1%}, "
        f"known by kernel name only {found['known_by_kernel_name_only']:.1%}, "
        f"of a profiled step of {found['window_s']} s",
    }
    if found["known_by_kernel_name_only"] > 0.5:
        lines["graphs"] = (
            "most kernels ran in CUDA graphs and are known by name only, so head and optimizer "
            f"count in part as products or other; to tell them apart add '{WITHOUT_GRAPHS}'"
        )
    for title, text in lines.items():
        console.print(f"{title:<10}{text}", highlight=False)


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{share:.1%}"
