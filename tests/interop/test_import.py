"""Into a run and out again; what a folder from elsewhere may get wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hf_case import random_parameters, small_config
from safetensors.numpy import load_file, save_file

from teukenjax.errors import UserError
from teukenjax.hardware import configs
from teukenjax.interop import export_hf, export_run, import_hf, resumable
from teukenjax.interop.chat_template import chat_template
from teukenjax.interop.hf_config import from_hf, model_config
from teukenjax.interop.hf_weights import hf_tensors
from teukenjax.model import parameter_count
from teukenjax.recipe import ModelConfig, load, read_yaml, to_yaml, validate
from teukenjax.run import load_run

# As openGPT-X publishes Teuken-7B-instruct-commercial-v0.4, but for the sizes.
PUBLISHED = {
    "_name_or_path": "/somewhere/else",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoTokenizer": ["gptx_tokenizer.SPTokenizer", None]},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.0158,
    "intermediate_size": 105,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "tokenizer_class": "SPTokenizer",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.2",
    "use_cache": True,
    "vocab_size": 2000,
    "an_unknown_field": {"of": ["any", "kind"]},
}
ALL = ("config.json", "model.safetensors.index.json", "tokenizer.json", "SHA256SUMS")
TUNED = "{base: b, sources: [{data: d, language: de}]}"


@pytest.fixture
def folder(tokenizer_model, tmp_path):
    """A Hugging Face directory in several files, with the published fields."""
    out = tmp_path / "hf"
    config = small_config(tied=True, vocab_size=2000)
    export_hf(config, random_parameters(config), tokenizer_model, out, shard_bytes=50_000)
    (out / "config.json").write_text(json.dumps(PUBLISHED))
    return out


def change(folder, edit, file: str | None = None):
    """Rewrites one of the weight files; its checksum no longer counts."""
    path = folder / (file or sorted(f.name for f in folder.glob("*.safetensors"))[-1])
    tensors = dict(load_file(path))
    edit(tensors)
    save_file(tensors, path)
    (folder / "SHA256SUMS").unlink(missing_ok=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("tied", [True, False])
def test_import_and_export_give_the_same_bytes(tokenizer_model, tmp_path, tied, dtype):
    config = small_config(tied=tied, vocab_size=2000, head_dim=6)
    options = {"dtype": dtype, "shard_bytes": 80_000}
    export_hf(config, random_parameters(config), tokenizer_model, tmp_path / "a", **options)
    import_hf(tmp_path / "a", tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "b", shard_bytes=80_000)
    names = {file.name for file in (tmp_path / "a").iterdir()}
    assert names >= {*ALL, "generation_config.json", "tokenizer.model"}
    assert names == {file.name for file in (tmp_path / "b").iterdir()}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_each_tensor_keeps_its_own_dtype(folder, tmp_path):
    file = next(f.name for f in folder.glob("*.safetensors") if "model.norm.weight" in load_file(f))
    change(folder, lambda t: t.update({"model.norm.weight": np.ones(32, np.float32) / 3}), file)
    import_hf(folder, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "again")
    tensors = load_file(tmp_path / "again" / "model.safetensors")
    np.testing.assert_array_equal(tensors["model.norm.weight"], np.ones(32, np.float32) / 3)
    assert tensors["model.embed_tokens.weight"].dtype == ml_dtypes.bfloat16


def test_an_imported_run_holds_the_weights(folder, tmp_path):
    import_hf(folder, tmp_path / "run")
    loaded = load_run(tmp_path / "run")  # over eight devices, and checked against its sums
    params = random_parameters(small_config(tied=True, vocab_size=2000))
    for path in (("attention", "output"), ("mlp", "gate"), ("mlp_norm", "gain")):
        found, expected = loaded.params["layers"], params["layers"]
        for key in path:
            found, expected = found[key], expected[key]
        np.testing.assert_array_equal(found, expected.astype(ml_dtypes.bfloat16))
    table = np.asarray(loaded.params["embed"]["table"])
    assert not table[2000:].any()


@pytest.mark.parametrize("form", ["plain", "published"])
def test_an_export_has_the_template_that_the_run_was_tuned_with(folder, tmp_path, form):
    import_hf(folder, tmp_path / "run")
    tuned = [f"sft={TUNED}", f"sft.form={form}", "data.packing=best_fit", "data.weights={de: 1}"]
    recipe = load(tmp_path / "run" / "recipe.yaml", tuned)
    (tmp_path / "run" / "recipe.yaml").write_text(to_yaml(recipe))
    export_run(tmp_path / "run", tmp_path / "again")
    config = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == chat_template(form)
    assert chat_template("plain") != chat_template("published")


def test_fields_without_a_meaning_here_are_kept(folder, tmp_path):
    import_hf(folder, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "again")
    described = json.loads((tmp_path / "again" / "config.json").read_text())
    remote = {"auto_map", "tokenizer_class", "_name_or_path"}  # code that the export does not need
    assert described == {k: v for k, v in PUBLISHED.items() if k not in remote}
    export_run(tmp_path / "run", tmp_path / "wide", dtype="fp32")
    described = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert described["torch_dtype"] == "float32"
    assert described["an_unknown_field"] == PUBLISHED["an_unknown_field"]


def test_a_model_that_changed_is_described_as_it_is():
    config = from_hf(PUBLISHED, "config.json").model_copy(update={"rope_theta": 5e5})
    described = model_config(config, dtype="bfloat16", kept=PUBLISHED)
    assert described["rope_theta"] == 5e5
    assert described["an_unknown_field"] == PUBLISHED["an_unknown_field"]


def test_transformers_5_writes_rope_elsewhere():
    fields = {k: v for k, v in PUBLISHED.items() if k not in ("rope_theta", "rope_scaling")}
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": 5000.0}
    config = from_hf(fields, "config.json")
    assert config.rope_theta == 5000.0
    assert model_config(config, dtype="bfloat16", kept=fields)["rope_parameters"]


def test_the_released_layout_is_that_of_teuken():
    config = validate(ModelConfig, read_yaml(configs() / "models" / "teuken-7b.yaml"), "teuken-7b")
    tensors = list(hf_tensors(config))
    assert len(tensors) == 290
    assert sum(int(np.prod(tensor.theirs)) for tensor in tensors) == parameter_count(config)
    assert parameter_count(config) == 14_905_450_496 // 2  # the release's index says its bytes
    shapes = {tensor.name: tensor.theirs for tensor in tensors}
    assert shapes["model.embed_tokens.weight"] == (250680, 4096)
    assert shapes["model.layers.31.self_attn.k_proj.weight"] == (256, 4096)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (4096, 13440)


KILLED = """
import os, signal, sys
from pathlib import Path
from teukenjax.interop import resumable, import_hf, export_run
def add(self, name, total, kept=resumable.Journal.add):
    kept(self, name, total)
    if len(self.sums) == 11:
        os.kill(os.getpid(), signal.SIGKILL)
