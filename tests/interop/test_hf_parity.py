"""An export in the hands of stock torch and transformers: no remote code, the same answers."""

import jax.numpy as jnp
import numpy as np
import pytest
from hf_case import random_parameters, small_config

from teukenjax import model
from teukenjax.interop import export_hf

# Their warnings are not ours to mend.
pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def case(request, reference):
    # The head dimension is not width / heads: only the exported value can be right.
    return small_config(tied=request.param, vocab_size=reference.get_piece_size(), head_dim=6)


@pytest.fixture(scope="module")
def folder(case, tokenizer_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "hf"
    options = {"dtype": "float32", "shard_bytes": 200_000}
    export_hf(case, random_parameters(case), tokenizer_model, out, **options)
    return out


@pytest.fixture(scope="module")
def transformers():
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    yield transformers
    patch.undo()


@pytest.fixture(scope="module")
def tokenizer(transformers, folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def stock(transformers, folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def test_token_ids_on_the_whole_sample(tokenizer, reference, sample):
    for text in sample.values():
        encoded = tokenizer(text)
        assert encoded.input_ids == tokenizer.encode(text) == reference.encode(text)
        assert tokenizer.decode(encoded.input_ids) == reference.decode(encoded.input_ids)
        assert set(encoded) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    "text", ["", " a", "<s>a", "x</s>\nUser: y  z\n\n\t<eod>", "<unk> <0x0A> <placeholder_tok_3>"]
)
def test_special_tokens_inside_text(tokenizer, reference, text):
    assert tokenizer(text).input_ids == reference.encode(text)
    assert tokenizer.decode(reference.encode(text)) == text


def test_special_tokens_have_their_ids(tokenizer):
    ids = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert (*ids, tokenizer.pad_token_id) == (0, 1, 2, 3)
    ids = tokenizer("Yes</s><eod>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Yes"


def test_logits_on_text(case, stock, tokenizer, sample):
    import torch

    params = random_parameters(case)
    for language in ("en", "de", "el", "bg", "mt"):
        ids = tokenizer(sample[language]).input_ids[: case.context]
        with torch.no_grad():
            expected = stock(torch.tensor([ids])).logits.numpy()
        ours = np.asarray(model.logits(case, params, jnp.asarray([ids])))
        assert expected.dtype == np.float32
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_generate_runs_and_stops_at_both_ends(stock, tokenizer):
    assert stock.generation_config.eos_token_id == [2, 4]
    inputs = tokenizer("Guten Tag", return_tensors="pt")
    output = stock.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert 0 < output.shape[1] - inputs.input_ids.shape[1] <= 5


def test_bfloat16_weights_are_loaded_as_bfloat16(transformers, case, tokenizer_model, tmp_path):
    export_hf(case, random_parameters(case), tokenizer_model, tmp_path / "hf")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert str(loaded.dtype) == "torch.bfloat16"
    weight = loaded.model.embed_tokens.weight.float().detach().numpy()
    table = random_parameters(case)["embed"]["table"][: case.vocab_size]
    np.testing.assert_array_equal(weight, table.astype(jnp.bfloat16).astype(np.float32))
