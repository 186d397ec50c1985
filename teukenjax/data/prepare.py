"""From text to a token store: train the tokenizer, hold documents out, encode.

The text is streamed twice (once when the tokenizer exists): first for a sample that gives every
language the same number of bytes, so that the tokenizer does not serve the largest ones only;
then to be encoded. Both passes count documents in the same way, so no held-out document takes
part in the training of the tokenizer. Nothing depends on the number of threads.
"""

import heapq
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from teukenjax.data.documents import Document, DocumentReader, find_files
from teukenjax.data.store import Split, TokenStore
from teukenjax.data.tokenizer import Tokenizer, split_sentences
from teukenjax.data.tokenizer import train_tokenizer as train
from teukenjax.data.writer import StoreWriter, refuse_existing
from teukenjax.errors import UserError
from teukenjax.recipe import Recipe

SAMPLE = Path(__file__).parent / "sample"
BATCH_CHARACTERS = 1 << 22  # encoded together: enough to keep many threads busy


def prepare(
    text: str | Path,
    out: str | Path,
    *,
    train_tokenizer: int | None = None,
    tokenizer: str | Path | None = None,
    holdout: float = 0.01,
    text_field: str = "text",
    language_field: str = "lang",
    max_broken: float = 0.01,
    tokenizer_bytes_per_language: int = 1_000_000,
    threads: int | None = None,
    progress: bool = True,
) -> TokenStore:
    """Makes the token store ``out`` from the documents of ``text`` and opens it.

    Args:
      text: a file or a directory (see ``documents``), or "sample", the bundled text.
      out: where the store is to be; an interrupted call leaves nothing there.
      train_tokenizer: vocabulary of a tokenizer that is trained on ``text``; or …
      tokenizer: … the file of an existing one. Exactly one of the two.
      holdout: share of documents kept for validation: with k = round(1/holdout), every k-th
        document of each language.
      text_field: key (or column) of the text.
      language_field: key (or column) of the language; see ``DocumentReader``.
      max_broken: the largest tolerated share of broken lines.
      tokenizer_bytes_per_language: the tokenizer is trained on at most this much of each.
      threads: for encoding; none: one per CPU.
      progress: whether to show a progress bar on standard error.

    Raises:
      UserError: for options that contradict, missing or damaged files, too many broken lines,
        an ``out`` that exists, or no documents at all.
    """
    out, every = Path(out), _period(holdout)
    if (train_tokenizer is None) == (tokenizer is None):
        raise UserError("give either train_tokenizer (a vocabulary size) or tokenizer (a file)")
    refuse_existing(out)
    files = find_files(SAMPLE if text == "sample" else text)
    new_reader = partial(
        DocumentReader,
        files,
        text_field=text_field,
        language_field=language_field,
        max_broken=max_broken,
    )
    with _progress_bar(shown=progress) as bar:
        if tokenizer is not None:
            model = Tokenizer.load(tokenizer)
        else:
            documents = _documents(new_reader(), bar, "sampling text")
            sample = _sample(_split(documents, every), tokenizer_bytes_per_language)
            bar.add_task("training the tokenizer", total=None)
            model = train(sample, vocab_size=train_tokenizer)
        with StoreWriter(out, model) as writer:
            reader = new_reader(on_reject=writer.reject)
            documents = _documents(reader, bar, "encoding")
            _encode(_split(documents, every), writer, model, threads or os.cpu_count())
            return writer.finish(sources=files, lines=reader.lines, holdout=holdout)


def open_store(recipe: Recipe, console: Console) -> TokenStore:
    """The recipe's token store; prepared from ``data.text`` when it is not there yet."""
    data = recipe.data
    path = data.store or recipe.out / "store"
    if path.exists() or data.text is None:
        return TokenStore.open(path)
    console.print(f"preparing {path} from {data.text}", highlight=False)
    return prepare(
        data.text,
        path,
        train_tokenizer=data.train_tokenizer,
        tokenizer=data.tokenizer,
        holdout=data.holdout,
        progress=console.is_terminal,
    )


def _period(holdout: float) -> int:
    """k, of which every k-th document is held out; 0 for none."""
    if not 0 <= holdout <= 0.5:
        raise UserError(f"holdout={holdout}: a share from 0 to 0.5 is allowed")
    return round(1 / holdout) if holdout else 0


def _documents(reader: DocumentReader, bar: Progress, what: str) -> Iterator[Document]:
    """The reader's documents, of which there must be some, shown on the bar."""
    task = bar.add_task(what, total=reader.total_bytes)
    for number, document in enumerate(reader):
        yield document
        if number % 64 == 0:
            bar.update(task, completed=reader.bytes_read)
    bar.update(task, completed=reader.bytes_read)
    if reader.lines == reader.broken:
        raise UserError(f"{reader.files[0].parent}: no documents in {len(reader.files)} files")


def _split(documents: Iterable[Document], every: int) -> Iterator[tuple[Split, Document]]:
    """Holds out every ``every``-th document of each language."""
    seen = Counter()
    for document in documents:
        seen[document.language] += 1
        held_out = every and seen[document.language] % every == 0
        yield "valid" if held_out else "train", document


def _sample(documents: Iterable[tuple[Split, Document]], limit: int) -> list[str]:
    """A uniform sample of the training sentences, at most ``limit`` bytes for each language.

    Every sentence draws a random number, and the smallest numbers that fit are kept.
    """
    samples: dict[str, _LanguageSample] = {}
    for split, document in documents:
        if split == "train":
            if document.language not in samples:
                samples[document.language] = _LanguageSample(document.language, limit)
            samples[document.language].add(document.text)
    return [sentence for _, sample in sorted(samples.items()) for sentence in sample.sentences()]


class _LanguageSample:
    def __init__(self, language: str, limit: int):
        self._draw = random.Random(language).random  # the same whatever the other languages
        self._limit = limit
        self._heap: list[tuple[float, str]] = []  # the largest number first
        self._bytes, self._threshold = 0, 1.0

    def add(self, text: str) -> None:
        for sentence in split_sentences(text):
            number = self._draw()
            if number < self._threshold:
                heapq.heappush(self._heap, (-number, sentence))
                self._bytes += len(sentence.encode())
            while self._bytes > self._limit:
                negative, dropped = heapq.heappop(self._heap)
                self._threshold = -negative
                self._bytes -= len(dropped.encode())

    def sentences(self) -> list[str]:
        return [sentence for _, sentence in sorted(self._heap, reverse=True)]


def _encode(
    documents: Iterable[tuple[Split, Document]],
    writer: StoreWriter,
    tokenizer: Tokenizer,
    threads: int,
) -> None:
    for batch in _batches(documents):
        texts = [document.text for _, document in batch]
        groups = defaultdict(lambda: ([], []))
        for (split, document), ids in zip(
            batch, tokenizer.encode_batch(texts, threads=threads), strict=True
        ):
            group_ids, group_sizes = groups[split, document.language]
            group_ids.append(ids)
            group_sizes.append(len(document.text.encode()))
        for (split, language), (ids, sizes) in groups.items():
            writer.append(split, language, ids=ids, sizes=sizes)


def _batches(
    documents: Iterable[tuple[Split, Document]],
) -> Iterator[list[tuple[Split, Document]]]:
    """Lists of documents of about equal length together; counted in text, not in documents."""
    batch, characters = [], 0
    for item in documents:
        batch.append(item)
        characters += len(item[1].text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _progress_bar(*, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
