"""From text to a token store: train the tokenizer, encode, hold documents out, put together.

Encoding is the work, so it is what many processes share and what a killed run does not do again:
they write shards (``shards``) into a folder beside the store. The rest is one pass over the
shards in order, so that nothing depends on the number of processes, and an append gives the store
that all the text at once would have given.

    STORE.partial/begun.json        what this is made from, so that it is gone on with and not mixed
    STORE.partial/lock              held while a process writes
    STORE.partial/tokenizer.model   as soon as it is trained
    STORE.partial/parts/            the finished shards
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from teukenjax.data.begun import fingerprint_files, save, working_in
from teukenjax.data.documents import (
    DEFAULT_FIELDS,
    Document,
    DocumentReader,
    Fields,
    Reject,
    check_broken,
    find_files,
    refuse_within,
)
from teukenjax.data.location import Location
from teukenjax.data.progress import progress_bar, records_on
from teukenjax.data.sampling import TextSample
from teukenjax.data.shards import SHARD_BYTES, Part, ShardEncoder, encode_shards, part_folder
from teukenjax.data.store import Source, Split, TokenStore
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.data.tokenizer import train_tokenizer as train
from teukenjax.data.writer import StoreWriter, refuse_existing
from teukenjax.errors import UserError
from teukenjax.recipe import Recipe

SAMPLE = Path(__file__).parent / "sample"
HOLDOUT = 0.01


def prepare(
    text: str | Path,
    out: str | Path,
    *,
    train_tokenizer: int | None = None,
    tokenizer: str | Path | None = None,
    append: bool = False,
    holdout: float | None = None,
    fields: Fields = DEFAULT_FIELDS,
    max_broken: float = 0.01,
    tokenizer_bytes_per_language: int = 1_000_000,
    processes: int | None = None,
    progress: bool = True,
) -> TokenStore:
    """Makes the token store ``out`` from the documents of ``text``, or adds to it, and opens it.

    A call that was interrupted, or met an error, leaves its finished shards in ``out`` +
    ".partial" (for a URL, in the working directory); the same call goes on from there.

    Args:
      text: a file or a directory (see ``documents``), or "sample", the bundled text.
      out: path or URL of the store.
      train_tokenizer: vocabulary of a tokenizer that is trained on ``text``; or …
      tokenizer: … the file of an existing one. Exactly one of the two, and for an append none.
      append: whether ``out`` is a store, to which the documents are added.
      holdout: share of documents kept for validation: with k = round(1/holdout), every k-th
        document of each language. None: the store's, and 0.01 for a new one.
      fields: of JSON and Parquet.
      max_broken: the largest tolerated share of broken lines.
      tokenizer_bytes_per_language: the tokenizer is trained on at most this much of each.
      processes: that encode; none: one for each CPU, and one for little text.
      progress: whether to show a progress bar on standard error.

    Raises:
      UserError: for options that contradict, missing or damaged files, too many broken lines, no
        documents at all, an ``out`` that lies in ``text`` or exists (or does not, for an append), a
        disk that is full, or another process that is writing to ``out``.
    """
    if not 0 <= max_broken <= 1:
        raise UserError(f"max_broken={max_broken}: a share from 0 to 1 is allowed")
    location = Location(out)
    store = _appended_to(location, append, train_tokenizer, tokenizer)
    holdout = _holdout(holdout, store)
    files = find_files(SAMPLE if text == "sample" else text)
    if location.path is not None:
        refuse_within(location.path, text)
    _refuse_known(files, store)
    options = {
        "tokenizer": store.manifest.tokenizer if store else train_tokenizer or str(tokenizer),
        "tokenizer_bytes_per_language": tokenizer_bytes_per_language,
        "holdout": holdout,  # what is held out, the tokenizer has not seen
        "fields": asdict(fields),
        "append_to": store.digest if store else None,
        "files": fingerprint_files(files),
    }
    reader = DocumentReader(files, fields=fields)
    with _work(location, options) as folder, progress_bar(shown=progress) as bar:
        model = _tokenizer(folder, tokenizer, store)
        if model is None:
            sentences = _sample(reader, bar, _period(holdout), tokenizer_bytes_per_language)
            bar.add_task("training the tokenizer", total=None)
            model = train(sentences, vocab_size=train_tokenizer)
            save(folder / "tokenizer.model", model.model)
        encoder = ShardEncoder(folder / "parts", model.model, fields)
        records = records_on(bar, reader, "encoding")
        processes = processes or _processes(reader.total_bytes)
        count = encode_shards(records, encoder, processes=processes)
        parts = [part_folder(encoder.parts, number) for number in range(count)]
        _check(files, parts, max_broken)
        with StoreWriter(location, model, extend=store) as writer:
            _put_together(parts, writer, bar, holdout, store)
            lines = sum(Part.load(part).lines for part in parts)
            made = writer.finish(sources=_sources(files, parts), lines=lines, holdout=holdout)
        shutil.rmtree(folder)
    return made


def open_store(recipe: Recipe, console: Console) -> TokenStore:
    """The recipe's token store; prepared from ``data.text`` when it is not there yet."""
    data = recipe.data
    location = Location(data.store or recipe.out / "store")
    if location.exists() or data.text is None:
        return TokenStore.open(location)
    console.print(f"preparing {location} from {data.text}", highlight=False)
    return prepare(
        data.text,
        str(location),
        train_tokenizer=data.train_tokenizer,
        tokenizer=data.tokenizer,
        holdout=data.holdout,
        progress=console.is_terminal,
    )


