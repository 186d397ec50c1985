"""Scores of a run on any text, with the run's own tokenizer."""

import collections
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from teukenjax.data.documents import DocumentReader, find_files
from teukenjax.errors import UserError, disk_errors
from teukenjax.evaluate.bits_per_byte import Document, Evaluator, Score, mean
from teukenjax.run import LoadedRun, write_atomically


def score_text(loaded: LoadedRun, text: Path, *, batch_tokens: int = 32_768) -> dict[str, Score]:
    """Bits per byte of each language of the documents under ``text``.

    Args:
      loaded: a run's model and tokenizer.
      text: a file or a directory of documents (see ``data.documents``).
      batch_tokens: tokens of one batch over all devices.

    Raises:
      UserError: when there is no document.
    """
    documents: dict[str, list[Document]] = collections.defaultdict(list)
    for document in DocumentReader(find_files(text)):
        ids = loaded.tokenizer.encode_batch([document.text], threads=1)[0]
        documents[document.language].append((ids, len(document.text.encode())))
    if not documents:
        raise UserError(f"{text}: no documents found")
    evaluate = Evaluator(loaded.model, eod=loaded.tokenizer.eod_id, batch_tokens=batch_tokens)
    return evaluate(loaded.params, dict(sorted(documents.items())))


def write_scores(loaded: LoadedRun, text: Path, scores: dict[str, Score], path: Path) -> None:
    """The scores as JSON: the step, the text, and each language's numbers."""
    rows = {language: score.as_dict() for language, score in scores.items()}
    content = {"step": loaded.step, "data": str(text), "languages": rows}
    with disk_errors(path):
        write_atomically(path, json.dumps(content, indent=1))


def print_scores(console: Console, scores: dict[str, Score]) -> None:
    """One row a language, and the mean in which each language counts the same."""
    table = Table("language", "bits per byte", "perplexity", "documents", "bytes", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for language, score in scores.items():
        counts = f"{score.documents:,}", f"{score.bytes:,}"
        table.add_row(language, f"{score.bits_per_byte:.4f}", f"{score.perplexity:.2f}", *counts)
    table.add_row("mean", f"{mean(scores):.4f}")
    console.print(table)
