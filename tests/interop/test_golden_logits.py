"""Our logits against those of stock LlamaForCausalLM, as stored by make_hf_golden.py."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hf_case import random_parameters, small_config

from teukenjax import model

GOLDEN = Path(__file__).parent.parent / "goldens" / "hf_logits.npz"


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_llama(tied):
    config = small_config(tied=tied)
    with np.load(GOLDEN) as golden:
        tokens, expected = golden["tokens"], golden["tied" if tied else "untied"]
    logits = model.logits(config, random_parameters(config), jnp.asarray(tokens))
    assert expected.std() > 0.5  # the weights matter
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