def _appended_to(
    location: Location, append: bool, vocab_size: int | None, tokenizer: str | Path | None
) -> TokenStore | None:
    """The store of an append; none for a new one, whose place must be free."""
    if not append:
        if (vocab_size is None) == (tokenizer is None):
            raise UserError("give either train_tokenizer (a vocabulary size) or tokenizer (a file)")
        refuse_existing(location)
        return None
    if vocab_size is not None or tokenizer is not None:
        raise UserError(f"{location}: an append takes the store's own tokenizer: give none")
    return TokenStore.open(location)


def _holdout(given: float | None, store: TokenStore | None) -> float:
    old = store.manifest.holdout if store else given
    if given is None:
        return HOLDOUT if old is None else old
    if not 0 <= given <= 0.5:
        raise UserError(f"holdout={given}: a share from 0 to 0.5 is allowed")
    if given != old:
        raise UserError(f"holdout={given}: the store {store.location} was made with {old}")
    return given


def _period(holdout: float) -> int:
    """k, of which every k-th document is held out; 0 for none."""
    return round(1 / holdout) if holdout else 0


def _refuse_known(files: list[Path], store: TokenStore | None) -> None:
    sources = store.manifest.sources if store else ()
    known = {Path(source.file).resolve() for source in sources}  # however its path is written
    for file in files:
        if file.resolve() in known:
            raise UserError(f"{file}: is in the store {store.location} already")


@contextmanager
def _work(location: Location, options: dict[str, Any]) -> Iterator[Path]:
    """The folder of unfinished work, locked; begun anew, or gone on with when it is the same."""
    folder = Path(f"{location}.partial" if location.path else f"{location.name}.partial")
    with working_in(folder, options, on=str(location)):
        parts = folder / "parts"
        parts.mkdir(exist_ok=True)
        try:
            yield folder
        except BaseException:
            if not any(parts.iterdir()) and not (folder / "tokenizer.model").exists():
                shutil.rmtree(folder)  # nothing to go on from
            raise


def _tokenizer(
    folder: Path, given: str | Path | None, store: TokenStore | None
) -> Tokenizer | None:
    """The tokenizer, where there is one already."""
    if store:
        return store.tokenizer()
    if given is not None:
        return Tokenizer.load(given)
    trained = folder / "tokenizer.model"
    return Tokenizer.load(trained) if trained.is_file() else None


def _sample(reader: DocumentReader, bar: Progress, every: int, limit: int) -> list[str]:
    """A balanced sample of the documents that are not held out, for the tokenizer."""
    parsed = (reader.fields.parse(record) for record in records_on(bar, reader, "sampling text"))
    documents = (document for document in parsed if isinstance(document, Document))
    sample = TextSample(limit)
    sample.add(document for split, document in _split(documents, every) if split == "train")
    if not sample.sizes:
        raise _no_documents(reader.files)
    return [sentence for kept in sample.kept().values() for sentence in kept]


def _split(documents: Iterable[Document], every: int) -> Iterator[tuple[Split, Document]]:
    """Holds out every ``every``-th document of each language."""
    seen = Counter()
    for document in documents:
        seen[document.language] += 1
        held_out = every and seen[document.language] % every == 0
        yield "valid" if held_out else "train", document


def _processes(total_bytes: int) -> int:
    return max(1, min(os.cpu_count() or 1, total_bytes // SHARD_BYTES))


def _check(files: list[Path], parts: list[Path], max_broken: float) -> None:
    """Raises a UserError for too many broken lines, or no documents."""
    loaded = [Part.load(part) for part in parts]
    first = next((part.rejects.splitlines()[0] for part in loaded if part.rejects), None)
    broken = sum(part.rejects.count(b"\n") for part in loaded)
    lines = sum(part.lines for part in loaded)
    if first is not None:
        check_broken(Reject(**json.loads(first)), broken, lines, max_broken)
    if broken == lines:
        raise _no_documents(files)


def _no_documents(files: list[Path]) -> UserError:
    return UserError(f"{files[0].parent}: no documents in {len(files)} files")


def _sources(files: list[Path], parts: list[Path]) -> list[Source]:
    counts = Counter()
    for part in parts:
        counts.update(Part.load(part).files)
    return [
        Source(file=str(file), bytes=file.stat().st_size, documents=counts[str(file)])
        for file in files
    ]


def _put_together(
    parts: list[Path], writer: StoreWriter, bar: Progress, holdout: float, store: TokenStore | None
) -> None:
    """Appends the documents of all shards, in order."""
    every, seen = _period(holdout), Counter()
    for languages in store.manifest.splits.values() if store else ():
        seen.update({language: counts.documents for language, counts in languages.items()})
    sizes = [(part / "ids.npy").stat().st_size for part in parts]
    task = bar.add_task("putting together", total=sum(sizes))
    for folder, size in zip(parts, sizes, strict=True):
        part = Part.load(folder)
        documents = np.split(part.ids, np.cumsum(part.documents["tokens"])[:-1])
        for number, language in enumerate(part.languages):
            (places,) = np.nonzero(part.documents["language"] == number)
            held_out = (seen[language] + 1 + np.arange(len(places))) % (every or np.inf) == 0
            seen[language] += len(places)
            for split, chosen in (("train", places[~held_out]), ("valid", places[held_out])):
                if len(chosen):
                    ids = [documents[place].astype(np.int32) for place in chosen]
                    lengths = part.documents["bytes"][chosen].tolist()
                    writer.append(split, language, ids=ids, sizes=lengths)
        if part.rejects:
            writer.reject(part.rejects)
        bar.update(task, advance=size)
