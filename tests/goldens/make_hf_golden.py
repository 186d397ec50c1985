"""Makes hf_logits.npz: logits of stock LlamaForCausalLM on the small model of hf_case.py.

uv run --extra hf python tests/goldens/make_hf_golden.py
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "interop"))

from hf_case import by_definition, random_parameters, random_tokens, small_config  # noqa: E402

from teukenjax.interop.hf_config import model_config  # noqa: E402


def stock_logits(tokens: np.ndarray, *, tied: bool) -> np.ndarray:
    """fp32 logits [B, S, V]."""
    config = small_config(tied=tied)
    stock = LlamaForCausalLM(LlamaConfig(**model_config(config, dtype="float32"))).eval()
    weights = {
        name: torch.from_numpy(np.ascontiguousarray(tensor))
        for name, tensor in by_definition(config, random_parameters(config)).items()
    }
    missing, unexpected = stock.load_state_dict(weights, strict=False)
    assert missing == (["lm_head.weight"] if tied else []), missing
    assert not unexpected, unexpected
    with torch.no_grad():
        return stock(torch.from_numpy(tokens).long()).logits.numpy()


if __name__ == "__main__":
    tokens = random_tokens(small_config(tied=True), (2, 17))
    tied, untied = (stock_logits(tokens, tied=tied) for tied in (True, False))
    np.savez_compressed(HERE / "hf_logits.npz", tokens=tokens, tied=tied, untied=untied)
    print(f"torch {torch.__version__}: {HERE / 'hf_logits.npz'}")
