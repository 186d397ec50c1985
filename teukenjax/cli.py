"""The command line: one verb per function, no logic.

Imports are inside the verbs so that help and mistakes answer at once, without loading JAX.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from teukenjax.errors import UserError

app = typer.Typer(
    help="Train multilingual European language models in JAX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Text in, token stores out.", no_args_is_help=True)
app.add_typer(data, name="data")
tokenizer = typer.Typer(help="Train tokenizers and compare them.", no_args_is_help=True)
app.add_typer(tokenizer, name="tokenizer")
bench = typer.Typer(help="Measures this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values over the recipe's.")
]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, or one of its checkpoints.")
]


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the resolved recipe and stop.")
    ] = False,
) -> None:
    """Train what RECIPE describes; a run found in its `out` is resumed."""
    from teukenjax import recipe as recipes

    resolved = recipes.load(recipe, overrides or [])
    if show:
        print(recipes.to_yaml(resolved), end="")
        return
    from teukenjax.train.loop import train as run
    from teukenjax.train.report import print_next

    print_next(_console(), run(resolved, _console()))


@app.command()
def shardings(
    recipe: RecipeFile,
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="How many; they need not exist.")] = 1,
) -> None:
    """Print where each array of RECIPE's state lives: shape, spec, bytes per device."""
    from teukenjax.recipe import load
    from teukenjax.train.plan import abstract_program, print_shardings

    print_shardings(_console(), abstract_program(load(recipe, overrides or []), devices))


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
        command.predict_rows(_console(), table, out)
    elif ablate is not None:
        command.run_ablation(_console(), request, ablate)
    elif target_days is not None:
        command.inverse_questions(_console(), request, target_days=target_days, mfu_floor=mfu_floor)
    else:
        command.plan(_console(), request, top=top, out=out, compiled=compile_, report=report)


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
    print_scores(_console(), scores)
    out = out or loaded.path / f"eval-{text.resolve().stem}-{loaded.step}.json"
    write_scores(loaded, text, scores, out)
    _console().print(f"{out}: the same as JSON", highlight=False)


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
    _console().print(f"{out}: AutoModelForCausalLM and AutoTokenizer load it", highlight=False)


@data.command()
def prepare(
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help='A file, a directory, or "sample" (bundled).')
    ],
    out: Annotated[str, typer.Option(help="The token store to make: a path or a URL.")],
    train_tokenizer: Annotated[
        int | None, typer.Option(min=1, help="Train a tokenizer of this many pieces on TEXT.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Or use this sentencepiece model.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add TEXT to the store.")] = False,
    holdout: Annotated[
        float | None, typer.Option(help="Share of documents kept for validation; default 0.01.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Of JSON and Parquet.")] = "text",
    language_field: Annotated[str, typer.Option(help="Falls back to the file's name.")] = "lang",
    max_broken: Annotated[float, typer.Option(help="Share of lines that may be broken.")] = 0.01,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
) -> None:
    """Tokenise text into a token store; a call that was killed goes on where it stopped."""
    from teukenjax.data.documents import Fields
    from teukenjax.data.prepare import prepare as make
    from teukenjax.data.report import print_store

    store = make(
        text,
        out,
        train_tokenizer=train_tokenizer,
        tokenizer=tokenizer,
        append=append,
        holdout=holdout,
        fields=Fields(text=text_field, language=language_field),
        max_broken=max_broken,
        processes=processes,
        progress=sys.stderr.isatty(),
    )
    print_store(_console(), store)


@data.command()
def verify(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A path or a URL.")],
) -> None:
    """Read all of a token store and compare it with its manifest."""
    from teukenjax.data.verify import verify as check

    tokens = check(store, progress=sys.stderr.isatty())
    _console().print(f"{store}: {tokens:,} tokens are what was written", highlight=False)


@data.command()
def fingerprint(
    recipe: RecipeFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    start: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="That share the reading.")] = 1,
) -> None:
    """Hash what RECIPE reads; equal hashes on two clusters mean equal tokens in equal order."""
    from teukenjax.data.fingerprint import fingerprint as hashed
    from teukenjax.data.prepare import open_store
    from teukenjax.recipe import load

    resolved = load(recipe, overrides or [])
    store = open_store(resolved, _console())
    print(hashed(resolved, store, start=start, steps=steps, processes=processes))


