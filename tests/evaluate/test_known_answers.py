"""Every kind of task, asked of models whose answers are known: what the scores must then be."""

import json

import local_tasks
import pytest
from lm_eval.api.model import LM

from teukenjax.evaluate.benchmarks import run_suite
from teukenjax.evaluate.questions import WORDS
from teukenjax.evaluate.suite import Questions

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("default")]
CHOSEN = ("arc", "hellaswag", "mmlu", "truthfulqa_mc1")
LN_3 = 1.0986122886681098


class Known(LM):
    """Finds the answer in the files; ``right`` says whether to give it."""

    max_length = 512

    def __init__(self, folder, *, right: bool):
        super().__init__()
        ask, self._right, self.prompts = Questions(local_tasks.suite(), folder), right, []
        self._answers = {
            (one["prompt"], f" {choice}"): number == one["gold"]
            for language in local_tasks.LANGUAGES
            for kind in CHOSEN
            for one in ask(kind, language, "test")
            for number, choice in enumerate(one["choices"])
        }
        self._true = {
            (one["prompt"], f" {choice}"): bool(label)
            for language in local_tasks.LANGUAGES
            for one in ask("truthfulqa_mc2", language, "test")
            for choice, label in zip(one["choices"], one["labels"], strict=True)
        }
        self._numbers = {
            one["prompt"]: one["answer"]
            for language in local_tasks.LANGUAGES
            for one in ask("gsm8k", language, "test")
        }

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(self._score(*request.args), False) for request in requests]

    def _score(self, context: str, choice: str) -> float:
        self.prompts.append(context)
        prompt = context.split("\n\n")[-1]
        true = self._answers.get((prompt, choice), self._true.get((prompt, choice)))
        assert true is not None, "not a question with its choice"
        return LN_3 - 9 if true == self._right else -9.0

    def generate_until(self, requests, disable_tqdm=False):
        given = [request.args for request in requests]
        assert all(options["max_gen_toks"] == 256 for _, options in given)
        questions = {f"{WORDS[language][0]}:" for language in local_tasks.LANGUAGES}
        for _, options in given:
            assert options["until"][0] == "\n\n"
            assert options["until"][1] in questions
        answers = [self._numbers[prompt] for prompt, _ in given]
        return answers if self._right else [answer.replace("#### ", "#### 1") for answer in answers]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise AssertionError("no task asks for it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return local_tasks.write(tmp_path_factory.mktemp("known"), questions=4)


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_is_always_right_or_always_wrong_is_scored_so(folder, right):
    lm = Known(folder, right=right)
    scores = run_suite(lm, Questions(local_tasks.suite(), folder))
    for language in local_tasks.LANGUAGES:
        for kind in CHOSEN:
            assert scores[kind][language]["acc"] == float(right), kind
            assert scores[kind][language]["questions"] == 4
        assert scores["gsm8k"][language]["exact_match"] == float(right)
        # Two true answers of five, each thrice or a third as likely as the others.
        expected = 6 / 9 if right else 2 / 11
        assert scores["truthfulqa_mc2"][language]["acc"] == pytest.approx(expected)
    shown = [prompt.count("\n\n") for prompt in lm.prompts]
    assert set(shown) == {0, 1, 2}  # examples before the question: none, ARC's one, MMLU's two


def test_acc_norm_is_by_the_length_of_a_choice(tmp_path):
    """The short choice is likelier, the long one likelier by letter; the long one is right."""
    short, long = "ja", "nein, gar nicht"
    row = {"question": "Q", "choices": [short, long], "answerKey": "B"}
    (tmp_path / "arc").mkdir()
    (tmp_path / "arc" / "de.test.jsonl").write_text(json.dumps(row) + "\n")

    class Fixed(Known):
        def __init__(self):
            LM.__init__(self)

        def _score(self, context, choice):
            return {f" {short}": -4.0, f" {long}": -5.0}[choice]

    task = {"kind": "arc", "split": "test", "shots": 0, "metric": "acc_norm"}
    suite = local_tasks.suite(languages=("de",), tasks={"arc": task})
    scores = run_suite(Fixed(), Questions(suite, tmp_path))
    assert scores == {"arc": {"de": {"acc": 0.0, "acc_norm": 1.0, "questions": 1}}}


def test_a_limit_asks_the_first_questions(folder):
    suite = local_tasks.suite(languages=("de",))
    scores = run_suite(Known(folder, right=True), Questions(suite, folder), limit=2)
    assert all(task["de"]["questions"] == 2 for task in scores.values())


@pytest.mark.parametrize("first_shots", [True, False])
def test_no_question_is_its_own_example(folder, first_shots):
    """Of four questions three stand before each: all the others."""
    task = {"kind": "arc", "split": "test", "shots": 3, "first_shots": first_shots, "metric": "acc"}
    lm = Known(folder, right=True)
    suite = local_tasks.suite(languages=("de",), tasks={"arc": task})
    run_suite(lm, Questions(suite, folder))
    for prompt in lm.prompts:
        *shown, question = prompt.split("\n\n")
        assert len(shown) == 3
        assert not any(one.startswith(question) for one in shown)
