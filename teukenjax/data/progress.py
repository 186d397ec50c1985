"""The progress bar of work on text: bytes done, speed, time left."""

from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from teukenjax.data.documents import DocumentReader, Record


def progress_bar(*, shown: bool) -> Progress:
    """On standard error, with time left; use as a context manager."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )


def records_on(bar: Progress, reader: DocumentReader, what: str) -> Iterator[Record]:
    """The reader's records, with its position on the bar."""
    task = bar.add_task(what, total=reader.total_bytes)
    for number, record in enumerate(reader.records()):
        yield record
        if number % 64 == 0:
            bar.update(task, completed=reader.bytes_read)
    bar.update(task, completed=reader.bytes_read)
