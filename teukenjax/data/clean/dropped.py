"""What cleaning drops: counted by rule and language, and a sample of each kept for the reader."""

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from teukenjax.data.begun import save

CHARACTERS = 2000  # of a dropped text that are kept
Key = tuple[str, str]  # rule, language


class Dropped:
    """Takes the dropped documents of one task; a context that writes them down when it ends well.

    datatrove's filters use it as their ``exclusion_writer``. The samples are those with the
    smallest hashes: uniform, and the same however the documents were divided over tasks.

    Args:
      folder: one file a task is written to it.
      rule: of documents that come without a reason.
      samples: documents to keep for each rule and language.
    """

    def __init__(self, folder: Path, rule: str, samples: int):
        self._folder = folder
        self._rule = rule
        self._samples = samples
        self._counts: Counter[Key] = Counter()
        self._kept: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        self._rank = 0

    def __enter__(self) -> "Dropped":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None and self._counts:
            content = {
                "counts": [[*key, count] for key, count in sorted(self._counts.items())],
                "samples": [[*key, smallest(self._kept[key], self._samples)] for key in self._kept],
            }
            self._folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(content, ensure_ascii=False)
            save(self._folder / f"{self._rank:05}.json", text.encode(errors="replace"))

    def write(self, document: Any, rank: int = 0) -> None:
        """Takes a datatrove document; its rule is in ``metadata["filter_reason"]``."""
        fields = document.metadata
        rule, language = fields.get("filter_reason", self._rule), fields["lang"]
        self.take(rule, language, document.text, source=fields["source"], rank=rank)

    def take(self, rule: str, language: str, text: str, *, source: str, rank: int) -> None:
        """Takes a text that a rule dropped."""
        self._rank = rank
        self._counts[rule, language] += 1
        digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()
        rows = self._kept[rule, language]
        rows.append({"hash": digest, "lang": language, "source": source, "text": text[:CHARACTERS]})
        if len(rows) > 4 * self._samples:
            rows[:] = smallest(rows, self._samples)


def smallest(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The rows with the smallest hashes."""
    return sorted(rows, key=lambda row: (row["hash"], row["source"]))[:count]


def gather(folders: list[Path], samples: int) -> tuple[Counter[Key], dict[Key, list[dict]]]:
    """The counts and samples of all tasks."""
    counts: Counter[Key] = Counter()
    kept: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(file for folder in folders for file in folder.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        counts.update({(rule, language): count for rule, language, count in content["counts"]})
        for rule, language, rows in content["samples"]:
            kept[rule, language] += rows
    return counts, {key: smallest(rows, samples) for key, rows in sorted(kept.items())}
