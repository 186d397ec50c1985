"""Attention on one Hopper GPU: checked against fp32, then timed beside cuDNN and XLA.

    uv run python tools/bench_attention.py

Every line is one call: its median and spread over samples of at least 20 ms, the rate by the FLOPs
that its documents need (causal half; 2 products forward, 5 backward), and its error. A result that
is off, or that differs between two runs, ends the script with an error. On a CPU there is no kernel
to time: ``--shrink 32 --dry-run`` checks the cases with XLA's attention in its place.
"""

import argparse
import functools
import statistics
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from teukenjax.bench.kernels import samples
from teukenjax.kernels.attention import attention
from teukenjax.model.layers import apply_rope, rope_angles

H, K, N = 32, 2, 128  # Teuken's heads
SAMPLES = 20
# Weights, dS and results are rounded to bf16 (2⁻⁸ = 0.4 %) at most three times, independently.
ALLOWED = 0.01  # root mean square of the error over that of the exact result


def main() -> None:
    """Checks, then times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shrink", type=int, default=1, help="divide lengths")
    parser.add_argument("--dry-run", action="store_true", help="XLA in the place of the kernel")
    options = parser.parse_args()
    ours = "reference" if options.dry_run else "pallas"
    cudnn = "reference" if options.dry_run else "cudnn"
    print(jax.devices()[0].device_kind, "jax", jax.__version__, flush=True)
    for length, documents in ((4096, 1), (4096, 4), (4096, 100), (1024, 7)):
        check(ours, cudnn, length // options.shrink, documents)
    S = 4096 // options.shrink
    run(cudnn, 4, S, None)
    run(ours, 4, S, None)
    packed = segments_of(4, S, 4)
    run(ours, 4, S, packed)
    run("reference", 4, S, packed)
    run(cudnn, 1, 8 * S, None)
    run(ours, 1, 8 * S, None)
    run(ours, 1, 8 * S, segments_of(1, 8 * S, 32))
    rope(4, S)


def segments_of(B: int, S: int, documents: int):
    """Documents of about equal lengths, the last part of the first row padding."""
    edges = np.linspace(0, S, documents + 1)[1:-1]
    rng = np.random.default_rng(0)
    rows = np.empty((B, S), np.int32)
    for row in rows:
        moved = edges + rng.integers(-S // (8 * documents), S // (8 * documents) + 1, len(edges))
        row[:] = np.searchsorted(moved, np.arange(S), side="right") + 1
    if documents > 4:
        rows[0, S - S // 16 :] = 0
    return jnp.asarray(rows)


@functools.cache
def draw(B: int, S: int):
    """q, k, v and a cotangent."""
    keys = jax.random.split(jax.random.key(0), 4)
    return tuple(
        jax.random.normal(key, (B, S, heads, N), jnp.bfloat16)
        for key, heads in zip(keys, (H, K, K, H), strict=True)
    )


def passes(implementation: str, segments, *, backward: bool):
    """Jitted: the output, and if wanted the three gradients."""

    def forward(q, k, v):
        return attention(q, k, v, segments, implementation=implementation)

    def both(q, k, v, d_out):
        out, pull_back = jax.vjp(forward, q, k, v)
        return out, *pull_back(d_out)

    return jax.jit(both if backward else lambda q, k, v, d_out: forward(q, k, v))


def check(ours: str, cudnn: str, S: int, documents: int) -> None:
    """Output and gradients against XLA's in fp32; twice the same."""
    segments = None if documents == 1 else segments_of(1, S, documents)
    inputs = draw(1, S)
    with jax.default_matmul_precision("highest"):
        exact = passes("reference", segments, backward=True)(
            *(x.astype(jnp.float32) for x in inputs)
        )
    for name in (ours, cudnn) if segments is None else (ours,):
        run = passes(name, segments, backward=True)
        found, again = run(*inputs), run(*inputs)
        errors = [float(error(x, y)) for x, y in zip(found, exact, strict=True)]
        largest = [
            float(jnp.max(jnp.abs(x.astype(jnp.float32) - y)))
            for x, y in zip(found, exact, strict=True)
        ]
        same = all(bool(jnp.all(x == y)) for x, y in zip(found, again, strict=True))
        print(
            f"check S={S} documents={documents} {name}: rms error of out, dq, dk, dv "
            f"{', '.join(f'{x:.2e}' for x in errors)}; largest "
            f"{', '.join(f'{x:.2e}' for x in largest)}; {'same' if same else 'not same'} twice",
            flush=True,
        )
        if name == ours and (not same or not max(errors) < ALLOWED):
            sys.exit(f"wrong: {name} at S={S}, {documents} documents")


@jax.jit
def error(found, exact):
    """Root mean square of the difference over that of the exact."""
    return jnp.sqrt(jnp.mean((found.astype(jnp.float32) - exact) ** 2) / jnp.mean(exact**2))


def run(implementation: str, B: int, S: int, segments) -> None:
    """Times forward, and forward with backward."""
    pairs = B * S * S / 2 if segments is None else sum_of_squares(np.asarray(segments)) / 2
    for backward in (False, True):
        call = passes(implementation, segments, backward=backward)
        times = samples(call, draw(B, S), count=SAMPLES)
        flops = 4 * N * H * pairs * (3.5 if backward else 1)
        what = "forward+backward" if backward else "forward"
        documents = "unpacked" if segments is None else f"{len(np.unique(segments))} documents"
        report(f"{what} B={B} S={S} {documents} {implementation}", times, flops)


def sum_of_squares(segments) -> int:
    """Σ length² of all documents."""
    return sum(int(n) ** 2 for row in segments for n in np.unique(row, return_counts=True)[1])


def rope(B: int, S: int) -> None:
    """What XLA makes of RoPE, forward and backward, against the bytes that it must move."""
    angles = rope_angles(jnp.arange(S)[None], head_dim=N, theta=10_000.0)
    q, k, *_ = draw(B, S)

    def rotate(q, k):
        return apply_rope(q, angles), apply_rope(k, angles)

    both = jax.jit(lambda q, k: jax.vjp(rotate, q, k)[1]((q, k)))
    moved = 2 * (q.nbytes + k.nbytes)
    for what, call in (("RoPE", jax.jit(rotate)), ("RoPE backward", both)):
        times = samples(call, (q, k), count=SAMPLES)
        rate = moved / statistics.median(times) / 1e9
        print(f"{what} B={B} S={S} {spread(times)}, {rate:,.0f} GB/s", flush=True)


def spread(times: Sequence[float]) -> str:
    """Median and range."""
    middle, least, most = (1e3 * x for x in (statistics.median(times), min(times), max(times)))
    return f"{middle:.3f} ms ({least:.3f} … {most:.3f})"


def report(what: str, times: Sequence[float], flops: float) -> None:
    """One line."""
    rate = flops / statistics.median(times) / 1e12
    print(f"{what}: {spread(times)}, {rate:,.0f} TFLOP/s", flush=True)


if __name__ == "__main__":
    main()
