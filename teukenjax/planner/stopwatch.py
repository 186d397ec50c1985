"""Seconds of a call on a device."""

import time
from collections.abc import Callable

import jax


def seconds(function: Callable, *arguments, repeats: int) -> float:
    """Of one call: a run of ``repeats`` calls is timed, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    start = time.perf_counter()
    for _ in range(repeats):
        result = function(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats
