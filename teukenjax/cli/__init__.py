"""The command line: one verb per function, no logic.

Imports are inside the verbs so that help and mistakes answer at once, without loading JAX.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from teukenjax.cli.options import Overrides, RecipeFile, RunPath, console
from teukenjax.cli.text import data, tokenizer
from teukenjax.errors import TryAgainError, UserError

app = typer.Typer(
    help="Train multilingual European language models in JAX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
bench = typer.Typer(help="Measures this machine.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(tokenizer, name="tokenizer")
app.add_typer(bench, name="bench")


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the resolved recipe and stop.")
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0; Slurm and Open MPI need none.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many run this command together.")
    ] = None,
    process: Annotated[int | None, typer.Option(min=0, help="Which of them this is.")] = None,
) -> None:
    """Train what RECIPE describes; a run found in its `out` is resumed."""
    from teukenjax import recipe as recipes

    resolved = recipes.load(recipe, overrides or [])
    if show:
        print(recipes.to_yaml(resolved), end="")
        return
    from teukenjax.processes import Membership, is_first, joined

    with joined(Membership(coordinator, processes, process), os.environ):
        from teukenjax.train.loop import train as run
        from teukenjax.train.report import print_next

        path = run(resolved, console())
        if is_first():
            print_next(console(), path)


@app.command()
def shardings(
    recipe: RecipeFile,
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="How many; they need not exist.")] = 1,
) -> None:
    """Print where each array of RECIPE's state lives: shape, spec, bytes per device."""
    from teukenjax.recipe import load
    from teukenjax.train.plan import abstract_program, print_shardings

    print_shardings(console(), abstract_program(load(recipe, overrides or []), devices))


@app.command()
def plan(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A YAML file; not with --table.")
    ] = None,
    overrides: Overrides = None,
    hardware: Annotated[
        str, typer.Option(help="A file of configs/hardware; several, with commas, to compare.")
    ] = "h100-sxm",
    devices: Annotated[int, typer.Option(min=1, help="How many; they need not exist.")] = 8,
    tokens: Annotated[
        float | None, typer.Option(help="Of the whole run; default: the recipe's steps.")
    ] = None,
    sequence: Annotated[
        list[int] | None, typer.Option(min=1, help="Lengths to try; default: the recipe's.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Plans to print.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the first plan's recipe, or the table.")
    ] = None,
    compile_: Annotated[
        int, typer.Option("--compile", min=0, help="Plans to compile; needs no GPU.")
    ] = 0,
    target_days: Annotated[
        float | None, typer.Option(help="Ask how many devices train --tokens in so many days.")
    ] = None,
    mfu_floor: Annotated[
        float, typer.Option(help="With --target-days: for the largest model.")
    ] = 0.4,
    ablate: Annotated[
        Path | None, typer.Option(help="Run all strategies on the devices here; a folder to make.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Predict the rows of a CSV file into --out.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report.")] = None,
) -> None:
    """Which mesh, remat and batch for RECIPE, before a GPU is booked."""
    from teukenjax.planner import command

    request = command.Request(
        recipe=recipe,
        overrides=tuple(overrides or []),
        hardware=hardware,
        devices=devices,
        tokens=tokens,
        sequences=tuple(sequence or []),
    )
    if table is not None:
        command.predict_rows(console(), table, out)
    elif ablate is not None:
        command.run_ablation(console(), request, ablate)
    elif target_days is not None:
        command.inverse_questions(console(), request, target_days=target_days, mfu_floor=mfu_floor)
    else:
        command.plan(console(), request, top=top, out=out, compiled=compile_, report=report)


@app.command("eval")
def evaluate(
    run: RunPath,
    text: Annotated[Path, typer.Option("--data", help="A file or directory of documents.")],
    out: Annotated[
        Path | None, typer.Option("--json", help="Default: RUN/eval-TEXT-STEP.json.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one batch.")] = 32_768,
) -> None:
    """Bits per byte of each language of a text: a table, and JSON."""
    from teukenjax.evaluate.text import print_scores, score_text, write_scores
    from teukenjax.run import load_run

    loaded = load_run(run)
    scores = score_text(loaded, text, batch_tokens=batch_tokens)
    print_scores(console(), scores)
    out = out or loaded.path / f"eval-{text.resolve().stem}-{loaded.step}.json"
    write_scores(loaded, text, scores, out)
    console().print(f"{out}: the same as JSON", highlight=False)


@app.command()
def generate(
    run: RunPath,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    tokens: Annotated[int, typer.Option(min=1, help="At most this many.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="0 is all.")] = 50,
    top_p: Annotated[float, typer.Option()] = 0.95,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Continue a text."""
    import jax

    from teukenjax.infer import Generator, Sampling
    from teukenjax.run import load_run

    how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    loaded = load_run(run, devices=jax.devices()[:1])
    generator = Generator(loaded.model, loaded.params, loaded.tokenizer)
    print(prompt + generator(prompt, tokens=tokens, sampling=how))


@app.command()
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory to make.")],
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
) -> None:
    """Write model and tokenizer as stock Hugging Face transformers load them."""
    from teukenjax.interop import export_run

    export_run(run, out, dtype=dtype)
    console().print(f"{out}: AutoModelForCausalLM and AutoTokenizer load it", highlight=False)


@bench.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="A file of configs/hardware/profiles to write.")],
) -> None:
    """Time products, attention, copies and collectives; `plan` then uses what was measured."""
    from teukenjax.planner import calibrate as bench_

    profile = bench_.calibrate()
    bench_.show(console(), profile)
    bench_.write(profile, out)


def main() -> None:
    """Runs a verb; a user's mistake is one line and exit code 2, see ``errors`` for others."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except TryAgainError as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(error.code)
