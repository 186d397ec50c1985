"""What a token store holds, as a table."""

from rich.console import Console
from rich.table import Table

from teukenjax.data.store import TokenStore


def print_store(console: Console, store: TokenStore) -> None:
    """Documents, tokens and bytes of each language, and what was kept aside."""
    manifest = store.manifest
    table = Table("language", "documents", "tokens", "text bytes", "bytes/token", "held out")
    table.box = None
    for column in table.columns[1:]:
        column.justify = "right"
    for language in store.languages:
        train = manifest.splits["train"].get(language)
        valid = manifest.splits["valid"].get(language)
        counts = (train.documents, train.tokens, train.bytes) if train else (0, 0, 0)
        density = f"{train.bytes / train.tokens:.2f}" if train else ""
        held_out = valid.documents if valid else 0
        table.add_row(language, *(f"{n:,}" for n in counts), density, f"{held_out:,}")
    console.print(table)
    total = sum(counts.tokens for counts in manifest.splits["train"].values())
    console.print(
        f"{store.location}: {total:,} training tokens, tokenizer of {manifest.vocab_size:,} pieces",
        highlight=False,
    )
    if manifest.rejects:
        console.print(
            f"{manifest.rejects:,} of {manifest.lines:,} lines were broken and kept aside in "
            f"{store.location}/rejects.jsonl",
            highlight=False,
        )
    for source in manifest.sources:
        if source.documents == 0:
            console.print(f"{source.file}: holds no documents", highlight=False)
