"""Writes a directory that Hugging Face loads without custom code, tensor by tensor."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import Progress

from teukenjax.bits import host_bit_sum
from teukenjax.checkpoint import FOLDER, Checkpoints, find
from teukenjax.data.progress import progress_bar
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.interop.checkpoint_arrays import CheckpointArrays
from teukenjax.interop.hf_config import generation_config, model_config
from teukenjax.interop.hf_tokenizer import parse_model, write_tokenizer
from teukenjax.interop.hf_weights import Tensor, dtype_name, hf_tensors
from teukenjax.interop.resumable import Journal, Work, building, check_is_free, write_json
from teukenjax.interop.safetensors_files import lay_out, write_rows, write_sums
from teukenjax.recipe import ModelConfig, load
from teukenjax.run import load_run

SHARD_BYTES = 5_000_000_000
Read = Callable[[Tensor, slice], np.ndarray]  # some rows of our piece for a tensor, fp32


class Source(NamedTuple):
    """What an export is made from."""

    config: ModelConfig
    tokenizer_model: bytes
    read: Read
    imported: dict[str, Any]  # what ``import_hf`` kept; empty for a model that began here
    sums: dict[str, int]  # of the bits of our arrays, by "params.embed.table"; empty: unknown
    identity: dict[str, Any] | None  # tells whether a killed export was of the same weights
    form: str  # of the chat template


def export_run(
    run: Path,
    out: Path,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
) -> None:
    """Exports a run, or one of its checkpoints, to directory ``out``; see ``export_hf``.

    One matrix of one layer is in memory at a time, and the same call goes on after a kill.

    Args:
      run: RUN as every verb takes it.
      out: a directory that does not exist or is empty.
      dtype: default: that of the weights it was imported from, else "bfloat16".
      shard_bytes: weights beyond this go to a further file.
      progress: shows a bar.
    """
    check_is_free(out)
    path, step = find(run)
    recipe = load(path / "recipe.yaml")
    if recipe.sft is not None and recipe.sft.lora is not None:
        # What is exported is in no file: adapters are merged as the run is loaded, in memory.
        loaded = load_run(run, devices=jax.devices("cpu")[:1])
        model, dtype = loaded.tokenizer.model, dtype or "bfloat16"
        how = {"dtype": dtype, "shard_bytes": shard_bytes, "form": recipe.chat_form}
        export_hf(loaded.recipe.model, loaded.params, model, out, **how)
        return
    checkpoints = Checkpoints(path)
    about = checkpoints.about(step)
    checkpoints.close()
    source = Source(
        config=recipe.model,
        tokenizer_model=Tokenizer.load(path / "tokenizer").model,
        read=CheckpointArrays(path / FOLDER / str(step) / "state").read,
        imported=about.get("hugging_face", {}),
        sums=about["sums"],
        identity={"run": str(path), "step": step, "sums": about["sums"]},
        form=recipe.chat_form,
    )
    _export(source, out, dtype=dtype, shard_bytes=shard_bytes, progress=progress)


def export_hf(
    config: ModelConfig,
    params: dict,
    tokenizer_model: bytes | Path,
    out: Path,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
    form: str = "plain",
) -> None:
    """Exports model and tokenizer to directory ``out``, for ``AutoModelForCausalLM`` and others.

    Everything is written to ``out`` + ".partial" and renamed at the end, so ``out`` is either
    complete or not there. ``SHA256SUMS`` beside the weights is what ``sha256sum -c`` reads.

    Args:
      config: the model, with ``vocab_size`` set.
      params: its parameters (see ``hf_weights``), NumPy arrays or (sharded) jax.Arrays.
      tokenizer_model: a SentencePiece model, as bytes or the path of its file.
      out: a directory that does not exist or is empty.
      dtype: of the weights: "bfloat16", "float16" or "float32".
      shard_bytes: weights beyond this go to a further file.
      form: of the chat template, one of ``data.chat.template.FORMS``.

    Raises:
      UserError: for a model or tokenizer that stock ``transformers`` cannot express, a tokenizer
        of another size, an unknown ``dtype``, values that it cannot hold, or an ``out`` that
        holds something.
    """

    def read(tensor: Tensor, rows: slice) -> np.ndarray:
        leaf = params
        for key in tensor.path:
            leaf = leaf[key]
        return np.asarray(leaf[rows] if tensor.layer is None else leaf[tensor.layer][rows])

    content = _read(tokenizer_model)
    source = Source(config, content, read, imported={}, sums={}, identity=None, form=form)
    _export(source, out, dtype=dtype, shard_bytes=shard_bytes, progress=False)


def _export(source: Source, out: Path, *, dtype, shard_bytes, progress) -> None:
    _check_fits(source.config, pieces=len(parse_model(source.tokenizer_model).pieces))
    tensors = list(hf_tensors(source.config))
    dtypes = _dtypes(tensors, dtype, source.imported)
    described = model_config(
        source.config, dtype=dtypes[tensors[0].name], kept=source.imported.get("config")
    )
    check_is_free(out)
    identity = source.identity
    options = identity and {**identity, "dtypes": dtypes, "shard_bytes": shard_bytes}
    with building(out, options) as work, progress_bar(shown=progress) as bar:
        write_json(work.content / "config.json", described)
        generation = generation_config(source.imported.get("generation_config"))
        write_json(work.content / "generation_config.json", generation)
        how = {"context": source.config.context, "form": source.form}
        write_tokenizer(source.tokenizer_model, work.content, **how)
        places = lay_out(tensors, dtypes, work.content, shard_bytes=shard_bytes)
        _write_weights(source, tensors, places, work, bar)
        _check_sums(source, tensors, work.journal)
        hashed = bar.add_task("checksums", total=sum(_size(work.content)))
        write_sums(work.content, lambda count: bar.advance(hashed, count))


def _write_weights(source, tensors, places, work: Work, bar: Progress) -> None:
    task = bar.add_task("weights", total=sum(4 * int(np.prod(t.ours)) for t in tensors))
    for tensor in tensors:
        if tensor.name not in work.journal:
            try:
                work.journal.add(tensor.name, _write(source.read, tensor, places[tensor.name]))
            except UserError as error:
                raise UserError(f"{tensor.name}: {error}") from None
        bar.advance(task, 4 * int(np.prod(tensor.ours)))


def _write(read: Read, tensor: Tensor, place) -> int:
    """Writes one tensor; the sum of our piece's bits."""
    total = 0
    for ours, theirs in tensor.blocks():
        block = read(tensor, ours)
        total += host_bit_sum(block)
        write_rows(place, theirs, tensor.to_hf(block, theirs))
    return total % 2**32


def _check_sums(source: Source, tensors: Iterable[Tensor], journal: Journal) -> None:
    """Compares what was read with the sums that the checkpoint keeps."""
    if not source.sums:
        return
    found: dict[str, int] = {}
    for tensor in tensors:
        key = ".".join(("params", *tensor.path))
        found[key] = (found.get(key, 0) + journal.sums[tensor.name]) % 2**32
    changed = [key for key, total in found.items() if source.sums.get(key) != total]
    if changed:
        raise UserError(f"the checkpoint is damaged: '{changed[0]}' is not what was saved")


def _dtypes(tensors, dtype: str | None, imported: dict[str, Any]) -> dict[str, str]:
    if dtype is not None:
        return dict.fromkeys((tensor.name for tensor in tensors), dtype_name(dtype))
    kept = imported.get("dtypes", {})
    return {tensor.name: kept.get(tensor.name, "bfloat16") for tensor in tensors}


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


def _size(folder: Path) -> list[int]:
    return [file.stat().st_size for file in folder.glob("*.safetensors")]
