"""A suite whose questions are made up here, in three languages and all six kinds."""

import json
import random
from pathlib import Path

from teukenjax.data.prepare import SAMPLE
from teukenjax.evaluate.suite import SuiteConfig
from teukenjax.recipe import validate

LANGUAGES = ("de", "el", "mt")
KINDS = ("arc", "hellaswag", "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "gsm8k")
SHOTS = {"arc": 1, "mmlu": 2}


def suite(**changes) -> SuiteConfig:
    tasks = {
        kind: {
            "kind": kind,
            "split": "test",
            "shots": SHOTS.get(kind, 0),
            "shots_split": "train",
            "first_shots": kind == "mmlu",
            "metric": "exact_match" if kind == "gsm8k" else "acc",
        }
        for kind in KINDS
    }
    return validate(SuiteConfig, {"languages": LANGUAGES, "tasks": tasks} | changes, "test")


def write(folder: Path, questions: int = 6) -> Path:
    """Rows as on the hub, from words of the bundled sample."""
    for language in LANGUAGES:
        text = (SAMPLE / f"{language}.txt").read_text(encoding="utf-8")
        draw = _Words(text.split(), language)
        for kind in KINDS:
            for split in ("test", "train"):
                rows = [draw.row(kind) for _ in range(questions)]
                file = folder / kind / f"{language}.{split}.jsonl"
                file.parent.mkdir(exist_ok=True, parents=True)
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class _Words:
    def __init__(self, words: list[str], seed: str):
        self._words, self._random = words, random.Random(seed)

    def text(self, most: int = 6) -> str:
        """A few words that follow each other."""
        count = self._random.randint(1, most)
        start = self._random.randrange(len(self._words) - count)
        return " ".join(self._words[start : start + count])

    def row(self, kind: str) -> dict:
        texts = [self.text() for _ in range(4)]
        right = self._random.randrange(4)
        labels = [int(number == right) for number in range(4)]
        targets = {"choices": texts, "labels": labels}
        return {
            "arc": {
                "question": self.text(),
                "choices": {"text": texts, "label": list("ABCD")},
                "answerKey": "ABCD"[right],
            },
            "hellaswag": {
                "activity_label": self.text(2),
                "ctx_a": self.text(),
                "ctx_b": self.text(3),
                "endings": [f"{text} [step]  x" for text in texts],
                "label": str(right),
            },
            "mmlu": {"question": self.text(), "choices": texts, "answer": right},
            "truthfulqa_mc1": {"question": self.text(), "mc1_targets": targets},
            "truthfulqa_mc2": {
                "question": self.text(),
                "mc2_targets": {"choices": [*texts, self.text()], "labels": [*labels, 1]},
            },
            "gsm8k": {"question": self.text(), "answer": f"{self.text()} #### {right}"},
        }[kind]
