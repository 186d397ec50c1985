"""Import and export of a random model: time, and the most memory that is not the page cache.

    uv run python tools/bench_convert.py configs/models/teuken-7b.yaml FOLDER

FOLDER needs 50 GB for Teuken-7B. Memory is the kernel's RssAnon of the converting process, read 20
times a second: mapped files, which the kernel may drop at any time, are not in it. The export is
compared with the original, tensor by tensor, byte by byte.
"""

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from teukenjax.cli.ending import run_script
from teukenjax.data.prepare import SAMPLE
from teukenjax.data.tokenizer import train_tokenizer
from teukenjax.interop.hf_config import model_config
from teukenjax.interop.hf_weights import hf_tensors
from teukenjax.interop.resumable import write_json
from teukenjax.interop.safetensors_files import lay_out, stored_tensors, write_rows
from teukenjax.recipe import ModelConfig, read_yaml, validate

CONVERT = Path(__file__).parent / "convert_hf.py"
SHARD_BYTES = 5_000_000_000


def main(model: Path, folder: Path) -> None:
    """Makes the model, imports it, exports it, compares."""
    config = validate(ModelConfig, read_yaml(model), str(model))
    begin = time.perf_counter()
    write_random(config, folder / "hf")
    tensors = list(hf_tensors(config))
    largest = max(int(np.prod(tensor.theirs)) for tensor in tensors) * 2
    print(
        f"{len(tensors)} tensors, the largest {largest / 2**30:.2f} GiB in bfloat16; random ",
        end="",
    )
    print(f"model written in {time.perf_counter() - begin:.0f} s", flush=True)
    for direction, source, out in (("import", "hf", "run"), ("export", "run", "again")):
        seconds, peak = measured(direction, folder / source, folder / out)
        print(f"{direction}: {seconds:.0f} s, peak RssAnon {peak / 2**20:.2f} GiB", flush=True)
    print(f"{same(folder / 'hf', folder / 'again')} of {len(tensors)} tensors equal, byte by byte")


def write_random(config: ModelConfig, out: Path) -> None:
    """A Hugging Face directory with uniform weights of Teuken's scale and a padded tokenizer."""
    out.mkdir(parents=True)
    tensors = list(hf_tensors(config))
    write_json(out / "config.json", model_config(config, dtype="bfloat16"))
    (out / "tokenizer.model").write_bytes(padded_tokenizer(config.vocab_size))
    dtypes = dict.fromkeys((tensor.name for tensor in tensors), "bfloat16")
    places = lay_out(tensors, dtypes, out, shard_bytes=SHARD_BYTES)
    rng = np.random.default_rng(0)
    for tensor in tensors:
        for _, rows in tensor.blocks():
            shape = (rows.stop - rows.start, *tensor.theirs[1:])
            block = (rng.random(shape, np.float32) - 0.5) * (config.init_std * 12**0.5)
            write_rows(places[tensor.name], rows, block)


def padded_tokenizer(pieces: int) -> bytes:
    """A small tokenizer of the bundled sample, with pieces that no text holds up to a size."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(SAMPLE.glob("*.txt"))]
    proto = ModelProto.FromString(train_tokenizer(texts, vocab_size=2000).model)
    for number in range(pieces - len(proto.pieces)):
        proto.pieces.add(piece=f"\ue000{number}", score=-100.0)
    return proto.SerializeToString()


def measured(direction: str, source: Path, out: Path) -> tuple[float, int]:
    """Seconds and the largest RssAnon in KiB of one conversion in a process of its own."""
    begin, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, CONVERT, direction, source, out])
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        lines = [line for line in io.StringIO(status) if line.startswith("RssAnon")]
        peak = max([peak, *(int(line.split()[1]) for line in lines)])
        time.sleep(0.05)
    if process.wait():
        sys.exit(f"{direction} failed")
    return time.perf_counter() - begin, peak


def same(one: Path, other: Path) -> int:
    """How many tensors of two folders have the same dtype, shape and bytes."""
    ours, theirs = stored_tensors(one), stored_tensors(other)
    return sum(
        (a.dtype, a.shape) == (theirs[name].dtype, theirs[name].shape)
        and all(
            np.array_equal(
                a.read(name, rows).view(np.uint32), theirs[name].read(name, rows).view(np.uint32)
            )
            for rows in row_blocks(a.shape[0])
        )
        for name, a in ours.items()
    )


def row_blocks(rows: int) -> list[slice]:
    """All rows, some thousands at a time."""
    return [slice(at, min(at + 4096, rows)) for at in range(0, rows, 4096)]


if __name__ == "__main__":
    run_script(main)