resumable.Journal.add = add
{call}(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("call", ["import_hf", "export_run"])
def test_a_killed_conversion_goes_on_where_it_stopped(folder, tmp_path, call, monkeypatch):
    source, out = folder, tmp_path / "out"
    if call == "export_run":
        source = tmp_path / "run"
        import_hf(folder, source)
    script = KILLED.format(call=call)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    killed = subprocess.run([sys.executable, "-c", script, source, out], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    journal = (tmp_path / "out.partial" / "journal").read_text()
    with (tmp_path / "out.partial" / "journal").open("a") as file:
        file.write("model.layers.1.cut")  # by the kill, in the middle of a line
    done = []
    kept = resumable.Journal.add
    monkeypatch.setattr(
        resumable.Journal, "add", lambda self, *entry: (done.append(entry[0]), kept(self, *entry))
    )
    {"import_hf": import_hf, "export_run": export_run}[call](source, out)
    assert len(done) == 20 - journal.count("\n") == 9
    assert not (tmp_path / "out.partial").exists()
    if call == "import_hf":
        export_run(out, tmp_path / "exported")
        out = tmp_path / "exported"
    found = load_file(out / "model.safetensors")
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            np.testing.assert_array_equal(found[name], tensor)


def test_other_options_do_not_go_on_with_a_killed_export(folder, tmp_path, monkeypatch):
    import_hf(folder, tmp_path / "run")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("teukenjax.interop.export.write_rows", full)
        with pytest.raises(UserError, match=r"No space left on device; what is finished is kept"):
            export_run(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UserError, match="was begun with dtypes="):
        export_run(tmp_path / "run", tmp_path / "out", dtype="fp32")
    export_run(tmp_path / "run", tmp_path / "out")


def test_a_damaged_checkpoint_is_not_exported(folder, tmp_path):
    import_hf(folder, tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "0" / "state"
    about = tmp_path / "run" / "checkpoints" / "0" / "about" / "metadata"
    content = json.loads(about.read_text())
    content["sums"]["params.layers.mlp.up"] += 1
    about.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"'params\.layers\.mlp\.up' is not what was saved"):
        export_run(tmp_path / "run", tmp_path / "out")
    chunk = next((state / "params.layers.mlp.up").glob("[0-9]*"))
    chunk.write_bytes(chunk.read_bytes()[:50])
    with pytest.raises(UserError, match=r"'params\.layers\.mlp\.up' cannot be read"):
        export_run(tmp_path / "run", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


BAD_CONFIG = {
    "model_type": ("mistral", 'model_type is "mistral": allowed: llama'),
    "attention_bias": (True, "attention_bias is true: allowed: False"),
    "hidden_act": ("gelu", 'hidden_act is "gelu": allowed: silu'),
    "rope_scaling": ({"rope_type": "yarn"}, "rope_scaling is"),
    "rope_theta": ("x", "key 'rope_theta' is \"x\": input should be a valid number"),
    "rope_parameters": ([1], r"rope_parameters is \[1\]: allowed: an object"),
    "num_key_value_heads": (3, "heads=4 must be a multiple of kv_heads=3"),
    "vocab_size": (2001, "vocab_size is 2001: the tokenizer has 2000 pieces"),
    "hidden_size": ("wide", "hidden_size is 'wide'"),
    "intermediate_size": (
        104,
        r"gate_proj.weight is \[105, 32\]: config.json makes it \[104, 32\]",
    ),
    "num_hidden_layers": (3, r"model\.layers\.2\..* and 8 more is missing"),
    "tie_word_embeddings": (False, "lm_head.weight is missing"),
}


@pytest.mark.parametrize("key", BAD_CONFIG)
def test_a_config_that_does_not_fit_is_refused(folder, tmp_path, key):
    value, message = BAD_CONFIG[key]
    (folder / "config.json").write_text(json.dumps(PUBLISHED | {key: value}))
    refused(folder, tmp_path, message)


def refused(folder, tmp_path, message):
    with pytest.raises(UserError, match=message) as caught:
        import_hf(folder, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"
NAN = np.full((32, 105), np.nan, ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(NORM), "model.norm.weight is missing"),
        (rename(NORM, "model.nrom.weight"), "is missing .*; there is model.nrom.weight"),
        (lambda t: t.update(extra=t[NORM]), "extra: no tensor of the model .* which has 20"),
        (lambda t: t.update({NORM: t[NORM][:31]}), r"is \[31\]: config.json makes it \[32\]"),
        (lambda t: t.update({DOWN: NAN}), "down_proj.weight holds NaN or infinite values"),
        (lambda t: t.update({NORM: np.ones(32, np.int32)}), "is I32: allowed: BF16, F16, F32"),
    ],
    ids=["missing", "renamed", "extra", "shape", "nan", "dtype"],
)
def test_weights_that_do_not_fit_are_refused(folder, tmp_path, edit, message):
    change(folder, edit)
    refused(folder, tmp_path, message)


def test_files_that_are_cut_missing_or_changed_are_refused(folder, tmp_path):
    first, *_, last = sorted(folder.glob("*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    refused(folder, tmp_path, f"{first.name}: is truncated or no safetensors file")
    first.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
    refused(folder, tmp_path, f"{first.name}: is not what SHA256SUMS says")
    first.write_bytes(whole)
    last.unlink()
    refused(folder, tmp_path, f"{last.name}: is missing, and the index names it")
    (folder / "model.safetensors.index.json").write_text("{")
    refused(folder, tmp_path, "is damaged: no JSON with a weight_map")


def test_an_index_that_leads_elsewhere_is_refused(folder, tmp_path):
    index = {"weight_map": {NORM: "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, tmp_path, "names '../other.safetensors': only safetensors beside it are read")


@pytest.mark.parametrize(
    ("name", "message"), [(5, "names '5': only safetensors"), ([NORM], "no JSON with a weight_map")]
)
def test_an_index_of_no_names_is_refused(folder, tmp_path, name, message):
    index = {"weight_map": {NORM: name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, tmp_path, message)


def test_pickles_are_refused_by_name(folder, tmp_path):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, tmp_path, r"pytorch_model\.bin: is a pickle, which can run code")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, tmp_path, "has neither model.safetensors nor model.safetensors.index.json")


def test_folders_without_config_or_tokenizer_are_refused(folder, tmp_path):
    (folder / "tokenizer.model").unlink()
    refused(folder, tmp_path, "has no tokenizer.model")
    (folder / "config.json").write_text("[]")
    refused(folder, tmp_path, "is no JSON object")
    (folder / "config.json").unlink()
    refused(folder, tmp_path, "config.json: cannot be read: No such file")
    with pytest.raises(UserError, match="nowhere: no such directory"):
        import_hf(tmp_path / "nowhere", tmp_path / "run")


def test_an_existing_run_is_not_touched(folder, tmp_path):
    import_hf(folder, tmp_path / "run")
    with pytest.raises(UserError, match="run: exists already"):
        import_hf(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        export_run(tmp_path / "run", tmp_path / "out")
