"""Nothing that is read can run, and nothing that is read can fill the memory.

The trust model is in SECURITY.md.
"""

import ast
import io
import itertools
import json
import pickle
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors

from teukenjax.data.location import Location
from teukenjax.data.store import TokenStore
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.recipe import load

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("teukenjax/**/*.py"), *ROOT.glob("tools/**/*.py")])
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve",  # code in data
    "zipfile", "tarfile",  # paths in data
}  # fmt: skip
FORBIDDEN_CALLS = {
    "eval", "exec", "__import__", "compile", "os.system", "os.popen", "torch.load",
    "unpack_archive", "shutil.unpack_archive", "pickle.load", "pickle.loads",
}  # fmt: skip
FORBIDDEN_ARGUMENTS = {
    ("allow_pickle", True), ("trust_remote_code", True), ("shell", True), ("typ", "unsafe"),
}  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_can_run_what_it_reads(path):
    assert list(faults(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from zipfile import ZipFile", "eval(x)", "np.load(f, allow_pickle=True)"],
)
def test_the_search_finds_what_it_looks_for(text):
    assert list(faults(text))


def faults(text: str):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ({alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom):
            yield from ({(node.module or "").split(".")[0]} & FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call):
            yield from ({ast.unparse(node.func)} & FORBIDDEN_CALLS)
            for word in node.keywords:
                if isinstance(word.value, ast.Constant):
                    yield from ({(word.arg, word.value.value)} & FORBIDDEN_ARGUMENTS)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_a_pickle_in_a_shard_is_not_run(tmp_path):
    from teukenjax.data.shards import Part

    trace = tmp_path / "was-here"
    (tmp_path / "part.json").write_text('{"languages": [], "lines": 0, "files": {}}')
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(trace)], object), allow_pickle=True)
    for name in ("ids", "documents"):
        (tmp_path / f"{name}.npy").write_bytes(buffer.getvalue())
    (tmp_path / "rejects.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"allow_pickle|[Oo]bject"):
        Part.load(tmp_path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))  # the bomb is real
    assert trace.exists()


RECIPES = {
    "tag": "out: !!python/object/apply:os.system ['touch TRACE']",
    "name tag": "out: !!python/name:os.system",
    "laughs": "a: &a [x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, name in itertools.pairwise("abcdefghijk")
    ),
    "cycle": "a: &a [*a]",
    "deep": "a: " + "[" * 5000 + "]" * 5000,
    "large": "#" * (2 << 20),
    "list": "- 1\n- 2",
    "binary": "\x00\x01",
    "merge of itself": "a: &a\n  <<: *a\n  b: 1",
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_one_line(name, tmp_path):
    path, trace = tmp_path / "recipe.yaml", tmp_path / "trace"
    path.write_text(RECIPES[name].replace("TRACE", str(trace)))
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.process_time() - began < 20  # generous: it is a bound, not a benchmark
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b"{" * 10, b"\xff\xfe", b"1", b'{"format": 1}']
)
def test_a_hostile_manifest_is_one_line(content, tmp_path):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        TokenStore.open(tmp_path)
    assert "\n" not in str(caught.value)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize(
    "model",
    [
        b"\x0a" + varint(1 << 62) + b"x",  # a piece of 4 EiB
        b"\x0a" + varint((1 << 31) - 1) + b"x",
        b"\x0a\x02\x0a\x7f",  # a string that ends beyond its message
        b"",
        b"\x80" * 64,
    ],
)
def test_a_tokenizer_with_a_false_length_is_refused(model):
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        Tokenizer.parse(model, "model")


def tensors(header: dict | bytes, data: bytes = b"\x00" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape=(2,)) -> dict:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        tensors({"a": tensor(0, 8), "b": tensor(4, 12)}),
        tensors({"a": tensor(0, 1 << 60)}),
        tensors({"a": tensor(0, 8, (1 << 62, 1 << 62))}),
        tensors({"a": tensor(8, 0)}),
        tensors({}, length=1 << 62),
        tensors(b"{" * 1000),
        tensors(b'{"a":' * 10_000),
        b"",
    ],
)
def test_hostile_safetensors_are_refused_by_their_library(content, tmp_path):
    """It is what reads weights that were not written by us."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, "np") as file:
        file.get_tensor("a")


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(UserError, match=r"…@host/store: .*password") as caught:
        Location("s3://me:hunter2@host/store")
    assert "hunter2" not in str(caught.value)
