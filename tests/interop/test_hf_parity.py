"""An export in the hands of stock torch and transformers: no remote code, the same answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_case import random_parameters, small_config

from teukenjax import model
from teukenjax.data.chat.template import Template, system_sentences
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.infer import Generator, Sampling
from teukenjax.interop import export_hf
from teukenjax.model import single_device
from teukenjax.model.teuken import REFERENCE
from teukenjax.recipe import ComputeConfig

# Their warnings are not ours to mend.
pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("default")]


# Shapes whose parts cannot be taken for one another; the vocabulary of 2,000 has padding rows. In
# the first two the head dimension is not width / heads: only the exported value can be right.
CASES = {
    "tied": {"tied": True, "head_dim": 6},
    "untied": {"tied": False, "head_dim": 6},
    "one KV head": {"tied": True, "kv_heads": 1, "layers": 3},
    "a KV head each": {"tied": False, "kv_heads": 4, "head_dim": 16, "rope_theta": 5e5},
    "four of eight, even rows": {"tied": True, "heads": 8, "kv_heads": 4, "vocab_multiple": 2000},
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request, reference):
    changes = {"context": 128} | request.param
    return small_config(vocab_size=reference.get_piece_size(), **changes)


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


def test_logits_in_bfloat16(case, stock, sample, tokenizer):
    """Ours are no further from fp32 than stock Llama's in bf16, which round at other places."""
    import torch

    params, ids = random_parameters(case), tokenizer(sample["de"]).input_ids[:64]
    compute = ComputeConfig(dtype="bfloat16", kernels=REFERENCE)
    ours = single_device(case, compute).bind(jax.tree.map(jnp.asarray, params))
    ours = np.asarray(ours.logits(ours.hidden(jnp.asarray([ids]))))
    exact = np.asarray(model.logits(case, params, jnp.asarray([ids])))
    copy = type(stock)(stock.config).bfloat16().eval()
    copy.load_state_dict(stock.state_dict())
    with torch.no_grad():
        theirs = copy(torch.tensor([ids])).logits.float().numpy()

    def error(found):
        return np.sqrt(np.mean((found - exact) ** 2)) / exact.std()

    # 2⁻⁹ a rounding; some forty of them in a row, as a random walk, make 0.013.
    assert error(theirs) < 0.04
    assert error(ours) < 1.1 * error(theirs)


def test_greedy_generation_is_the_same_for_64_tokens(case, stock, tokenizer_model, sample):
    import torch

    generator = Generator(single_device(case), random_parameters(case), Tokenizer(tokenizer_model))
    generator.stops = ()
    ids = generator.prompt_ids(sample["de"][:80])[:60]
    ours = list(generator.stream(ids, tokens=64, sampling=Sampling(temperature=0.0)))
    given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
    theirs = stock.generate(**given, max_new_tokens=64, do_sample=False, eos_token_id=None)
    assert ours == theirs[0, len(ids) :].tolist()


def test_conversations_have_the_tokens_that_tuning_trains_on(tokenizer, tokenizer_model):
    template = Template(Tokenizer(tokenizer_model))
    for language in system_sentences():
        messages = [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "2 + 2?"},
        ]
        found = tokenizer.apply_chat_template(
            messages, language=language, add_generation_prompt=True, return_dict=False
        )
        assert found == template.prompt(language, "2 + 2?", before=(("1 + 1?", "2"),))


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
