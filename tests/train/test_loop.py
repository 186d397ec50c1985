"""What a run writes, and what stops it."""

import io
import json
import math

import jax
import pytest
from rich.console import Console

from teukenjax.errors import UserError
from teukenjax.run import load_run
from teukenjax.train.loop import Run, train
from teukenjax.train.metrics import read_metrics

ADAMW = {"name": "adamw", "learning_rate": 1e-2}


def test_documents_that_are_packed_whole_are_trained_on(make_recipe, store, console):
    data = {"store": str(store.path), "packing": "best_fit"}
    path = train(make_recipe(steps=3, optimizer=ADAMW, data=data), console)
    losses = [row["loss"] for row in read_metrics(path / "metrics.jsonl")]
    assert losses[0] == pytest.approx(math.log(900), rel=0.02)
    assert losses[2] < losses[0]


def test_a_run_leaves_what_scripts_rely_on(make_recipe):
    screen = io.StringIO()
    recipe = make_recipe(
        steps=4, optimizer=ADAMW, evaluation={"documents": 1, "every": 2}, prompt="The river"
    )
    path = train(recipe, Console(file=screen, width=120))
    names = {item.name for item in path.iterdir()}
    assert names >= {"recipe.yaml", "checkpoints", "tokenizer", "metrics.jsonl", "eval.json"}
    assert not [name for name in names if "partial" in name]
    assert (path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((path / "tensorboard").glob("events.out.tfevents.*"))

    rows = read_metrics(path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    keys = {"step", "loss", "lr", "tokens_per_s", "mfu", "grad_norm"}
    assert all(row.keys() >= keys and row["mfu"] is None for row in rows)

    evaluations = json.loads((path / "eval.json").read_text())
    assert [row["step"] for row in evaluations] == [0, 2, 4]
    assert evaluations[0]["languages"].keys() == {"de", "el", "en", "mt"}
    # ln V nats a token at the start, and fewer after training.
    score = evaluations[0]["languages"]["en"]
    nats = score["bits_per_byte"] * math.log(2) * score["bytes"] / score["tokens"]
    assert nats == pytest.approx(math.log(900), rel=0.01)
    assert evaluations[-1]["languages"]["en"]["bits_per_byte"] < score["bits_per_byte"]
    assert "The river" in screen.getvalue()


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(make_recipe, console):
    optimizer = ADAMW | {"learning_rate": 1e30, "clip_norm": None}
    recipe = make_recipe(steps=8, optimizer=optimizer, checkpoint={"every": 1}, guard={"limit": 3})
    run = Run(recipe, console)
    with pytest.raises(UserError, match=r"at step 5 \(not finite\).*lower optimizer.learning_rate"):
        run.train()
    rows = read_metrics(run.directory.metrics)
    assert [row["bad_steps"] for row in rows] == [0, 1, 2, 3]
    saved = [int(folder.name) for folder in run.checkpoints.folder.iterdir()]
    assert saved == [1]


def test_a_batch_that_does_not_split_over_the_mesh_is_refused(make_recipe, console):
    recipe = make_recipe(batch={"sequences": 12, "accumulation": 3})
    with pytest.raises(UserError, match=r"replica×fsdp=8: set batch.sequences to a multiple of 24"):
        Run(recipe, console)


def test_a_vocabulary_that_is_not_the_tokenizers_is_refused(make_recipe, console):
    model = make_recipe().model.model_dump() | {"vocab_size": 901}
    with pytest.raises(UserError, match=r"model.vocab_size=901: .* has 900 pieces"):
        Run(make_recipe(model=model), console)


def test_a_missing_store_is_refused(make_recipe, console, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        Run(make_recipe(data={"store": str(tmp_path / "nowhere")}), console)


def test_a_run_is_read_on_any_number_of_devices(make_recipe, console):
    path = train(make_recipe(steps=1, optimizer=ADAMW), console)
    for count, used in ((1, 1), (3, 2), (6, 4), (8, 8)):  # width 32, 1024 rows
        loaded = load_run(path, devices=jax.devices()[:count])
        assert loaded.model.layout.mesh.size == used
        assert loaded.step == 1
