"""Reads a Hugging Face directory into a run, tensor by tensor.

The run has one checkpoint, of step 0, that holds parameters only: every verb that uses a model
takes it. What our recipe has no word for (fields of config.json, the dtype of each tensor) is
kept in the checkpoint's metadata, and an export writes it again.
"""

import difflib
from pathlib import Path
from typing import Any

import numpy as np

from teukenjax.bits import host_bit_sum
from teukenjax.checkpoint import FOLDER
from teukenjax.data.begun import fingerprint_files
from teukenjax.data.progress import progress_bar
from teukenjax.data.tokenizer import MODEL_FILE, Tokenizer
from teukenjax.errors import UserError
from teukenjax.interop.checkpoint_arrays import CheckpointArrays, write_checkpoint_metadata
from teukenjax.interop.hf_config import from_hf, read_json
from teukenjax.interop.hf_weights import Tensor, hf_tensors
from teukenjax.interop.resumable import Work, building
from teukenjax.interop.safetensors_files import SUMS, Stored, check_sums, stored_tensors
from teukenjax.recipe import (
    AdamWConfig,
    BatchConfig,
    DataConfig,
    ModelConfig,
    Recipe,
    to_yaml,
)


def import_hf(folder: Path, out: Path, *, progress: bool = False) -> None:
    """Makes run directory ``out`` of a Hugging Face directory with Teuken's tokenizer.

    One matrix of one layer is in memory at a time, and the same call goes on after a kill.
    Weights become fp32, which is exact; ``SHA256SUMS``, when there is one, is compared first.

    Args:
      folder: config.json, tokenizer.model and safetensors.
      out: a directory that does not exist or is empty.
      progress: shows a bar.

    Raises:
      UserError: for another architecture, weights in pickles, a tensor that is missing, unknown,
        of another shape, damaged or not finite, or a tokenizer of another size.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory")
    fields = read_json(folder / "config.json")
    config = from_hf(fields, str(folder / "config.json"))
    tokenizer = _tokenizer(folder, config)
    stored = stored_tensors(folder)
    tensors = list(hf_tensors(config))
    _check_tensors(tensors, stored, folder)
    files = sorted({entry.file for entry in stored.values()})
    options = {"files": fingerprint_files([folder / "config.json", *files])}
    with building(out, options) as work:
        with progress_bar(shown=progress) as bar:
            if (folder / SUMS).is_file():
                hashed = bar.add_task("checksums", total=sum(file.stat().st_size for file in files))
                check_sums(folder, lambda count: bar.advance(hashed, count))
            task = bar.add_task("weights", total=sum(4 * int(np.prod(t.ours)) for t in tensors))
            arrays = _create(tensors, config, work.content)
            for tensor in tensors:
                if tensor.name not in work.journal:
                    total = _write(arrays, tensor, stored[tensor.name])
                    work.journal.add(tensor.name, total)
                bar.advance(task, 4 * int(np.prod(tensor.ours)))
        kept = {"config": fields, "dtypes": {name: entry.dtype for name, entry in stored.items()}}
        if (folder / "generation_config.json").is_file():
            kept["generation_config"] = read_json(folder / "generation_config.json")
        _finish(work, tensors, kept)
        _write_recipe(work.content, out, config, tokenizer)


def _tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    if not (folder / MODEL_FILE).is_file():
        raise UserError(f"{folder}: has no {MODEL_FILE}, the SentencePiece model of the tokenizer")
    tokenizer = Tokenizer.load(folder / MODEL_FILE)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{folder / 'config.json'}: vocab_size is {config.vocab_size}: the tokenizer has "
            f"{tokenizer.vocab_size} pieces"
        )
    return tokenizer


def _check_tensors(tensors: list[Tensor], stored: dict[str, Stored], folder: Path) -> None:
    expected = {tensor.name for tensor in tensors}
    missing = [tensor.name for tensor in tensors if tensor.name not in stored]
    extra = sorted(stored.keys() - expected)
    if missing:
        close = difflib.get_close_matches(missing[0], extra, n=1, cutoff=0.8)
        hint = f"; there is {close[0]}, which is none of its tensors" if close else ""
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise UserError(f"{folder}: {missing[0]}{more} is missing from the weights{hint}")
    if extra:
        more = f" and {len(extra) - 1} more" if extra[1:] else ""
        raise UserError(
            f"{stored[extra[0]].file}: {extra[0]}{more}: no tensor of the model that config.json "
            f"describes, which has {len(expected)}"
        )
    for tensor in tensors:
        entry = stored[tensor.name]
        if entry.shape != tensor.theirs:
            raise UserError(
                f"{entry.file}: {tensor.name} is {list(entry.shape)}: config.json makes it "
                f"{list(tensor.theirs)}"
            )


def _create(tensors: list[Tensor], config: ModelConfig, content: Path) -> CheckpointArrays:
    arrays = CheckpointArrays(content / FOLDER / "0" / "state")
    arrays.create(
        {
            tensor.path: tensor.ours if tensor.layer is None else (config.layers, *tensor.ours)
            for tensor in tensors
        }
    )
    return arrays


def _write(arrays: CheckpointArrays, tensor: Tensor, entry: Stored) -> int:
    """Copies one tensor; the sum of our piece's bits."""
    total = 0
    for ours, theirs in tensor.blocks():
        block = entry.read(tensor.name, theirs)
        if not np.isfinite(block).all():
            raise UserError(f"{entry.file}: {tensor.name} holds NaN or infinite values")
        block = np.ascontiguousarray(tensor.from_hf(block, ours))
        arrays.write(tensor, ours, block)
        total += host_bit_sum(block)
    return total % 2**32


def _finish(work: Work, tensors: list[Tensor], kept: dict[str, Any]) -> None:
    sums: dict[str, int] = {}
    for tensor in tensors:
        key = ".".join(("params", *tensor.path))
        sums[key] = (sums.get(key, 0) + work.journal.sums[tensor.name]) % 2**32
    about = {"step": 0, "sums": sums, "hugging_face": kept}
    write_checkpoint_metadata(work.content, dict.fromkeys(t.path for t in tensors), about)


def _write_recipe(content: Path, out: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """A recipe that says what the model is; how it was trained is not known."""
    recipe = Recipe(
        out=out.absolute(),
        steps=1,
        model=config,
        data=DataConfig(),
        batch=BatchConfig(sequences=1),
        optimizer=AdamWConfig(name="adamw"),
    )
    (content / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    folder = content / "tokenizer"
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder / MODEL_FILE)
