"""The command line: what it offers, and how it answers mistakes."""

import os
import re
import subprocess
import sys

import pytest
import typer.main

from teukenjax import cli
from teukenjax.cli.options import console

CHOICE = {"tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed"}
VERBS = {
    "train": {"recipe", "overrides", "show", "coordinator", "processes", "process"},
    "shardings": {"recipe", "overrides", "devices"},
    "plan": {
        "recipe", "overrides", "hardware", "devices", "tokens", "sequence", "top", "out",
        "compile_", "target_days", "mfu_floor", "ablate", "table", "report",
    },
    "sft": {"recipe", "overrides", "show"},
    "eval": {
        "run", "text", "suite", "fidelity", "gaps", "task_data", "limit", "against", "out",
        "batch_tokens",
    },
    "import": {"folder", "out"},
    "export": {"run", "out", "dtype", "shard_size"},
    "generate": {"run", "prompt", *CHOICE},
    "chat": {"run", "language", *CHOICE},
    "serve": {"run", "host", "port", "queue", "language"},
    "bench calibrate": {"out"},
    "bench kernels": {"only", "shrink"},
    "bench step": {"recipe", "overrides", "layers", "fake_data", "repeats", "results"},
    "sweep": {"spec", "overrides", "out", "model", "jobs", "cluster", "parameters"},
    "scaling fit": {"results", "out", "role"},
    "scaling plot": {"results", "out", "role"},
    "scaling suggest": {"recipe", "overrides", "tokens", "rules", "out"},
    "data prepare": {
        "text", "out", "train_tokenizer", "tokenizer", "append", "holdout", "text_field",
        "language_field", "max_broken", "processes",
    },
    "data verify": {"store"},
    "data clean": {"text", "out", "config", "text_field", "language_field"},
    "data inspect": {"recipe", "overrides", "windows", "plot_file"},
    "tokenizer train": {"mixture", "vocab_size", "out", "text", "bytes_per_language"},
    "tokenizer report": {"tokenizers", "text", "bytes_per_language", "json_file", "plot_file"},
    "data fingerprint": {"recipe", "overrides", "steps", "start", "processes"},
}  # fmt: skip

RECIPE = """
out: {out}
steps: 2
model: {{width: 16, layers: 1, heads: 2, kv_heads: 1, head_dim: 8, ffn: 16, context: 16}}
data: {{text: {text}, train_tokenizer: 900}}
batch: {{sequences: 8}}
optimizer: {{name: adamw}}
"""


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command line; gives exit code, standard output and standard error."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["teukenjax", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (stop.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(out=tmp_path / "run", text="sample"))
    return path


def test_the_surface_grows_only_on_purpose():
    group = typer.main.get_command(cli.app)
    commands = dict(group.commands)
    for outer in ("data", "tokenizer", "bench", "scaling"):
        nested = commands.pop(outer).commands
        commands |= {f"{outer} {name}": command for name, command in nested.items()}
    found = {name: {p.name for p in command.params} for name, command in commands.items()}
    assert found == VERBS


