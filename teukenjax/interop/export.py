"""Writes a directory that Hugging Face loads without custom code."""

import json
import shutil
from pathlib import Path

import jax

from teukenjax.errors import UserError, disk_errors
from teukenjax.interop.hf_config import generation_config, model_config
from teukenjax.interop.hf_tokenizer import parse_model, write_tokenizer
from teukenjax.interop.hf_weights import hf_tensors, numpy_dtype, write_safetensors
from teukenjax.recipe import ModelConfig
from teukenjax.run import load_run


def export_run(run: Path, out: Path, *, dtype: str = "bfloat16") -> None:
    """Exports a run, or one of its checkpoints, to directory ``out``; see ``export_hf``.

    The weights are read into host memory, whatever the devices.
    """
    check_is_free(out)
    loaded = load_run(run, devices=jax.devices("cpu")[:1])
    export_hf(loaded.recipe.model, loaded.params, loaded.tokenizer.model, out, dtype=dtype)


def export_hf(
    config: ModelConfig,
    params: dict,
    tokenizer_model: bytes | Path,
    out: Path,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Exports model and tokenizer to directory ``out``, for ``AutoModelForCausalLM`` and others.

    Everything is written to ``out`` + ".partial" and renamed at the end, so ``out`` is either
    complete or not there.

    Args:
      config: the model, with ``vocab_size`` set.
      params: its parameters (see ``hf_weights``), NumPy arrays or (sharded) jax.Arrays.
      tokenizer_model: a SentencePiece model, as bytes or the path of its file.
      out: a directory that does not exist or is empty.
      dtype: of the weights, "bfloat16" or "float32".
      shard_bytes: weights beyond this go to a further file.

    Raises:
      UserError: for a model or tokenizer that stock ``transformers`` cannot express, a tokenizer
        of another size, an unknown ``dtype``, or an ``out`` that holds something.
    """
    model = _read(tokenizer_model)
    described = model_config(config, dtype=numpy_dtype(dtype).name)
    _check_fits(config, pieces=len(parse_model(model).pieces))
    check_is_free(out)
    partial = out.with_name(out.name + ".partial")
    with disk_errors(out):
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
            partial.mkdir(parents=True)
            _write_json(partial / "config.json", described)
            _write_json(partial / "generation_config.json", generation_config())
            write_tokenizer(model, partial, context=config.context)
            tensors = hf_tensors(config, params)
            write_safetensors(tensors, partial, dtype=dtype, shard_bytes=shard_bytes)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # after the rename there is none


def _read(tokenizer_model: bytes | Path) -> bytes:
    if isinstance(tokenizer_model, bytes):
        return tokenizer_model
    try:
        return tokenizer_model.read_bytes()
    except OSError as error:
        raise UserError(f"{tokenizer_model}: cannot be read: {error.strerror}") from None


def _check_fits(config: ModelConfig, *, pieces: int) -> None:
    if config.vocab_size is None:
        raise UserError(f"model.vocab_size is not set: this tokenizer has {pieces} pieces")
    if config.vocab_size != pieces:
        raise UserError(
            f"model.vocab_size={config.vocab_size}: the tokenizer has {pieces} pieces; "
            "export with the tokenizer that the model was trained with"
        )


def check_is_free(out: Path) -> None:
    """Raises a UserError when ``out`` holds something."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose another directory or remove it")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
