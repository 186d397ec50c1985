"""What llama.cpp's converter reads of an export, by the gguf package that it is built on.

The converter itself is no package; these are the parts of its work that are: names of tensors,
special tokens, the chat template, and a file written and read back.
"""

import gguf
import numpy as np
import pytest
from hf_case import random_parameters, small_config
from safetensors.numpy import load_file

from teukenjax.interop import export_hf
from teukenjax.interop.chat_template import chat_template


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tokenizer_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "hf"
    config = small_config(tied=request.param, vocab_size=2000)
    export_hf(config, random_parameters(config), tokenizer_model, out, dtype="float32")
    return out


def test_every_tensor_has_its_name_in_the_llama_architecture(folder):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    tensors = load_file(folder / "model.safetensors")
    found = {names.get_name(name, try_suffixes=(".weight",)) for name in tensors}
    assert None not in found
    assert len(found) == len(tensors)
    assert {"token_embd.weight", "blk.1.attn_q.weight", "output_norm.weight"} <= found


def test_a_file_holds_tokens_ends_and_template(folder, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    vocabulary = gguf.SentencePieceVocab(folder)
    pieces, scores, types = zip(*vocabulary.all_tokens(), strict=True)
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    gguf.SpecialVocab(folder, n_vocab=len(pieces)).add_to_gguf(writer)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    writer.add_tensor("token_embd.weight", table)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["tokenizer.ggml.tokens"][:5] == ["<unk>", "<s>", "</s>", "<pad>", "<eod>"]
    assert len(fields["tokenizer.ggml.tokens"]) == 2000
    ids = [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")]
    assert ids == [1, 2, 3]
    assert not fields["tokenizer.ggml.add_bos_token"]
    assert not fields["tokenizer.ggml.add_eos_token"]
    assert fields["tokenizer.chat_template"] == chat_template()
    np.testing.assert_array_equal(reader.get_tensor(0).data, table)
