"""A suite: which tasks are asked in which languages, with how many examples, from which data.

Data come from a hub, or from a folder of JSON lines, FOLDER/TASK/LANGUAGE.SPLIT.jsonl, whose rows
have the keys of the data sets on the hub.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from teukenjax.data.documents import parse_json
from teukenjax.data.records import json_lines
from teukenjax.errors import UserError, nearest
from teukenjax.evaluate.questions import KINDS, WORDS, Question
from teukenjax.hardware import configs
from teukenjax.recipe import Section, read_yaml, validate

# Kind → what the harness counts; other kinds have acc, and acc_norm by the length of a choice.
METRICS = {"gsm8k": ("exact_match",), "truthfulqa_mc2": ("acc",)}
CHOICE_METRICS = ("acc", "acc_norm")


class HubData(Section):
    """Data sets on a hub; ``{language}`` in a name is the code in upper case."""

    path: str
    names: tuple[str | None, ...] = (None,)  # of configurations, one after the other


class TaskConfig(Section):
    """One benchmark in all languages of the suite."""

    kind: Literal["arc", "hellaswag", "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "gsm8k"]
    split: str  # that is asked
    shots: NonNegativeInt  # examples before each question
    shots_split: str | None = None  # where those come from
    first_shots: bool = False  # the first ones, not drawn ones
    new_tokens: PositiveInt = 256  # of an answer that is written, at most
    metric: str  # that tables show
    hub: HubData | None = None
    english: HubData | None = None  # in place of ``hub``
    english_split: str | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """What the harness counts."""
        return METRICS.get(self.kind, CHOICE_METRICS)

    def data(self, language: str) -> HubData | None:
        """Where the hub has it; none where it has not."""
        return self.english if language == "en" else self.hub

    @property
    def examples(self) -> str | None:
        """The split that examples come from; none where none are shown."""
        return (self.shots_split or self.split) if self.shots else None


class SuiteConfig(Section):
    """Tasks and languages."""

    languages: Annotated[tuple[str, ...], Field(min_length=1)]
    codes: Mapping[str, str] = {}  # language → how the hub spells it, where not in upper case
    tasks: Annotated[dict[str, TaskConfig], Field(min_length=1)]


def load_suite(name: str) -> SuiteConfig:
    """The suite of a YAML file, or of one in ``configs/suites`` by its name.

    Raises:
      UserError: when there is none, or it names an unknown language or a metric that a task has
        not.
    """
    path = Path(name)
    if not path.suffix:
        folder = configs() / "suites"
        path = folder / f"{name}.yaml"
        if not path.is_file():
            raise UserError(f"suite '{name}': {nearest(name, (p.stem for p in folder.iterdir()))}")
    suite = validate(SuiteConfig, read_yaml(path), str(path))
    for language in suite.languages:
        if language not in WORDS:
            raise UserError(f"{path}: language '{language}': {nearest(language, WORDS)}")
    for name, task in suite.tasks.items():
        if task.metric not in task.metrics:
            allowed = nearest(task.metric, task.metrics)
            raise UserError(f"{path}: tasks.{name}.metric '{task.metric}': {allowed}")
    return suite


class Questions:
    """The questions of a suite, each file or data set read once."""

    def __init__(self, suite: SuiteConfig, folder: Path | None = None):
        """Args: the suite; a folder of files, in place of the hub."""
        self.suite, self._folder = suite, folder
        self._read: dict[tuple[str, str, str], list[Question]] = {}

    def load(self) -> None:
        """Reads all that the suite needs, so that what is missing is known before a model asks.

        Raises:
          UserError: as a call and ``examples`` do.
        """
        for name, task in self.suite.tasks.items():
            for language in self.suite.languages:
                self(name, language, task.split)
                self.examples(name, language)

    def __call__(self, name: str, language: str, split: str) -> list[Question]:
        """The questions of a task in a language.

        Raises:
          UserError: when the data is not there, or a row is not of the task's kind.
        """
        key = name, language, split
        if key not in self._read:
            self._read[key] = self._questions(*key)
        return self._read[key]

    def examples(self, name: str, language: str) -> list[Question]:
        """What may be shown before the questions of a task; nothing where it has no shots.

        Of another split, what is not asked as well. The split that is asked is given whole: of
        it, all but the question itself may be shown.

        Raises:
          UserError: as a call does, and when they are fewer than the shots.
        """
        task = self.suite.tasks[name]
        if task.examples is None:
            return []
        asked, found = self(name, language, task.split), self(name, language, task.examples)
        texts = Counter(map(repr, asked))
        if found == asked:  # on the hub, two names may mean one split
            examples, allowed = found, len(found) - max(texts.values())
        else:
            examples = [one for one in found if repr(one) not in texts]
            allowed = len(examples)
        if allowed < task.shots:
            raise UserError(
                f"{self._place(name, language, task.examples)}: {allowed} of {len(found)} rows can "
                f"be examples for a question: tasks.{name}.shots={task.shots} needs {task.shots}"
            )
        return examples

    def _questions(self, name: str, language: str, split: str) -> list[Question]:
        task, where = self.suite.tasks[name], self._place(name, language, split)
        questions = []
        for number, row in self._rows(name, language, split):
            try:
                questions.append(KINDS[task.kind](row, language))
            except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise UserError(f"{where}:{number}: is no row of {task.kind}: {reason}") from None
        if not questions:
            raise UserError(f"{where}: holds no questions")
        return questions

    def _place(self, name: str, language: str, split: str) -> str:
        """The file, or the data set on the hub."""
        if self._folder is not None:
            return str(self._folder / name / f"{language}.{split}.jsonl")
        hub = self.suite.tasks[name].data(language)
        if hub is None:
            raise UserError(f"task '{name}' in '{language}' has no data set: give --task-data")
        return hub.path

    def _rows(self, name: str, language: str, split: str) -> Iterable[tuple[int, dict[str, Any]]]:
        if self._folder is None:
            return enumerate(self._from_hub(name, language, split), start=1)
        file = Path(self._place(name, language, split))
        if not file.is_file():
            raise UserError(f"{file}: no such file: the task '{name}' in '{language}' needs it")
        try:
            return [(number, parse_json(raw)) for number, raw in json_lines(file, lambda _: None)]
        except UserError as error:
            raise UserError(f"{file}: {error}") from None

    def _from_hub(self, name: str, language: str, split: str) -> list[dict[str, Any]]:
        import datasets

        # It warns of each try to reach the hub; that it was in vain is said once, below.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        task = self.suite.tasks[name]
        hub = task.data(language)
        english = task.english_split if language == "en" and split == task.split else None
        code = self.suite.codes.get(language, language.upper())
        rows: list[dict[str, Any]] = []
        for config in hub.names:
            config = config and config.format(language=code)
            try:
                rows += datasets.load_dataset(hub.path, config, split=english or split).to_list()
            except Exception as error:  # no network, no such data set: the library has many names
                reason = " ".join(str(error).split())
                raise UserError(
                    f"task '{name}' in '{language}': {hub.path} {config} cannot be loaded: "
                    f"{reason:.160}: give --task-data FOLDER with {name}/{language}.{split}.jsonl"
                ) from None
        return rows


def read_scores(path: Path) -> dict[str, Any]:
    """The JSON of ``teukenjax eval --suite``, or of a file of published scores."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: is not JSON") from None