def test_where_nobody_watches_libraries_draw_no_bars():
    """Their bars are tqdm's, whichever library imports it first."""
    script = """
from teukenjax import cli
try:
    cli.main()
except SystemExit:
    from tqdm import tqdm
    list(tqdm([1]))
"""
    env = {key: value for key, value in os.environ.items() if key != "TQDM_DISABLE"}
    command = [sys.executable, "-c", script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stderr == ""


def test_print_shows_the_resolved_recipe_and_makes_nothing(call, recipe, tmp_path):
    code, out, _ = call("train", recipe, "steps=7", "--print")
    assert code == 0
    assert "steps: 7" in out
    assert "weight_decay: 0.1" in out
    assert not (tmp_path / "run").exists()


def test_shardings_need_no_devices_and_end_with_the_totals(call):
    code, out, _ = call("shardings", "configs/recipes/teuken-7b.yaml", "--devices", 64)
    assert code == 0
    assert "mesh replica 1 × fsdp 64 × tensor 1" in out
    assert out.splitlines()[-1].startswith("total: 7,452,725,248 parameters, ")
    assert out.splitlines()[-1].endswith(" bytes per device")


def test_the_fingerprint_is_that_of_the_tokens_whatever_the_processes(call, recipe):
    code, out, _ = call("data", "fingerprint", recipe, "--steps", 3, "--processes", 2)
    assert code == 0
    whole = out.splitlines()[-1]
    assert re.fullmatch("[0-9a-f]{32}", whole)
    assert call("data", "fingerprint", recipe, "--steps", 3)[1] == whole + "\n"
    assert call("data", "fingerprint", recipe, "--steps", 2, "--start", 1)[1] != whole + "\n"


def test_inspecting_shows_counts_windows_and_a_picture(call, recipe, tmp_path):
    picture = tmp_path / "p.png"
    code, out, _ = call("data", "inspect", recipe, "--windows", 2, "--plot", picture)
    assert code == 0
    assert re.search(r"^ all +256\b", out, re.MULTILINE)
    assert re.search(r"^row 1: \w\w, window \d+: ", out, re.MULTILINE)
    assert picture.stat().st_size > 10_000


def test_a_tokenizer_is_trained_and_reported(call, tmp_path):
    mixture, folder = "configs/mixtures/eu24-balanced.yaml", tmp_path / "t"
    code, out, _ = call("tokenizer", "train", mixture, "--vocab-size", 1200, "--out", folder)
    assert code == 0
    assert out.startswith(f"{folder}: tokenizer ")
    code, out, _ = call(
        "tokenizer", "report", folder, "--plot", tmp_path / "p.png", "--json", tmp_path / "r.json"
    )
    assert code == 0
    assert "t: 1,200 pieces: latin" in out
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_a_plan_needs_no_devices_and_its_recipe_is_read_by_train(call, tmp_path):
    out = tmp_path / "planned.yaml"
    code, said, _ = call("plan", "configs/recipes/teuken-7b.yaml", "--devices", 64, "--tokens",
                         "4e12", "--out", out)  # fmt: skip
    assert code == 0
    assert "GPU-hours" in said
    assert "what would lift it" in said
    code, said, _ = call("train", out, "--print")
    assert code == 0
    assert "sequences: 1024" in said


MISTAKES = {
    "no such recipe": (["train", "{tmp}/none.yaml"], "none.yaml: cannot be read"),
    "unknown key": (["train", "{recipe}", "stesp=3"], "unknown key 'stesp': did you mean 'steps'?"),
    "wrong type": (["train", "{recipe}", "steps=many"], "key 'steps' is \"many\""),
    "no such store": (["train", "{recipe}", "data.store={tmp}/s", "data.text=null"], "{tmp}/s"),
    "no such text": (["train", "{recipe}", "data.text={tmp}/none"], "{tmp}/none"),
    "empty corpus": (["data", "prepare", "{tmp}/empty", "--train-tokenizer", "900", "--out",
                      "{tmp}/s"], "{tmp}/empty"),
    "no tokenizer": (["data", "prepare", "sample", "--out", "{tmp}/s"], "tokenizer"),
    "vocabulary too small": (["data", "prepare", "sample", "--out", "{tmp}/s", "--train-tokenizer",
                              "100"], "100"),
    "store below a file": (["data", "prepare", "sample", "--out", "{recipe}/s",
                            "--train-tokenizer", "900"], "{recipe}/s.partial: cannot be made"),
    "share of broken lines": (["data", "prepare", "sample", "--out", "{tmp}/s", "--max-broken", "7",
                               "--train-tokenizer", "900"], "max_broken=7.0: a share from 0 to 1"),
    "unknown hardware": (["train", "{recipe}", "hardware=h100-smx"], "did you mean 'h100-sxm'?"),
    "cudnn on a cpu": (["train", "{recipe}", "compute.kernels.attention=cudnn"], "cannot run"),
    "processes that do not divide": (["data", "fingerprint", "{recipe}", "--processes", "3"],
                                     "processes=3: batch.sequences=8 is not a multiple"),
    "no such tokenizer": (["tokenizer", "report", "{tmp}/t.model"], "t.model: cannot be read"),
    "mixture of another text": (["tokenizer", "train", "configs/mixtures/eu24-balanced.yaml",
                                 "--data", "{tmp}/empty", "--vocab-size", "600", "--out",
                                 "{tmp}/s"], "{tmp}/empty: no text files found"),
    "nothing to verify": (["data", "verify", "{tmp}/s"], "{tmp}/s: is not a token store"),
    "nothing to append to": (["data", "prepare", "sample", "--out", "{tmp}/s", "--append"],
                             "{tmp}/s: is not a token store"),
    "no such language": (["train", "{recipe}", "data.weights={{xx: 1.0}}"], "no language 'xx'"),
    "no such run": (["eval", "{tmp}/none", "--data", "{tmp}"], "{tmp}/none: no such run"),
    "nothing to score": (["eval", "{tmp}/none"], "give one of --data, --suite and --fidelity"),
    "gaps of what": (["eval", "{tmp}", "--fidelity", "toy", "--gaps"], "--gaps: goes with --data"),
    "nowhere to write scores": (["eval", "{tmp}/none", "--data", "{tmp}", "--json",
                                 "{tmp}/no/s.json"], "{tmp}/no/s.json: cannot be written: its fol"),
    "scores that are a picture": (["eval", "{tmp}/none", "--data", "{tmp}", "--json", "s.png"],
                                  "--json s.png: expected a name that ends in .json"),
    "nowhere for a profile": (["bench", "calibrate", "--out", "{tmp}/no/p.yaml"],
                              "{tmp}/no/p.yaml: cannot be written: its folder does not exist"),
    "plan of another precision": (["plan", "configs/recipes/teuken-7b.yaml",
                                   "compute.dtype=float32"], "plan: compute.dtype=float32: "),
    "plan of adapters": (["plan", "configs/recipes/sft-commercial-v0.4.yaml",
                          "sft.lora={{rank: 8, alpha: 16.0}}"], "plan: sft.lora: "),
    "limit of what": (
        ["eval", "{tmp}", "--data", "{tmp}", "--limit", "3"],
        "--limit: goes with --suite",
    ),
    "no such suite": (["eval", "{tmp}/none", "--suite", "eu2l"], "did you mean 'eu21'?"),
    "no instructions": (["sft", "{recipe}"], "has no section sft"),
    "no such flag in tuning": (["sft", "{recipe}", "compute.xla_flags={{xla_gpu_no_such: true}}"],
                               "compute.xla_flags: xla_gpu_no_such=True: No such compile option"),
    "no such chat": (["sft", "{recipe}", "data.packing=best_fit",
                      "sft.sources=[{{data: {tmp}/none}}]"], "sft.base is not set"),
    "instructions cut": (["sft", "{recipe}", "sft.sources=[{{data: toy}}]"],
                         "set data.packing=best_fit"),
    "not a run": (["generate", "{tmp}/empty", "--prompt", "x"], "not a run directory"),
    "seed out of range": (["generate", "{tmp}", "--prompt", "x", "--seed", "-1"], "seed=-1: "),
    "not a mesh": (["shardings", "{recipe}", "sharding.fsdp=3", "--devices", "8"], "8 devices"),
    "export over something": (["export", "{tmp}/run", "{tmp}"], "exists already"),
    "plan without a recipe": (["plan"], "RECIPE is missing"),
    "plan for unknown hardware": (["plan", "{recipe}", "--hardware", "h100-smx"],
                                  "did you mean 'h100-sxm'?"),
    "devices that do not divide": (["plan", "{recipe}", "--devices", "3"], "--devices 3"),
    "no number of tokens": (["plan", "{recipe}", "--tokens", "nan"], "--tokens nan: expected"),
    "no number of days": (["plan", "{recipe}", "--target-days", "-1"], "days -1: expected"),
    "no share": (["plan", "{recipe}", "--target-days", "1", "--mfu-floor", "40"],
                 "--mfu-floor 40: expected a share above 0, up to 1"),
    "a report of days": (["plan", "{recipe}", "--target-days", "9", "--report", "{tmp}/r.html"],
                         "--report: does not go with --target-days"),
    "a recipe of an ablation": (["plan", "{recipe}", "--ablate", "{tmp}/a", "--out", "{tmp}/o"],
                                "--out: does not go with --ablate"),
    "a recipe of a table": (["plan", "{recipe}", "--table", "{tmp}/r.csv", "--out", "{tmp}/o.csv"],
                            "RECIPE: does not go with --table"),
    "devices of an ablation": (["plan", "{recipe}", "--ablate", "{tmp}/a", "--devices", "3"],
                               "--devices: does not go with --ablate"),
    "plans of days": (["plan", "{recipe}", "--target-days", "9", "--top", "3"],
                      "--top: does not go with --target-days"),
    "two questions": (["plan", "{recipe}", "--ablate", "{tmp}/a", "--target-days", "9"],
                      "--target-days: does not go with --ablate"),
    "a floor of no days": (["plan", "{recipe}", "--mfu-floor", "0.3"],
                           "--mfu-floor: needs --target-days"),
    "a table without out": (["plan", "--table", "{tmp}/rows.csv"], "--table needs --out"),
    "no such table": (["plan", "--table", "{tmp}/r.csv", "--out", "{tmp}/o.csv"], "{tmp}/r.csv"),
    "no such sweep": (["sweep", "{tmp}/none.yaml"], "none.yaml: cannot be read"),
    "no results": (["scaling", "fit", "{tmp}/empty"], "{tmp}/empty: no results"),
    "no such role": (["scaling", "fit", "{tmp}", "--role", "outptu"], "did you mean 'output'?"),
    "a rule for AdamW": (["scaling", "suggest", "{recipe}", "--tokens", "1e9"],
                         "optimizer.name=adamw: the rule is one of Scion's rates"),
    "a store in its text": (["data", "prepare", "{tmp}/text", "--train-tokenizer", "900", "--out",
                             "{tmp}/text/s"], "{tmp}/text/s: lies in {tmp}/text"),
    "cleaned text in its text": (["data", "clean", "{tmp}/text", "--config",
                                  "configs/cleaning/eu24.yaml", "--out", "{tmp}/text"],
                                 "{tmp}/text: lies in {tmp}/text"),
    "no such verb": (["trian"], "No such command 'trian'. Did you mean 'train'?"),
    "no such option": (["plan", "{recipe}", "--devics", "8"], "No such option: --devics"),
    "an option out of range": (["plan", "{recipe}", "--devices", "0"], "'--devices': "),
    "an option left out": (["generate", "{tmp}"], "Missing option '--prompt'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(name, call, recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "de.txt").write_text("Guten Tag.")
    arguments, expected = MISTAKES[name]
    names = {"tmp": tmp_path, "recipe": recipe}
    code, _, error = call(*(argument.format(**names) for argument in arguments))
    assert code == 2
    assert expected.format(**names) in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "s").exists()
    assert [file.name for file in (tmp_path / "text").iterdir()] == ["de.txt"]


def test_in_a_file_lines_are_as_long_as_they_are(capsys):
    text = "word " * 60
    console().print(text)
    assert capsys.readouterr().out == text + "\n"
