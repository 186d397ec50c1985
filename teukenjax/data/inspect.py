"""What a run is going to see, before it runs: tokens and epochs, by language and stage."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from teukenjax.data.store import TokenStore
from teukenjax.data.stream import Stream
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.picture import save_figure
from teukenjax.recipe import Recipe

WINDOW_CHARACTERS = 240


@dataclass(frozen=True)
class StageView:
    """One stage, as far as the run goes into it: language → tokens, and epochs."""

    tokens: dict[str, int]
    epochs: dict[str, float]
    capped: frozenset[str]
    dropped: dict[str, str]


def inspect(recipe: Recipe, store: TokenStore) -> tuple[Stream, list[StageView]]:
    """The stream of a recipe, and what the recipe's steps see of each stage."""
    stream = Stream.of(recipe, store)
    mixture = stream.mixture
    views = []
    rows_seen = mixture.seen(recipe.steps * recipe.batch.sequences)
    for rows, stage in zip(rows_seen, mixture.stages, strict=True):
        views.append(
            StageView(
                tokens={name: count * stream.sequence_length for name, count in rows.items()},
                epochs={name: count / mixture.windows[name] for name, count in rows.items()},
                capped=stage.capped,
                dropped=stage.dropped,
            )
        )
    return stream, views


def print_views(console: Console, views: list[StageView]) -> None:
    """A row for each language: tokens, share and epochs in each stage, and in all."""
    table = Table("language", box=None)
    titles = [f"stage {number}" for number in range(1, len(views) + 1)] if len(views) > 1 else []
    for title in [*titles, "all"]:
        for column in ("tokens", "share", "epochs"):
            table.add_column(f"{title}\n{column}", justify="right")
    total = _together(views)
    shown = [*views, total] if titles else [total]
    for language in sorted(total.tokens):
        table.add_row(language, *(cell for view in shown for cell in _cells(view, language)))
    sums = (f"{sum(view.tokens.values()):,}" for view in shown)
    table.add_row("all", *(cell for text in sums for cell in (text, "", "")))
    console.print(table)
    for number, view in enumerate(views, start=1):
        where = f"stage {number}: " if titles else ""
        if view.capped:
            held = ", ".join(sorted(view.capped))
            console.print(f"{where}held down by max_epochs: {held}", highlight=False)
        for language, why in view.dropped.items():
            console.print(f"{where}{language} left out: {why}", highlight=False)


def _together(views: list[StageView]) -> StageView:
    names = sorted({name for view in views for name in view.tokens})
    return StageView(
        tokens={name: sum(view.tokens.get(name, 0) for view in views) for name in names},
        epochs={name: sum(view.epochs.get(name, 0.0) for view in views) for name in names},
        capped=frozenset(),
        dropped={},
    )


def _cells(view: StageView, language: str) -> tuple[str, str, str]:
    if language not in view.tokens:
        return "", "", ""
    tokens = view.tokens[language]
    share = tokens / max(sum(view.tokens.values()), 1)
    return f"{tokens:,}", f"{share:.2%}", f"{view.epochs[language]:.2f}"


def print_windows(console: Console, stream: Stream, tokenizer: Tokenizer, count: int) -> None:
    """The beginnings of the first rows, decoded; documents are divided by the text of ``<eod>``."""
    rows = stream.mixture.rows  # of a mixture that ends
    for row in range(count if rows is None else min(count, rows)):
        language, window = stream.mixture.window(row)
        text = tokenizer.decode(stream.sample(row)["tokens"])
        beginning = " ".join(text.split())[:WINDOW_CHARACTERS]
        line = f"row {row}: {language}, window {window}: {beginning} …"
        console.print(line, highlight=False, soft_wrap=True)


def plot(views: list[StageView], path: Path) -> None:
    """Shares of the languages, stacked, over the tokens of the run, as an image."""
    total = _together(views).tokens
    languages = sorted(total, key=total.__getitem__, reverse=True)
    edges, shares = [], []
    start = 0
    for view in views:
        length = sum(view.tokens.values())
        if length:
            edges += [start, start + length]
            shares += [[view.tokens.get(name, 0) / length for name in languages]] * 2
            start += length
    figure = Figure(figsize=(9, 6), dpi=120)
    axis = figure.subplots()
    colors = colormaps["nipy_spectral"]([n / len(languages) for n in range(len(languages))])
    axis.stackplot(edges, list(zip(*shares, strict=True)), labels=languages, colors=colors)
    axis.set_xlabel("tokens")
    axis.set_ylabel("share of tokens")
    axis.set_xlim(0, start)
    axis.set_ylim(0, 1)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    save_figure(figure, path)
