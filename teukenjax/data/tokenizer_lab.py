"""The tokenizer lab: train one on a mixture of text, compare several, show what came out."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from teukenjax.data.begun import save
from teukenjax.data.documents import Document, DocumentReader, find_files
from teukenjax.data.encoders import load_encoder
from teukenjax.data.fertility import TokenizerReport, report
from teukenjax.data.prepare import SAMPLE
from teukenjax.data.progress import progress_bar, records_on
from teukenjax.data.sampling import TextSample
from teukenjax.data.tokenizer import MODEL_FILE, Tokenizer, train_tokenizer
from teukenjax.errors import UserError, disk_errors
from teukenjax.picture import save_figure
from teukenjax.recipe import MixtureConfig

COLUMNS = {
    "tokens/word": lambda row: f"{row.fertility:.3f}",
    "chars/token": lambda row: f"{row.characters_per_token:.2f}",
    "bytes/token": lambda row: f"{row.bytes_per_token:.2f}",
    "byte pieces": lambda row: f"{row.byte_fallback:.2%}",
    "unknown": lambda row: f"{row.unknown:.2%}",
    "round trip": lambda row: f"{row.round_trip:.1%}",
    "NFKC": lambda row: f"{row.round_trip_nfkc:.1%}",
    "vocabulary used": lambda row: f"{row.pieces_used:.1%}",
    "own": lambda row: f"{row.pieces_own:.1%}",
}
PLOTTED = {
    "fertility": "tokens per word (less is better)",
    "bytes_per_token": "bytes per token (more is better)",
}


def train_on_mixture(
    mixture: MixtureConfig,
    text: str | Path,
    out: Path,
    *,
    vocab_size: int,
    bytes_per_language: int,
    progress: bool = True,
) -> Tokenizer:
    """Trains a tokenizer on text in the shares of a mixture's first stage, into folder ``out``.

    Text streams by; what is kept of it in memory is at most ``bytes_per_language`` of each, which
    is also what the language with the largest share is given. The folder holds the model and
    ``training.json``, which says how much of each language it was trained on.

    Raises:
      UserError: when ``out`` exists, text is missing or damaged, the mixture names a language
        that the text lacks, the vocabulary does not fit the text, or ``out`` cannot be written.
    """
    if out.exists():
        raise UserError(f"{out}: already exists: remove it, or choose another name")
    with progress_bar(shown=progress) as bar:
        sample = _sample(text, bytes_per_language, bar)
        chosen = sample.mixed(mixture)
        bar.add_task("training the tokenizer", total=None)
        sentences = [sentence for language in sorted(chosen) for sentence in chosen[language]]
        tokenizer = train_tokenizer(sentences, vocab_size=vocab_size)
    about = {
        "text": str(text),
        "mixture": mixture.model_dump(mode="json"),
        "bytes": {name: sum(len(s.encode()) for s in chosen[name]) for name in sorted(chosen)},
        "bytes_seen": sample.sizes,
    }
    unfinished = out.with_name(out.name + ".partial")
    with disk_errors(out):
        unfinished.mkdir(parents=True, exist_ok=True)  # a kill may have left one
        (unfinished / "training.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        tokenizer.save(unfinished / MODEL_FILE)
        unfinished.replace(out)
    return tokenizer


def compare(
    paths: Sequence[Path], text: str | Path, *, bytes_per_language: int, progress: bool = True
) -> list[TokenizerReport]:
    """Reports of several tokenizers on the same sample of lines.

    Raises:
      UserError: for a file that is no tokenizer, text that is missing or damaged, or fewer bytes
        than a line has.
    """
    encoders = [load_encoder(path) for path in paths]
    with progress_bar(shown=progress) as bar:
        lines = _sample(text, bytes_per_language, bar).kept()
        if empty := [language for language in lines if not lines[language]]:
            raise UserError(f"{bytes_per_language} bytes of '{empty[0]}' hold no line: take more")
        task = bar.add_task("encoding", total=len(encoders))
        reports = []
        for encoder in encoders:
            reports.append(report(encoder, lines))
            bar.update(task, advance=1)
    return reports


def _sample(text: str | Path, limit: int, bar) -> TextSample:
    reader, sample = (
        DocumentReader(find_files(SAMPLE if text == "sample" else text)),
        TextSample(limit),
    )
    found = (reader.fields.parse(record) for record in records_on(bar, reader, "sampling text"))
    sample.add(item for item in found if isinstance(item, Document))
    if not sample.sizes:
        raise UserError(f"{text}: no documents found")
    return sample


def print_reports(console: Console, reports: list[TokenizerReport]) -> None:
    """A row for each language and tokenizer; then the scripts of each vocabulary."""
    table = Table("language", "tokenizer", *COLUMNS, box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for language in reports[0].languages:
        for number, one in enumerate(reports):
            row = one.languages[language]
            cells = (write(row) for write in COLUMNS.values())
            table.add_row("" if number else language, one.name, *cells)
    for number, one in enumerate(reports):
        cells = (write(one.mean) for write in COLUMNS.values())
        table.add_row("" if number else "mean", one.name, *cells)
    console.print(table)
    for one in reports:
        scripts = ", ".join(f"{name} {share:.1%}" for name, share in one.scripts.items())
        console.print(f"{one.name}: {one.vocab_size:,} pieces: {scripts}", highlight=False)


def write_json(reports: list[TokenizerReport], path: Path) -> None:
    """All numbers."""
    content = [one.as_dict() for one in reports]
    with disk_errors(path):
        save(path, json.dumps(content, indent=1, ensure_ascii=False).encode())


def plot(reports: list[TokenizerReport], path: Path) -> None:
    """Bars for each language, side by side for each tokenizer, as an image."""
    languages = list(reports[0].languages)
    figure = Figure(figsize=(max(6, len(languages) * 0.5), 7), dpi=120)
    axes = figure.subplots(len(PLOTTED))
    width = 0.8 / len(reports)
    for axis, (key, title) in zip(axes, PLOTTED.items(), strict=True):
        for number, one in enumerate(reports):
            heights = [vars(one.languages[language])[key] for language in languages]
            places = [place + (number + 0.5) * width - 0.4 for place in range(len(languages))]
            axis.bar(places, heights, width, label=f"{one.name} ({one.vocab_size:,})")
        axis.set_xticks(range(len(languages)), languages)
        axis.set_ylabel(title)
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    save_figure(figure, path)
