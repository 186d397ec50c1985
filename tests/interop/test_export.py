"""The files of an export, read back without torch."""

import json
import struct
import tracemalloc
from hashlib import sha256

import jax
import ml_dtypes
import numpy as np
import pytest
from hf_case import by_definition, random_parameters, small_config
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import deserialize

from teukenjax.errors import UserError
from teukenjax.interop import export_hf, hf_weights, safetensors_files
from teukenjax.interop.hf_weights import LAYER
from teukenjax.model import single_device

TOKENIZER_BYTES = 1_500_000  # that writing the tokenizer takes
NUMPY = {
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@pytest.fixture
def config(reference):
    return small_config(tied=True, vocab_size=reference.get_piece_size(), head_dim=6)


@pytest.fixture
def export(config, tokenizer_model, tmp_path):
    def run(config=config, params=None, **options):
        params = random_parameters(config) if params is None else params
        export_hf(config, params, tokenizer_model, tmp_path / "hf", **options)
        return tmp_path / "hf"

    return run


def read(file) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(entry["data"], NUMPY[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in deserialize(file.read_bytes())
    }


@pytest.mark.parametrize("tied", [True, False])
def test_names_and_shapes_are_those_of_llama(config, export, tied):
    config = config.model_copy(update={"tied": tied})
    tensors = read(export(config) / "model.safetensors")
    V, D, F = config.vocab_size, config.width, config.ffn
    HN, KN = config.heads * config.head_dim, config.kv_heads * config.head_dim
    expected = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not tied:
        expected["lm_head.weight"] = (V, D)
    for layer in range(config.layers):
        shapes = {
            "input_layernorm": (D,),
            "self_attn.q_proj": (HN, D),
            "self_attn.k_proj": (KN, D),
            "self_attn.v_proj": (KN, D),
            "self_attn.o_proj": (D, HN),
            "post_attention_layernorm": (D,),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
        }
        expected |= {f"model.layers.{layer}.{k}.weight": shape for k, shape in shapes.items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {NUMPY["BF16"]}
    assert len(tensors) == config.layers * len(LAYER) + (2 if tied else 3)


def test_teuken_has_290_tensors():
    assert 32 * len(LAYER) + 2 == 290


def test_values_are_multiplied_as_before(config, export):
    params = random_parameters(config)
    tensors = read(export(params=params, dtype="float32") / "model.safetensors")
    attention, mlp = params["layers"]["attention"], params["layers"]["mlp"]
    x = np.random.default_rng(2).standard_normal(config.width).astype(np.float32)
    heads = np.einsum("d,dhn->hn", x, attention["key"][1])
    exported = tensors["model.layers.1.self_attn.k_proj.weight"] @ x
    np.testing.assert_allclose(exported, heads.ravel(), rtol=1e-5, atol=1e-5)
    values = np.ones((config.heads, config.head_dim), np.float32) * np.arange(4)[:, None]
    exported = tensors["model.layers.0.self_attn.o_proj.weight"] @ values.ravel()
    expected = np.einsum("hn,hnd->d", values, attention["output"][0])
    np.testing.assert_allclose(exported, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.down_proj.weight"], mlp["down"][1].T)


def test_bfloat16_is_the_rounded_float32(config, export):
    tensors = read(export() / "model.safetensors")
    for name, tensor in by_definition(config, random_parameters(config)).items():
        np.testing.assert_array_equal(tensors[name], tensor.astype(NUMPY["BF16"]))


def test_padding_rows_are_cut(config, export):
    config = config.model_copy(update={"tied": False})
    tensors = read(export(config, dtype="float32") / "model.safetensors")
    params = random_parameters(config)
    for name, table in (("model.embed_tokens", "embed"), ("lm_head", "head")):
        kept = params[table]["table"][: config.vocab_size]
        assert params[table]["table"].shape[0] > config.vocab_size
        np.testing.assert_array_equal(tensors[f"{name}.weight"], kept)


def test_large_models_are_sharded_with_an_index(config, export):
    limit = 50_000
    out = export(dtype="float32", shard_bytes=limit)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("model-*.safetensors"))
    count = len(files)
    assert count > 2
    assert [f.name for f in files] == [
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    ]
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert not (out / "model.safetensors").exists()
    found = {name: file.name for file in files for name in read(file)}
    assert found == index["weight_map"]
    whole = by_definition(config, random_parameters(config))
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    for file in files:
        tensors = read(file)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= limit
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, whole[name])


def test_files_are_marked_for_torch(export):
    raw = (export() / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    assert json.loads(raw[8 : 8 + size])["__metadata__"] == {"format": "pt"}


def test_a_piece_is_held_in_memory(config, export, monkeypatch):
    """Tables larger than a piece go through memory in pieces, however large the file."""
    monkeypatch.setattr(hf_weights, "BLOCK_BYTES", 400_000)
    monkeypatch.setattr(safetensors_files, "HASH_BYTES", 400_000)
    config = config.model_copy(update={"width": 256, "layers": 1})
    params = random_parameters(config)  # a table of 2 MB
    tracemalloc.start()
    export(config, params, dtype="float32")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert params["embed"]["table"].nbytes > 2_000_000
    assert peak < 4 * 400_000 + TOKENIZER_BYTES


def test_all_files_are_readable_alike(export):
    out = export(shard_bytes=50_000)
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1


def test_sharded_arrays_give_the_same_tensors(config, export):
    mesh = jax.make_mesh((8,), ("fsdp",))

    def place(leaf):
        widest = int(np.argmax(leaf.shape))
        axes = ["fsdp" if axis == widest and size % 8 == 0 else None
                for axis, size in enumerate(leaf.shape)]  # fmt: skip
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    sharded = jax.tree.map(place, random_parameters(config))
    assert not sharded["embed"]["table"].is_fully_replicated
    tensors = read(export(params=sharded, dtype="float32") / "model.safetensors")
    for name, tensor in by_definition(config, random_parameters(config)).items():
        np.testing.assert_array_equal(tensors[name], tensor)


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_of_the_model_is_exported(config, tied):
    config = config.model_copy(update={"tied": tied})
    ours = jax.tree.map(lambda leaf: leaf.shape, single_device(config).abstract)
    assert ours == jax.tree.map(lambda leaf: leaf.shape, random_parameters(config))


def test_config_describes_the_model(config, export):
    out = export()
    described = json.loads((out / "config.json").read_text())
    assert described["architectures"] == ["LlamaForCausalLM"]
    assert described["head_dim"] == config.head_dim
    assert described["num_key_value_heads"] == config.kv_heads
    assert described["vocab_size"] == config.vocab_size
    assert described["torch_dtype"] == "bfloat16"
    assert described["tie_word_embeddings"]
    assert "auto_map" not in described
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 4]


@pytest.mark.parametrize("changes", [{"norms": "everywhere"}, {"norm_gain": False}])
def test_models_that_are_no_llama_are_refused(config, export, tmp_path, changes):
    with pytest.raises(UserError, match="no stock Hugging Face architecture"):
        export(config.model_copy(update=changes), params={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("vocab_size", [None, 1999])
def test_another_tokenizer_is_refused(config, export, tmp_path, vocab_size):
    with pytest.raises(UserError, match=r"vocab_size.*pieces"):
        export(config.model_copy(update={"vocab_size": vocab_size}), params={})
    assert not list(tmp_path.iterdir())


def test_values_that_a_dtype_cannot_hold_are_refused(config, export, tmp_path):
    for value, dtype in ((np.nan, "float32"), (1e6, "float16")):
        params = random_parameters(config)
        params["layers"]["mlp"]["down"][1, 2, 3] = value
        with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj\.weight: holds values"):
            export(params=params, dtype=dtype)
        assert not list(tmp_path.iterdir())


def test_sums_are_those_of_the_files(export):
    out = export(shard_bytes=50_000)
    lines = (out / "SHA256SUMS").read_text().splitlines()
    files = sorted(out.glob("*.safetensors"))
    assert lines == [f"{sha256(f.read_bytes()).hexdigest()}  {f.name}" for f in files]


def test_unknown_dtype_is_refused(export, tmp_path):
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        export(params={}, dtype="bfloat")
    assert not list(tmp_path.iterdir())


def test_tokenizer_may_be_a_file(config, tokenizer_model, tmp_path):
    with pytest.raises(UserError, match=r"missing\.model: cannot be read"):
        export_hf(config, {}, tmp_path / "missing.model", tmp_path / "hf")
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model)
    params = random_parameters(config)
    export_hf(config, params, tmp_path / "tokenizer.model", tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer.json").exists()


def test_existing_output_is_not_touched(export, tmp_path):
    (tmp_path / "hf").mkdir()
    export()  # an empty directory is free
    with pytest.raises(UserError, match="exists already"):
        export(params={})


def test_a_failed_export_leaves_nothing(config, export, tmp_path):
    params = random_parameters(config)
    del params["final_norm"]
    with pytest.raises(KeyError):
        export(params=params)
    assert not list(tmp_path.iterdir())
    assert (export() / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
