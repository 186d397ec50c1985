"""Strict by default: eight fake CPU devices, rank promotion raises, warnings are errors."""

import os

# Before anything touches a device: every test is a sharding test.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import shutil

import jax
import pytest
from rich.console import Console

from teukenjax.data.prepare import SAMPLE, prepare

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """Programs that several tests share are compiled once a session."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Four languages of the bundled sample, one document in four held out."""
    text = tmp_path_factory.mktemp("text")
    for language in ("de", "el", "en", "mt"):
        shutil.copy(SAMPLE / f"{language}.txt", text)
    path = tmp_path_factory.mktemp("data") / "store"
    return prepare(text, path, train_tokenizer=900, holdout=0.25, progress=False)


@pytest.fixture
def console():
    return Console(quiet=True)
