"""Our weights as Hugging Face tensors: the one table of names, and safetensors files.

Two things differ between the layouts. A ``torch.nn.Linear`` holds [out, in] where we hold
[in, out], with heads and head dimension as axes of their own; and we stack the layers and pad
the vocabulary, which Hugging Face does not. Heads need no permutation: both sides rotate halves
in RoPE, and in both query head i reads KV head i // (H/K).

Tensors are streamed: one tensor on its way to the host, one shard in memory, whatever the model.
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from teukenjax.errors import UserError, nearest
from teukenjax.recipe import ModelConfig

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


class Name(NamedTuple):
    """One weight's two names and how its layout changes."""

    path: tuple[str, ...]  # ours
    hf: str
    inputs: int | None  # how many leading axes are summed over; none: the layout is the same


# Layouts are those of one layer; in "layers" our arrays have a leading L.
LAYER = (
    Name(("attention_norm", "gain"), "input_layernorm.weight", None),  # [D]
    Name(("attention", "query"), "self_attn.q_proj.weight", 1),  # [D, H, N] → [HN, D]
    Name(("attention", "key"), "self_attn.k_proj.weight", 1),  # [D, K, N] → [KN, D]
    Name(("attention", "value"), "self_attn.v_proj.weight", 1),
    Name(("attention", "output"), "self_attn.o_proj.weight", 2),  # [H, N, D] → [D, HN]
    Name(("mlp_norm", "gain"), "post_attention_layernorm.weight", None),
    Name(("mlp", "gate"), "mlp.gate_proj.weight", 1),  # [D, F] → [F, D]
    Name(("mlp", "up"), "mlp.up_proj.weight", 1),
    Name(("mlp", "down"), "mlp.down_proj.weight", 1),  # [F, D] → [D, F]
)
EMBEDDING = Name(("embed", "table"), "model.embed_tokens.weight", None)  # [V, D]
FINAL_NORM = Name(("final_norm", "gain"), "model.norm.weight", None)
HEAD = Name(("head", "table"), "lm_head.weight", None)  # [V, D]; absent when tied


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy type of "bfloat16" or "float32"; a UserError for another name."""
    if name not in DTYPES:
        raise UserError(f"dtype '{name}': {nearest(name, DTYPES)}")
    return DTYPES[name]


def hf_tensors(config: ModelConfig, params: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face name and tensor of every weight, one at a time, in the dtype of ``params``.

    Args:
      config: with ``vocab_size`` set; rows of the tables beyond it are cut.
      params: nested dict of NumPy arrays or of (sharded) jax.Arrays of this process.
    """
    yield EMBEDDING.hf, _host(params, EMBEDDING)[: config.vocab_size]
    for layer in range(config.layers):
        for name in LAYER:
            tensor = np.asarray(_leaf(params["layers"], name)[layer])
            yield f"model.layers.{layer}.{name.hf}", to_hf_layout(tensor, name)
    yield FINAL_NORM.hf, _host(params, FINAL_NORM)
    if not config.tied:
        yield HEAD.hf, _host(params, HEAD)[: config.vocab_size]


def to_hf_layout(tensor: np.ndarray, name: Name) -> np.ndarray:
    """[*in, *out] → [out, in]; the inverse is ``tensor.T.reshape(our shape)``."""
    if name.inputs is None:
        return tensor
    return tensor.reshape(math.prod(tensor.shape[: name.inputs]), -1).T


def write_safetensors(
    tensors: Iterable[tuple[str, np.ndarray]], out: Path, *, dtype: str, shard_bytes: int
) -> None:
    """Writes ``tensors`` into directory ``out`` as ``dtype`` ("bfloat16" or "float32").

    One file ``model.safetensors``; when the tensors are larger than ``shard_bytes``, numbered
    files, each at most that large (or one tensor), with ``model.safetensors.index.json``. At most
    one shard is held in memory.

    Raises:
      UserError: for another ``dtype``.
    """
    names, sizes = [], []
    for shard in _shards(tensors, numpy_dtype(dtype), shard_bytes):
        _save(shard, out / _unnumbered(len(names)))
        names.append(list(shard))
        sizes.append(sum(tensor.nbytes for tensor in shard.values()))
        del shard  # or it would live on while the next one is gathered
    if len(names) == 1:
        (out / _unnumbered(0)).rename(out / "model.safetensors")
    else:
        _number_shards(out, names, total_bytes=sum(sizes))


def _leaf(params: dict, name: Name) -> Any:
    for key in name.path:
        params = params[key]
    return params


def _host(params: dict, name: Name) -> np.ndarray:
    return np.asarray(_leaf(params, name))


def _shards(
    tensors: Iterable[tuple[str, np.ndarray]], dtype: np.dtype, shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    """Contiguous tensors of ``dtype``, in dicts of at most ``shard_bytes`` where possible."""
    shard: dict[str, np.ndarray] = {}
    held = 0
    for name, tensor in tensors:
        size = tensor.size * dtype.itemsize
        if shard and held + size > shard_bytes:
            yield shard
            shard, held = {}, 0
        shard[name] = tensor.astype(dtype, order="C", copy=False)
        held += size
    yield shard


def _save(shard: dict[str, np.ndarray], file: Path) -> None:
    file.touch()
    mode = file.stat().st_mode  # by the umask; save_file lets nobody but the owner read
    # Without this entry older versions of transformers refuse the file.
    try:
        save_file(shard, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    file.chmod(mode)


def _unnumbered(position: int) -> str:
    return f"shard-{position}.safetensors"


def _number_shards(out: Path, names: list[list[str]], *, total_bytes: int) -> None:
    """Gives the shards their final names, which hold their count, and writes the index."""
    weight_map = {}
    for position, in_shard in enumerate(names):
        file = f"model-{position + 1:05d}-of-{len(names):05d}.safetensors"
        (out / _unnumbered(position)).rename(out / file)
        weight_map |= dict.fromkeys(in_shard, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    text = json.dumps(index, indent=2) + "\n"
    (out / "model.safetensors.index.json").write_text(text, encoding="utf-8")