@data.command()
def inspect(
    recipe: RecipeFile,
    overrides: Overrides = None,
    windows: Annotated[int, typer.Option(min=0, help="How many to show as text.")] = 5,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Where to write the shares as an image.")
    ] = None,
) -> None:
    """Show what RECIPE's run will see: tokens and epochs by language and stage, some windows."""
    from teukenjax.data import inspect as inspection
    from teukenjax.data.prepare import open_store
    from teukenjax.recipe import load

    resolved = load(recipe, overrides or [])
    store = open_store(resolved, _console())
    stream, views = inspection.inspect(resolved, store)
    inspection.print_views(_console(), views)
    inspection.print_windows(_console(), stream, store.tokenizer(), windows)
    if plot_file is not None:
        inspection.plot(views, plot_file)


@data.command()
def clean(
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="A file or directory.")],
    out: Annotated[Path, typer.Option(help="A directory to make, or to go on in.")],
    config: Annotated[Path, typer.Option(help="A file as in configs/cleaning.")],
    text_field: Annotated[str, typer.Option(help="Of JSON and Parquet.")] = "text",
    language_field: Annotated[str, typer.Option(help="Falls back to the file's name.")] = "lang",
) -> None:
    """Drop documents by rules and duplicates (extra `clean`); a killed call goes on."""
    from teukenjax.data.clean.config import CleanConfig
    from teukenjax.data.documents import Fields
    from teukenjax.recipe import read_yaml, validate

    rules = validate(CleanConfig, read_yaml(config), str(config))
    try:
        from teukenjax.data.clean import pipeline
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: uv sync --extra clean") from None

    fields = Fields(text=text_field, language=language_field)
    report = pipeline.clean(text, out, rules, console=_console(), fields=fields)
    if report is not None:
        pipeline.print_report(_console(), report)


@tokenizer.command("train")
def train_tokenizer(
    mixture: Annotated[
        Path, typer.Argument(metavar="MIXTURE", help="A file as in configs/mixtures.")
    ],
    vocab_size: Annotated[int, typer.Option(min=1, help="Number of pieces.")],
    out: Annotated[Path, typer.Option(help="A folder to make.")],
    text: Annotated[
        str, typer.Option("--data", help='A file, a directory, or "sample" (bundled).')
    ] = "sample",
    bytes_per_language: Annotated[
        int, typer.Option(min=1, help="Of the language with the largest share; others less.")
    ] = 1_000_000,
) -> None:
    """Train a tokenizer with Teuken's options on text in the shares of MIXTURE."""
    from teukenjax.data.tokenizer_lab import train_on_mixture
    from teukenjax.recipe import MixtureConfig, read_yaml, validate

    made = train_on_mixture(
        validate(MixtureConfig, read_yaml(mixture), str(mixture)),
        text,
        out,
        vocab_size=vocab_size,
        bytes_per_language=bytes_per_language,
        progress=sys.stderr.isatty(),
    )
    _console().print(f"{out}: tokenizer {made.digest}", highlight=False)


@tokenizer.command("report")
def report_tokenizers(
    tokenizers: Annotated[
        list[Path],
        typer.Argument(metavar="T...", help="SentencePiece models, tokenizer.json, or folders."),
    ],
    text: Annotated[
        str, typer.Option("--data", help='A file, a directory, or "sample" (bundled).')
    ] = "sample",
    bytes_per_language: Annotated[
        int, typer.Option(min=1, help="Size of the sample of lines.")
    ] = 1_000_000,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where to write all numbers.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Where to write bars as an image.")
    ] = None,
) -> None:
    """Compare tokenizers language by language: fertility, bytes, round trips, vocabulary."""
    from teukenjax.data import tokenizer_lab as lab

    reports = lab.compare(
        tokenizers, text, bytes_per_language=bytes_per_language, progress=sys.stderr.isatty()
    )
    lab.print_reports(_console(), reports)
    if json_file is not None:
        lab.write_json(reports, json_file)
    if plot_file is not None:
        lab.plot(reports, plot_file)


@bench.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="A file of configs/hardware/profiles to write.")],
) -> None:
    """Time products, attention, copies and collectives; `plan` then uses what was measured."""
    from teukenjax.planner import calibrate as bench_

    profile = bench_.calibrate()
    bench_.show(_console(), profile)
    bench_.write(profile, out)


def _console():
    from rich.console import Console

    # Piped into a file, lines are as long as they are; text with [brackets] is no markup.
    return Console(width=None if sys.stdout.isatty() else 200, markup=False)


def main() -> None:
    """Runs a verb; a user's mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
