"""Cleaning; whole runs go through the command, because datatrove forks and pytest has JAX."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datatrove.data import Document
from ruamel.yaml import YAML

from teukenjax.data.clean.config import CleanConfig, Rules
from teukenjax.data.clean.dropped import Dropped, gather
from teukenjax.data.clean.steps import (
    LanguageRules,
    failed_rule,
    repetition_filter,
    script_share,
)
from teukenjax.data.documents import DocumentReader, find_files
from teukenjax.errors import UserError
from teukenjax.recipe import read_yaml, validate

ROOT = Path(__file__).parent.parent.parent
GERMAN = (
    "Der Fluss fließt langsam durch die Stadt, und die Leute sitzen am Ufer und reden über das "
    "Wetter. Am Abend kommt der Wind aus dem Norden, und alle gehen nach Hause, weil es kalt ist. "
    "Morgen wird die Brücke repariert, sagt der Bürgermeister, aber niemand glaubt ihm noch."
)
FRENCH = (
    "La rivière traverse lentement la ville, et les gens parlent du temps au bord de l'eau. Le "
    "soir le vent vient du nord et tout le monde rentre à la maison parce qu'il fait froid dehors."
)
GREEK = "Το ποτάμι περνάει αργά μέσα από την πόλη και οι άνθρωποι κάθονται στην όχθη. " * 2  # noqa: RUF001
CONFIG = {
    "default": {
        "min_characters": 50,
        "min_words": 5,
        "script": "LATIN",
        "min_script": 0.9,
        "min_probability": 0.5,
        "check_from_characters": 100,
        "duplicate_lines": 0.3,
    },
    "languages": {"el": {"script": "GREEK"}},
    "minhash": {"buckets": 4, "hashes": 3},
    "samples": 3,
}


def test_shipped_files_are_valid_and_languages_differ_from_the_default():
    path = ROOT / "configs" / "cleaning" / "eu24.yaml"
    config = validate(CleanConfig, read_yaml(path), str(path))
    assert config.rules("el").script == "GREEK"
    assert config.rules("el").min_words == config.rules("xx").min_words == config.default.min_words
    assert config.rules("da").also == ("nb", "nn", "no")
    assert config.run.kind == "local"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"default": {"min_word": 3}}, "unknown key 'default.min_word': did you mean 'min_words'"),
        ({"languages": {"de": {"min_script": 2}}}, "'languages.de.min_script' is 2: input should"),
        ({"run": {"kind": "slurm"}}, "'run.slurm.partition' is missing"),
        ({"default": {"top_ngrams": {"x": 0.1}}}, "input|string should match pattern"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(values, message):
    with pytest.raises(UserError, match=message) as error:
        validate(CleanConfig, values, "x.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "language", "rules", "expected"),
    [
        (GERMAN, "de", {}, None),
        ("kurz", "de", {"min_characters": 5}, "min_characters"),
        (GERMAN, "de", {"max_characters": 100}, "max_characters"),
        (GERMAN, "de", {"min_words": 60}, "min_words"),
        ("- - - -", "de", {"min_words": 1}, "min_words"),
        ("Donaudampfschifffahrt " * 3, "de", {"max_word_characters": 12.0}, "max_word_characters"),
        (GREEK, "el", {"script": "LATIN", "min_script": 0.5}, "min_script"),
        (GREEK, "el", {"script": "GREEK", "min_script": 1.0}, None),
        ("1234 5678", "de", {"script": "LATIN", "min_script": 0.5}, "min_script"),
        (FRENCH, "de", {"min_probability": 0.0, "check_from_characters": 100}, "language is fr"),
        (FRENCH, "de", {"min_probability": 0.0, "also": ("fr",)}, None),
        (FRENCH, "fr", {"min_probability": 0.1}, None),
        (FRENCH[:50], "de", {"min_probability": 1.0}, None),  # too short to be identified
    ],
)
def test_a_document_is_dropped_by_the_first_threshold_it_misses(text, language, rules, expected):
    assert failed_rule(text, language, Rules(**rules)) == expected


@pytest.mark.parametrize("language", ["de", "el"])
def test_a_language_with_thresholds_of_its_own_keeps_the_others(tmp_path, language):
    config = validate(CleanConfig, CONFIG | {"default": {"duplicate_lines": 0.3}}, "test")
    rules = pickle.loads(pickle.dumps(LanguageRules(config, Dropped(tmp_path, "rules", 1))))
    text = (GREEK + "\n") * 9
    document = Document(text=text, id="", metadata={"lang": language, "source": "x"})
    assert rules.filter(document) == (False, "dup_line_frac")
    assert rules.filter(Document(text=GREEK, id="", metadata={"lang": language})) is True


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"duplicate_line_characters": 0.2}, "dup_line_char_frac"),
        ({"duplicate_paragraphs": 0.3}, "dup_para_frac"),
        ({"duplicate_paragraph_characters": 0.2}, "dup_para_char_frac"),
        ({"top_ngrams": {"2": 0.2}}, "top_2_gram"),
        ({"duplicate_ngrams": {"5": 0.15}}, "duplicated_5_n_grams"),
    ],
)
def test_each_threshold_of_repetition_reaches_its_rule(rules, reason):
    text = "der kleine Hund bellt sehr laut\n\n" * 9
    found = repetition_filter(Rules(**rules)).filter(Document(text=text, id=""))
    assert found == (False, reason)


def test_the_script_share_counts_letters_only():
    assert script_share("abc αβγ 123 ...!", "LATIN") == 0.5
    assert script_share("ÄÖé", "LATIN") == 1
    assert script_share("123", "LATIN") == 0


def test_samples_are_the_same_however_documents_are_divided(tmp_path):
    def write(name: str, tasks: int):
        for rank in range(tasks):
            with Dropped(tmp_path / name, "rule", samples=5) as dropped:
                for number in range(rank, 200, tasks):
                    dropped.take("rule", "de", f"text {number}", source="x", rank=rank)
        return gather([tmp_path / name], 5)

    counts, samples = write("one", 1)
    assert write("many", 7) == (counts, samples)
    assert counts == {("rule", "de"): 200}
    assert len(samples["rule", "de"]) == 5


def test_a_task_that_fails_writes_no_counts_and_one_without_drops_none(tmp_path):
    def fail():
        with Dropped(tmp_path, "rule", samples=5) as dropped:
            dropped.take("rule", "de", "x", source="x", rank=3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with Dropped(tmp_path, "rule", samples=5):
        pass
    assert list(tmp_path.iterdir()) == []


def start(*arguments, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "from teukenjax.cli import main; main()", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def clean(*arguments, code: int = 0, **environment) -> str:
    process = start("data", "clean", *arguments, **environment)
    output, _ = process.communicate()
    assert process.returncode == code, output
    return output


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Sixty documents that are kept, two files, and one document or more for each rule."""
    folder = tmp_path_factory.mktemp("corpus")
    words = sorted(set(GERMAN.replace(",", "").replace(".", "").split()))
    draw = random.Random(0)
    kept = [" ".join(draw.choices(words, k=60)) for _ in range(60)]
    near = kept[7].replace(kept[7].split()[30], "anderes")
    dropped = [
        "kurz",
        FRENCH,
        "Der Fluss fließt durch die Stadt und die Leute sitzen am Ufer.\n" * 9,
        kept[3],
        kept[3],
        near,
        GREEK,
    ]
    rows = [{"text": text, "lang": "de"} for text in (*kept, *dropped)]
    rows.append({"text": GREEK, "lang": "el"})
    for name, part in (("a", rows[:40]), ("b", rows[40:])):
        lines = [json.dumps(row, ensure_ascii=False) for row in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (folder / "b.jsonl").open("a") as file:
        file.write("nonsense\n")
    return folder


@pytest.fixture
def config(tmp_path):
    def write(**changes) -> Path:
        path = tmp_path / "clean.yaml"
        with path.open("w") as file:
            YAML(typ="safe").dump(CONFIG | changes, file)
        return path

    return write


def texts(folder: Path) -> list[str]:
    return sorted(document.text for document in DocumentReader(find_files(folder / "text")))


def test_documents_are_dropped_counted_and_sampled(corpus, config, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    output = clean(corpus, "--config", config(), "--out", one)
    report = json.loads((one / "report.json").read_text(encoding="utf-8"))
    assert report["dropped"] == {
        "broken line": {"?": 1},
        "exact duplicate": {"de": 2},
        "dup_line_frac": {"de": 1},
        "language is fr": {"de": 1},
        "min_characters": {"de": 1},
        "min_script": {"de": 1},
        "near duplicate": {"de": 1},
    }
    kept = {name: row["documents"] for name, row in report["kept"].items()}
    assert kept == {"de": 60, "el": 1}
    assert "kept 61 documents" in output
    assert "Traceback" not in output
    assert len(texts(one)) == 61
    (french,) = (one / "dropped" / "language_is_fr.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(french)["text"] == FRENCH
    assert json.loads(french)["source"].endswith("b.jsonl")
    assert not (one / "work").exists()

    serial = config(run={"kind": "local", "workers": 1})
    clean(corpus, "--config", serial, "--out", two)
    assert texts(two) == texts(one)
    assert json.loads((two / "report.json").read_text(encoding="utf-8")) == report

    before = (one / "report.json").stat().st_mtime_ns
    assert "kept 61 documents" in clean(corpus, "--config", config(), "--out", one)
    assert (one / "report.json").stat().st_mtime_ns == before
    changed = clean(corpus, "--config", config(exact=False), "--out", one, code=2)
    assert changed.startswith(f"error: {one}: was begun with config=")


def test_a_killed_cleaning_goes_on_where_it_stopped(corpus, config, tmp_path):
    out = tmp_path / "out"
    process = start("data", "clean", corpus, "--config", config(), "--out", out)
    deadline = time.monotonic() + 100
    hashes = out / "logs" / "2-exact-hashes" / "completions"
    while time.monotonic() < deadline and not (hashes.is_dir() and any(hashes.iterdir())):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "report.json").exists()
    ruled = {file: file.stat().st_mtime_ns for file in (out / "work" / "ruled").glob("*.zst")}
    clean(corpus, "--config", config(), "--out", out)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert sum(row["documents"] for row in report["kept"].values()) == 61
    assert report["dropped"]["min_characters"] == {"de": 1}
    assert len(ruled) == 2
    log = (out / "logs" / "datatrove.log").read_text(encoding="utf-8")
    assert "all 2 tasks have already been completed" in log


def test_damaged_text_is_one_line(corpus, config, tmp_path):
    broken = tmp_path / "text"
    shutil.copytree(corpus, broken)
    (broken / "c.jsonl.gz").write_bytes(b"not compressed")
    output = clean(broken, "--config", config(), "--out", tmp_path / "out", code=2)
    assert f"error: {broken / 'c.jsonl.gz'}: is damaged" in output
    assert "Traceback" not in output


def test_the_same_file_submits_every_stage_to_slurm_in_order(corpus, config, tmp_path):
    """With an ``sbatch`` that only writes down what it is given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    sbatch = programs / "sbatch"
    sbatch.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/calls\n'
        f"number=$(wc -l < {tmp_path}/calls | tr -d ' ')\n"
        "for script; do :; done\n"
        f'cp "$script" {tmp_path}/$number.sh\n'
        "echo $number\n"
    )
    sbatch.chmod(0o755)
    run = {"kind": "slurm", "partition": "cpu", "sbatch": {"account": "eu"}}
    path = f"{programs}:{os.environ['PATH']}"
    output = clean(corpus, "--config", config(run=run), "--out", tmp_path / "out", PATH=path)
    assert "report.json is written last" in output
    calls = (tmp_path / "calls").read_text().splitlines()
    arrays = calls[::2]  # each is followed by a job that adds up its statistics
    assert len(arrays) == 9
    depends = [f"afterok:{2 * number + 1}" in call for number, call in enumerate(arrays[1:])]
    assert all(depends)
    script = (tmp_path / "17.sh").read_text()
    assert "#SBATCH --partition=cpu" in script
    assert "#SBATCH --account=eu" in script
    assert "launch_pickled_pipeline" in script
