"""The verbs of text: token stores, the order of training, cleaning, tokenizers."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from teukenjax.cli.options import Overrides, RecipeFile, console
from teukenjax.errors import UserError

data = typer.Typer(help="Text in, token stores out.", no_args_is_help=True)
tokenizer = typer.Typer(help="Train tokenizers and compare them.", no_args_is_help=True)

TextOption = Annotated[
    str, typer.Option("--data", help='A file, a directory, or "sample" (bundled).')
]


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
    print_store(console(), store)


@data.command()
def verify(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A path or a URL.")],
) -> None:
    """Read all of a token store and compare it with its manifest."""
    from teukenjax.data.verify import verify as check

    tokens = check(store, progress=sys.stderr.isatty())
    console().print(f"{store}: {tokens:,} tokens are what was written", highlight=False)


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
    store = open_store(resolved, console())
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
    store = open_store(resolved, console())
    stream, views = inspection.inspect(resolved, store)
    inspection.print_views(console(), views)
    inspection.print_windows(console(), stream, store.tokenizer(), windows)
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
    report = pipeline.clean(text, out, rules, console=console(), fields=fields)
    if report is not None:
        pipeline.print_report(console(), report)


@tokenizer.command("train")
def train_tokenizer(
    mixture: Annotated[
        Path, typer.Argument(metavar="MIXTURE", help="A file as in configs/mixtures.")
    ],
    vocab_size: Annotated[int, typer.Option(min=1, help="Number of pieces.")],
    out: Annotated[Path, typer.Option(help="A folder to make.")],
    text: TextOption = "sample",
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
    console().print(f"{out}: tokenizer {made.digest}", highlight=False)


@tokenizer.command("report")
def report_tokenizers(
    tokenizers: Annotated[
        list[Path],
        typer.Argument(metavar="T...", help="SentencePiece models, tokenizer.json, or folders."),
    ],
    text: TextOption = "sample",
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
    lab.print_reports(console(), reports)
    if json_file is not None:
        lab.write_json(reports, json_file)
    if plot_file is not None:
        lab.plot(reports, plot_file)
