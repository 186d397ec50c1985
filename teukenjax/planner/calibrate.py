"""Measures what a profile holds, on the devices at hand, in minutes."""

import datetime
import functools
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
from rich.console import Console
from ruamel.yaml import YAML

from teukenjax.data.begun import save
from teukenjax.errors import UserError
from teukenjax.kernels.attention import attention
from teukenjax.kernels.choice import Device
from teukenjax.planner.collective_times import collective_times
from teukenjax.planner.profile import Profile
from teukenjax.planner.stopwatch import seconds

PRODUCTS = (  # M, K, N
    (16_384, 4096, 13_440),
    (16_384, 13_440, 4096),
    (16_384, 4096, 4096),
    (8192, 8192, 8192),
)
ATTENTION = (4, 4096, 32, 8, 128)  # B, S, H, K, N
COPY_BYTES = 2**32
MESSAGES = tuple(2**power for power in range(16, 31, 2))  # bytes of the whole array
REPEATS = 20


def calibrate(
    *,
    products=PRODUCTS,
    heads=ATTENTION,
    copy_bytes: int = COPY_BYTES,
    messages=MESSAGES,
    repeats: int = REPEATS,
) -> Profile:
    """The profile of all local devices; the sizes are arguments for small machines."""
    devices = jax.local_devices()
    rates = [product_rate(shape, repeats) for shape in products]
    return Profile(
        device_kind=devices[0].device_kind,
        devices=len(devices),
        date=datetime.date.today().isoformat(),
        versions={
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "platform": devices[0].client.platform_version.replace("\n", " "),
        },
        product_tflops=max(rates) / 1e12,
        attention_tflops=attention_rate(heads, repeats) / 1e12,
        copy_gb_per_s=copy_rate(copy_bytes, repeats) / 1e9,
        collectives=tuple(collective_times(messages, repeats)),
    )


def product_rate(shape: tuple[int, int, int], repeats: int) -> float:
    """FLOP/s of a bf16 product M × K × N."""
    M, K, N = shape
    keys = jax.random.split(jax.random.key(0))
    a = jax.random.normal(keys[0], (M, K), jnp.bfloat16)
    b = jax.random.normal(keys[1], (K, N), jnp.bfloat16)
    return 2 * M * K * N / seconds(jax.jit(jnp.matmul), a, b, repeats=repeats)


def attention_rate(heads: tuple[int, int, int, int, int], repeats: int) -> float:
    """FLOP/s of causal attention, forward and backward, half of the square counted."""
    B, S, H, K, N = heads
    refused = Device.of(jax.local_devices()[0]).gpu_refusal
    chosen = "reference" if refused else "cudnn"
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = ((B, S, H, N), (B, S, K, N), (B, S, K, N))
    q, k, v = (
        jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)
    )

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradients(q, k, v):
        return attention(q, k, v, implementation=chosen).astype(jnp.float32).sum()

    return 7 * B * H * S * S * N / seconds(gradients, q, k, v, repeats=repeats)


def copy_rate(size: int, repeats: int) -> float:
    """Bytes/s of x + 1 in fp32, read and written."""
    x = jnp.zeros(size // 4, jnp.float32)
    return 2 * size / seconds(jax.jit(lambda x: x + 1), x, repeats=repeats)


def write(profile: Profile, out: Path) -> None:
    """As YAML, whole or not at all.

    Raises:
      UserError: when it cannot be written.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False
    text = io.StringIO()
    yaml.dump(profile.model_dump(mode="json"), text)
    try:
        save(out, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None


def show(console: Console, profile: Profile) -> None:
    """The rates, a line each."""
    versions = ", ".join(f"{name} {version}" for name, version in profile.versions.items())
    console.print(f"{profile.devices} × {profile.device_kind}, {versions}")
    console.print(f"product    {profile.product_tflops:,.4g} TFLOP/s")
    console.print(f"attention  {profile.attention_tflops:,.4g} TFLOP/s, forward + backward")
    console.print(f"copy       {profile.copy_gb_per_s:,.4g} GB/s")
    for timing in profile.collectives:
        console.print(
            f"{timing.kind} of {timing.bytes / 2**20:,.4g} MiB: {timing.seconds * 1e6:,.1f} µs, "
            f"each sends {profile.sent_gb_per_s(timing):,.4g} GB/s"
        )
