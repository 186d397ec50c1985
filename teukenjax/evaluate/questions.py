"""Rows of the EU20 data sets (arXiv 2410.08928) and their English originals as questions.

Each kind of task turns a row into what the harness asks with: a prompt and choices of which one is
right, or a prompt and the text to be generated. Prompts have the form of the official fork, with
the words for "question" and "answer" in each language. Two things are simpler than there, so that
figures are not exactly comparable with published ones: MMLU's heading names no subject, and
TruthfulQA's six worked examples are left out.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

WORDS = {
    "bg": ("Въпрос", "Отговор"), "cs": ("Otázka", "Odpověď"), "da": ("Spørgsmål", "Svar"),
    "de": ("Frage", "Antwort"), "el": ("Ερώτηση", "Απάντηση"), "en": ("Question", "Answer"),
    "es": ("Pregunta", "Respuesta"), "et": ("Küsimus", "Vastus"), "fi": ("Kysymys", "Vastaus"),
    "fr": ("Question", "Réponse"), "ga": ("Ceist", "Freagra"), "hr": ("Pitanje", "Odgovor"),
    "hu": ("Kérdés", "Válasz"), "it": ("Domanda", "Risposta"), "lt": ("Klausimas", "Atsakymas"),
    "lv": ("Jautājums", "Atbilde"), "mt": ("Mistoqsija", "Tweġiba"), "nl": ("Vraag", "Antwoord"),
    "pl": ("Pytanie", "Odpowiedź"), "pt": ("Pergunta", "Resposta"), "ro": ("Întrebare", "Răspuns"),
    "sk": ("Otázka", "Odpoveď"), "sl": ("Vprašanje", "Odgovor"), "sv": ("Fråga", "Svar"),
}  # fmt: skip
LETTERS = "ABCDEFGHIJ"
NUMBER = "#### (\\-?[0-9\\.\\,]+)"  # of gsm8k, as the harness looks for it
Question = dict[str, Any]  # prompt, choices and gold; or prompt and answer; mc2: labels


def arc(row: dict[str, Any], language: str) -> Question:
    """Multiple choice on the text of the answers."""
    choices, labels = row["choices"], LETTERS
    if isinstance(choices, dict):
        choices, labels = choices["text"], choices["label"]
        _check_each_has_one(labels, choices)
    prompt = _asked(row["question"], language)
    return {
        "prompt": prompt,
        "choices": _list(choices),
        "gold": _one_of(list(labels).index(row["answerKey"]), choices),
    }


def hellaswag(row: dict[str, Any], language: str) -> Question:
    """Which ending follows; the marks of WikiHow's headings are taken out."""
    del language
    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    prompt = _without_marks(f"{row['activity_label']}: {context}")
    endings = [_without_marks(ending) for ending in _list(row["endings"])]
    return {"prompt": prompt, "choices": endings, "gold": _one_of(int(row["label"]), endings)}


def mmlu(row: dict[str, Any], language: str) -> Question:
    """Multiple choice on the letter."""
    letters = list(LETTERS[: len(_list(row["choices"]))])
    lines = (f"{key}. {text}\n" for key, text in zip(letters, row["choices"], strict=True))
    question, answer = WORDS[language]
    prompt = f"{question}: {row['question'].strip()}\n{''.join(lines)}{answer}:"
    return {"prompt": prompt, "choices": letters, "gold": _one_of(int(row["answer"]), letters)}


def truthfulqa_mc1(row: dict[str, Any], language: str) -> Question:
    """One true answer among false ones."""
    targets = row["mc1_targets"]
    choices = _list(targets["choices"])
    _check_each_has_one(targets["labels"], choices)
    gold = _one_of(list(targets["labels"]).index(1), choices)
    return {"prompt": _asked(row["question"], language), "choices": choices, "gold": gold}


def truthfulqa_mc2(row: dict[str, Any], language: str) -> Question:
    """The probability of all true answers together."""
    choices, labels = (_list(row["mc2_targets"][key]) for key in ("choices", "labels"))
    _check_each_has_one(labels, choices)
    if not set(labels) <= {0, 1} or 1 not in labels:
        raise ValueError(f"labels are {labels}: 0 and 1 expected, one of them 1 at least")
    prompt = _asked(row["question"], language)
    return {"prompt": prompt, "choices": choices, "gold": 0, "labels": labels}


def gsm8k(row: dict[str, Any], language: str) -> Question:
    """A number, after ``####`` at the end of a worked solution."""
    if not re.search(NUMBER, row["answer"]):
        raise ValueError("the answer has no #### with a number after it: nothing could match it")
    return {"prompt": _asked(row["question"], language), "answer": row["answer"]}


KINDS: dict[str, Callable[[dict[str, Any], str], Question]] = {
    "arc": arc,
    "hellaswag": hellaswag,
    "mmlu": mmlu,
    "truthfulqa_mc1": truthfulqa_mc1,
    "truthfulqa_mc2": truthfulqa_mc2,
    "gsm8k": gsm8k,
}


def _list(choices: Any) -> list[Any]:
    if not isinstance(choices, list):  # a string would be its letters
        raise TypeError(f"choices are no list but {type(choices).__name__}")
    return choices


def _check_each_has_one(labels: Sequence[Any], choices: Sequence[str]) -> None:
    if len(labels) != len(choices):
        raise ValueError(f"{len(labels)} labels of {len(choices)} choices")


def _one_of(index: int, choices: Sequence[str]) -> int:
    # The harness would count -1 as the last one, and what is beyond as a wrong answer.
    if not 0 <= index < len(choices):
        raise ValueError(f"the right answer is number {index} of {len(choices)}, from 0")
    return index


def _asked(text: Any, language: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the question is no text but {type(text).__name__}")
    question, answer = WORDS[language]
    return f"{question}: {text}\n{answer}:"


def _without_marks(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
