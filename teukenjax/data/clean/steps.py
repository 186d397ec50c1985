"""Our steps in datatrove's pipelines: reading text, the rules of each language, files by task."""

import functools
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.word_tokenizers import WordTokenizer
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from teukenjax.data.begun import save
from teukenjax.data.clean.config import CleanConfig, Rules
from teukenjax.data.clean.dropped import Dropped
from teukenjax.data.documents import DocumentReader, Fields, Reject

WORD = re.compile(r"\w+")
IDENTIFIED_CHARACTERS = 10_000  # enough for any text; the identifier reads every byte


class Words(WordTokenizer):
    """Runs of letters and digits: datatrove's own splitters need models to be downloaded."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Its lines."""
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """The places of its words."""
        return [match.span() for match in WORD.finditer(text)]


class ReadText:
    """The first step: the documents of this task's files; broken lines count as dropped."""

    def __init__(self, files: list[Path], fields: Fields, dropped: Dropped):
        self._files = files
        self._fields = fields
        self._dropped = dropped

    def __call__(self, _, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents, with language and file in their metadata."""
        reader = DocumentReader(self._files[rank::world_size], fields=self._fields)
        with self._dropped as dropped:
            for record in reader.records():
                found = self._fields.parse(record)
                if isinstance(found, Reject):
                    reason = f"{found.file}:{found.line}: {found.reason}"
                    dropped.take("broken line", "?", found.raw, source=reason, rank=rank)
                    continue
                about = {"lang": found.language, "source": found.source}
                yield Document(text=found.text, id=f"{record.file}:{record.line}", metadata=about)


class LanguageRules(BaseFilter):
    """Drops documents by the thresholds of their language.

    The reason is the threshold's name; for repetition, datatrove's name of it (``dup_line_frac``).
    """

    name = "rules"

    def __init__(self, config: CleanConfig, dropped: Dropped):
        super().__init__(dropped)
        self._config = config
        self._known: dict[str, tuple[Rules, GopherRepetitionFilter]] = {}

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True, or False with the rule that drops the document."""
        language = doc.metadata["lang"]
        if language not in self._known:
            rules = self._config.rules(language)
            self._known[language] = rules, repetition_filter(rules)
        rules, repetition = self._known[language]
        reason = failed_rule(doc.text, language, rules)
        return (False, reason) if reason else repetition.filter(doc)


def repetition_filter(rules: Rules) -> GopherRepetitionFilter:
    """datatrove's filter with the thresholds of one language."""
    return GopherRepetitionFilter(
        dup_line_frac=rules.duplicate_lines,
        dup_line_char_frac=rules.duplicate_line_characters,
        dup_para_frac=rules.duplicate_paragraphs,
        dup_para_char_frac=rules.duplicate_paragraph_characters,
        top_n_grams=tuple((int(n), share) for n, share in rules.top_ngrams.items()),
        dup_n_grams=tuple((int(n), share) for n, share in rules.duplicate_ngrams.items()),
        language=Words(),
    )


def failed_rule(text: str, language: str, rules: Rules) -> str | None:
    """The first threshold of length, script or language that a text does not meet."""
    words = WORD.findall(text)
    if rules.min_characters is not None and len(text) < rules.min_characters:
        return "min_characters"
    if rules.max_characters is not None and len(text) > rules.max_characters:
        return "max_characters"
    if rules.min_words is not None and len(words) < rules.min_words:
        return "min_words"
    mean = sum(map(len, words)) / max(len(words), 1)
    if rules.max_word_characters is not None and mean > rules.max_word_characters:
        return "max_word_characters"
    if rules.script is not None and script_share(text, rules.script) < rules.min_script:
        return "min_script"
    if rules.min_probability is not None and len(text) >= rules.check_from_characters:
        found, probability = identifier().classify(text[:IDENTIFIED_CHARACTERS])
        if found not in (language, *rules.also):
            return f"language is {found}"
        if probability < rules.min_probability:
            return "min_probability"
    return None


def script_share(text: str, script: str) -> float:
    """The share of a text's letters that are of a script; 0 without letters."""
    counts = Counter(text)
    letters = {letter: n for letter, n in counts.items() if letter.isalpha()}
    own = sum(n for letter, n in letters.items() if _script(letter) == script)
    return own / max(sum(letters.values()), 1)


@functools.cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").split()[0]


@functools.cache
def identifier() -> LanguageIdentifier:
    """Of 97 languages, in a file that its package carries; loaded once a process."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class WriteFile:
    """A last step: this task's documents into FOLDER/RANK.jsonl.zst, whole or not at all.

    Beside it is RANK.json with the documents and bytes of each language.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def __call__(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> None:
        """Writes them all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = file_of(self._folder, rank)
        partial = path.with_name(path.name + ".partial")
        documents, size = Counter(), Counter()
        with partial.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
            for document in data:
                row = {"text": document.text, **document.metadata}
                row = {key: row[key] for key in ("text", "lang", "source")}
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                documents[row["lang"]] += 1
                size[row["lang"]] += len(document.text.encode())
        partial.replace(path)
        counts = {name: [documents[name], size[name]] for name in sorted(documents)}
        save(self._folder / f"{rank:05}.json", json.dumps(counts).encode())


class ReadFile:
    """A first step: what ``WriteFile`` wrote in the task of the same number."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __call__(self, _, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents, in order."""
        decompressor = zstandard.ZstdDecompressor()
        with decompressor.stream_reader(file_of(self._folder, rank).open("rb")) as raw:
            for line in io.TextIOWrapper(raw, encoding="utf-8"):
                row = json.loads(line)
                yield Document(text=row.pop("text"), id="", metadata=row)


def file_of(folder: Path, rank: int) -> Path:
    """Where task ``rank`` keeps its documents."""
    return folder / f"{rank:05}.jsonl.zst"
