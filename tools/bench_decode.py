"""How fast a random model decodes on one device, beside the time that reading its weights takes.

    uv run --extra cuda13 python tools/bench_decode.py configs/models/teuken-7b.yaml

Needs no checkpoint: weights are drawn on the device. "Read once" is measured: the maximum over all
matrices, which a step must read too. A step is what `teukenjax generate` runs, greedy; its token
is fetched before the step after the next is sent, as there.
"""

import argparse
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from teukenjax.hardware import find_hardware
from teukenjax.infer.decoder import Decoder
from teukenjax.infer.sampling import Choice, Sampling
from teukenjax.model import single_device
from teukenjax.model.teuken import REFERENCE
from teukenjax.recipe import ComputeConfig, ModelConfig, read_yaml, validate

REPEATS = 5


def main() -> None:
    """Prints reading, prefill and decoding at several batches and lengths."""
    options = arguments()
    config = validate(ModelConfig, read_yaml(options.model), str(options.model))
    compute = ComputeConfig(dtype="bfloat16", remat="none", kernels=REFERENCE)
    model = single_device(config, compute)
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {version('jax')}, {options.model.stem} in bfloat16")
    decoder = Decoder(model, jax.jit(model.init)(np.uint32(0)))
    weights = sum(x.nbytes for x in jax.tree.leaves(decoder.params))
    once = read_once(decoder.params)
    hardware = find_hardware(None, device)
    peak = f"{weights / hardware.memory_gb_per_s / 1e6:.2f}" if hardware else "n/a"
    print(f"weights {weights / 1e9:.2f} GB; read once in {once:.2f} ms, by the datasheet {peak} ms")
    for batch in options.batch:
        for length in options.length:
            report(decoder, batch, length, options.steps, once)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--length", type=int, nargs="+", default=[128, 3400], help="of prompts")
    parser.add_argument("--steps", type=int, default=100)
    return parser.parse_args()


def read_once(params: dict) -> float:
    """Milliseconds to read every matrix: median of ``REPEATS`` times ten."""
    largest = jax.jit(lambda tree: jnp.stack([jnp.max(x) for x in jax.tree.leaves(tree)]))
    jax.block_until_ready(largest(params))
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for _ in range(10):
            found = largest(params)
        jax.block_until_ready(found)
        times.append((time.perf_counter() - begin) * 100)
    return statistics.median(times)


def report(decoder: Decoder, batch: int, length: int, steps: int, once: float) -> None:
    """One row: prefill and decoding of a batch."""
    total = length + (REPEATS + 1) * steps
    prompts = [list(range(5, 5 + length))] * batch
    begin = time.perf_counter()
    decoder.compile(batch, total)
    compiled = time.perf_counter() - begin
    begin = time.perf_counter()
    rows = decoder.read(decoder.start(batch, total), prompts)
    jax.block_until_ready(rows.logits)
    prefill = time.perf_counter() - begin
    choice = Choice.of([Sampling(temperature=0.0)] * batch)
    times, pending = [], None
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        for _ in range(steps):
            ready = pending
            rows, pending = decoder.step(decoder.params, rows, choice)
            if ready is not None:
                np.asarray(ready)
        np.asarray(pending)
        times.append((time.perf_counter() - begin) / steps * 1e3)
    times = sorted(times[1:])
    step = statistics.median(times)
    print(
        f"batch {batch:2}, prompt {length:5}, cache {decoder.capacity(total):5}: "
        f"prefill {batch * length / prefill:9,.0f} tokens/s; "
        f"step {step:6.2f} ms ({times[0]:.2f} … {times[-1]:.2f}) = {step / once:.2f} × reading; "
        f"{batch / step * 1e3:8,.1f} tokens/s; compiled in {compiled:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
