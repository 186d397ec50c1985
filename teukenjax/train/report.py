"""What a finished run says: scores before and after, and what to do next."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from teukenjax.recipe import load


def print_evaluations(console: Console, evaluations: list[dict]) -> None:
    """Bits per byte of each language at the first and at the last evaluation."""
    if not evaluations:
        return
    before, after = evaluations[0], evaluations[-1]
    steps = (f"step {row['step']}" for row in (before, after))
    table = Table("language", *steps, "held-out bytes", box=None, title="bits per byte")
    for column in table.columns[1:]:
        column.justify = "right"
    for language, score in after["languages"].items():
        first, last = (row["languages"][language]["bits_per_byte"] for row in (before, after))
        table.add_row(language, f"{first:.3f}", f"{last:.3f}", f"{score['bytes']:,}")
    console.print(table)


def print_next(console: Console, run: Path) -> None:
    """What the run left, and three commands that can be copied as they stand."""
    recipe = load(run / "recipe.yaml")
    if recipe.sft is None:
        verb, ask = "train", f'generate {run} --prompt "The river"'
    else:
        verb, ask = "sft", f"chat {run} --language de"
    files = "metrics.jsonl, eval.json, loss.png, tensorboard/, checkpoints/"
    console.print(f"\n{run}: {files}", highlight=False, soft_wrap=True)
    console.print("next:")
    for command in (
        ask,
        f"{verb} {run}/recipe.yaml steps={2 * recipe.steps}",
        f"export {run} {run}/hf",
    ):
        console.print(f"  uv run teukenjax {command}", highlight=False, soft_wrap=True)
