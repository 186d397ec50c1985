"""Whatever is in a file: one line of error or a result; no traceback, no hang, no full memory.

A hundred inputs for each reader; TEUKENJAX_FUZZ=20000 in the environment makes it a campaign.
"""

import contextlib
import gzip
import io
import json
import os
import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from teukenjax.data.documents import DocumentReader
from teukenjax.errors import UserError
from teukenjax.recipe import load

MEMORY_BYTES = 1 << 29  # that all inputs of a test together may add to what the process holds
DEADLINE_MS = 20_000  # of one input, on a machine that is busy with other things
fuzz = settings(
    max_examples=int(os.environ.get("TEUKENJAX_FUZZ", "100")),
    deadline=DEADLINE_MS,
    suppress_health_check=list(HealthCheck),
    database=None,
)

RECIPE = b"""
out: runs/x
steps: 10
model: {width: 32, layers: 2, heads: 4, kv_heads: 2, head_dim: 8, ffn: 64}
data: {store: s}
batch: {sequences: 8}
optimizer: {name: scion}
schedule: [{shape: linear, steps: 2, start: 0.0}, {shape: constant}]
"""
TOKENS = [b"&a ", b"*a", b"<<: ", b"!!", b"[", b"{", b": ", b"\n", b"\xff", b"\x00", b"1e999", b"~"]
LINES = [{"text": "Ein Satz.", "language": "de"}, {"text": "", "language": "x" * 99}, {"text": 1}]
JSONL = b"\n".join(json.dumps(line).encode() for line in LINES)


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b", None], "language": ["de", "en", "fr"]}), out)
    return out.getvalue()


FILES = {
    "d.jsonl": JSONL,
    "d.jsonl.gz": gzip.compress(JSONL),
    "d.jsonl.zst": zstandard.compress(JSONL),
    "d.txt": b"One.\n\nTwo.\n",
    "d.parquet": parquet(),
}
WEIGHTS = save({"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float16)})


@st.composite
def mutations(draw, original: bytes, tokens: list[bytes] | None = None) -> bytes:
    """The original with some bytes replaced, inserted or cut; or bytes of no origin."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        new = draw(st.sampled_from(tokens) if tokens else st.binary(max_size=4))
        content[at : at + draw(st.integers(0, 3))] = new
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@pytest.fixture(autouse=True)
def _bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MEMORY_BYTES


def one_line(error: UserError) -> None:
    assert str(error)
    assert "\n" not in str(error)


@fuzz
@given(content=mutations(RECIPE, TOKENS))
def test_recipes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    try:
        load(path)
    except UserError as error:
        one_line(error)


@pytest.mark.parametrize("name", FILES)
def test_documents(name, tmp_path):
    @fuzz
    @given(content=mutations(FILES[name]))
    def read(content):
        (tmp_path / name).write_bytes(content)
        try:
            for document in DocumentReader([tmp_path / name]):
                assert document.text.strip()
        except UserError as error:
            one_line(error)

    read()


@fuzz
@given(content=mutations(WEIGHTS))
def test_safetensors(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content)
    refused = contextlib.suppress(safetensors.SafetensorError, TypeError)
    with refused, safetensors.safe_open(path, "np") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            file.get_tensor(name)
