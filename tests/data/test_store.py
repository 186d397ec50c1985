import json

import numpy as np
import pytest
from served import served

from teukenjax.data import location
from teukenjax.data import writer as writer_module
from teukenjax.data.loader import batches
from teukenjax.data.store import Source, TokenStore
from teukenjax.data.stream import Stream
from teukenjax.data.tokenizer import train_tokenizer
from teukenjax.data.verify import verify
from teukenjax.data.writer import StoreWriter
from teukenjax.errors import TryAgainError, UserError
from teukenjax.recipe import DataConfig


def documents(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(5, 1500, length, np.int32) for length in lengths]


def write(path, tokenizer, *batches, **finish) -> TokenStore:
    with StoreWriter(path, tokenizer) as writer:
        for split, language, ids in batches:
            writer.append(split, language, ids=ids, sizes=[3 * len(row) for row in ids])
        return writer.finish(**finish)


def array_file(store, column: str):
    (file,) = (store.path / "train" / "de" / column / "c").iterdir()
    return file


def test_what_is_written_is_read_with_an_eod_after_every_document(tmp_path, tokenizer):
    first, second, other = documents(7, 0, 30), documents(5, seed=1), documents(4, seed=2)
    store = write(
        tmp_path / "s",
        tokenizer,
        ("train", "de", first),
        ("valid", "ga", other),
        ("train", "de", second),
    )
    flat = np.concatenate([part for row in first + second for part in (row, [4])])
    ids = store.read("train", "de", 0, 46)
    assert ids.dtype == np.int32
    assert np.array_equal(ids, flat)
    assert np.array_equal(store.read("train", "de", 5, 12), flat[5:12])
    assert store.languages == ["de", "ga"]
    assert [store.tokens("train", name) for name in store.languages] == [46, 0]
    assert store.tokens("valid", "ga") == 5


def test_documents_come_without_eod_and_with_their_bytes(tmp_path, tokenizer):
    rows = documents(7, 0, 30, 2)
    store = write(tmp_path / "s", tokenizer, ("valid", "de", rows))
    for limit, count in ((3, 3), (99, 4), (0, 0)):
        found = store.documents("valid", "de", limit)
        assert [size for _, size in found] == [21, 0, 90, 6][:count]
        assert all(np.array_equal(ids, row) for (ids, _), row in zip(found, rows, strict=False))
        assert len(found) == count
    assert store.documents("train", "de", 5) == []


def test_arrays_grow_over_many_shards(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(writer_module, "SHARD", 64)
    monkeypatch.setattr(writer_module, "CHUNK", 16)
    rows = documents(*range(60))
    batches = [("train", "de", rows[start : start + 7]) for start in range(0, 60, 7)]
    store = write(tmp_path / "s", tokenizer, *batches, ("train", "el", documents(1000)))
    found = store.documents("train", "de", 60)
    assert all(np.array_equal(ids, row) for (ids, _), row in zip(found, rows, strict=True))
    assert np.array_equal(store.read("train", "el", 0, 1000), documents(1000)[0])


def test_the_manifest_tells_what_is_inside(tmp_path, tokenizer):
    source = Source(file="de.txt", bytes=5, documents=2)
    store = write(
        tmp_path / "s",
        tokenizer,
        ("train", "de", documents(7, 3)),
        sources=[source],
        lines=2,
        holdout=0.25,
    )
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    counts = manifest["splits"]["train"]["de"]
    assert (counts["documents"], counts["tokens"], counts["bytes"]) == (2, 12, 30)
    assert manifest["sources"] == [{"file": "de.txt", "bytes": 5, "documents": 2}]
    assert (manifest["format"], manifest["lines"], manifest["holdout"]) == (1, 2, 0.25)
    assert (manifest["vocab_size"], manifest["eod_id"], manifest["rejects"]) == (1500, 4, 0)
    assert store.tokenizer().digest == manifest["tokenizer"] == tokenizer.digest
    assert not (tmp_path / "s" / "rejects.jsonl").exists()


def test_rejects_are_kept_and_counted(tmp_path, tokenizer):
    with StoreWriter(tmp_path / "s", tokenizer) as writer:
        writer.reject(b'{"line": 7}\n{"line": 9}\n')
        writer.reject(b'{"line": 11}\n')
        assert writer.finish().manifest.rejects == 3
    lines = (tmp_path / "s" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["line"] for line in lines] == [7, 9, 11]


def test_rejects_of_an_append_that_died_are_not_kept_twice(tmp_path, tokenizer):
    with StoreWriter(tmp_path / "s", tokenizer) as writer:
        writer.reject(b'{"line": 7}\n')
        old = writer.finish()
    with (tmp_path / "s" / "rejects.jsonl").open("ab") as file:
        file.write(b'{"line": 9}\n')  # the manifest does not count it
    with StoreWriter(tmp_path / "s", tokenizer, extend=old) as writer:
        writer.reject(b'{"line": 9}\n')
        assert writer.finish().manifest.rejects == 2
    lines = (tmp_path / "s" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["line"] for line in lines] == [7, 9]


def test_the_digest_names_the_tokens_and_not_where_they_came_from(tmp_path, tokenizer):
    rows = ("train", "de", documents(7, 3))
    first = write(tmp_path / "a", tokenizer, rows, lines=2)
    same = write(tmp_path / "b", tokenizer, rows, lines=3, holdout=0.5)
    other = write(tmp_path / "c", tokenizer, ("train", "de", documents(7, 3, seed=1)))
    assert first.digest == same.digest != other.digest
    assert TokenStore.open(tmp_path / "a").digest == first.digest


def test_a_store_is_never_overwritten(tmp_path, tokenizer):
    (tmp_path / "s").mkdir()
    with pytest.raises(UserError, match=r"s: already exists"):
        StoreWriter(tmp_path / "s", tokenizer)


def test_an_interrupted_writer_leaves_nothing_under_the_name(tmp_path, tokenizer):
    def interrupted():
        with StoreWriter(tmp_path / "s", tokenizer) as writer:
            writer.append("train", "de", ids=documents(5), sizes=[5])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_run_left_is_removed(tmp_path, tokenizer):
    StoreWriter(tmp_path / "s", tokenizer).append(
        "train", "fr", ids=documents(5), sizes=[5]
    )  # and killed: neither finished nor left
    assert (tmp_path / "s.writing" / "train" / "fr").exists()
    store = write(tmp_path / "s", tokenizer, ("train", "de", documents(3)))
    assert store.languages == ["de"]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_flipped_bit_is_found_on_reading(tmp_path, tokenizer):
    store = write(tmp_path / "s", tokenizer, ("train", "de", documents(3000)))
    file = array_file(store, "ids")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"s: 'ids' of language 'de' in train is damaged") as error:
        TokenStore.open(tmp_path / "s").read("train", "de", 0, 10)
    assert "\n" not in str(error.value)


def test_a_lost_shard_is_an_error_and_not_zeros(tmp_path, tokenizer):
    store = write(tmp_path / "s", tokenizer, ("train", "de", [np.zeros(300, np.int32)]))
    assert not store.read("train", "de", 0, 300).any()
    array_file(store, "ids").unlink()
    with pytest.raises(UserError, match="'ids' of language 'de' in train is damaged"):
        TokenStore.open(tmp_path / "s").read("train", "de", 0, 300)


def test_opening_what_is_no_store_says_what_is_wrong(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"is not a token store: it has no manifest\.json"):
        TokenStore.open(tmp_path / "nothing")
    store = write(tmp_path / "s", tokenizer, ("train", "de", documents(3)))
    manifest = store.path / "manifest.json"
    values = json.loads(manifest.read_text())
    for content, message in (
        ("{", "is damaged: not a JSON object"),
        ("[]", "is damaged: not a JSON object"),
        (json.dumps(values | {"format": 2}), "format 2 is not 1"),
        (json.dumps(values | {"lines": "many"}), "is damaged: lines"),
    ):
        manifest.write_text(content)
        with pytest.raises(UserError, match=message):
            TokenStore.open(store.path)


def test_a_missing_or_short_array_is_an_error_at_opening(tmp_path, tokenizer):
    store = write(tmp_path / "s", tokenizer, ("train", "de", documents(3, 5)))
    metadata = store.path / "train" / "de" / "ends" / "zarr.json"
    values = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(values | {"shape": [1]}))
    with pytest.raises(UserError, match="holds 1 elements, the manifest says 2"):
        TokenStore.open(store.path)
    metadata.unlink()
    with pytest.raises(UserError, match="train/de/ends: is missing or damaged"):
        TokenStore.open(store.path)


def test_an_exchanged_tokenizer_is_found(tmp_path, tokenizer):
    store = write(tmp_path / "s", tokenizer, ("train", "de", documents(3)))
    train_tokenizer(["another text altogether"], vocab_size=530).save(
        store.path / "tokenizer.model"
    )
    with pytest.raises(UserError, match=f"the store was made with {tokenizer.digest}"):
        store.tokenizer()


@pytest.mark.parametrize("where", ["{}/s", "memory://appended/s", "file://{}/s"])
def test_an_append_gives_the_store_that_everything_at_once_gives(
    tmp_path, tokenizer, monkeypatch, where
):
    monkeypatch.setattr(writer_module, "SHARD", 64)
    monkeypatch.setattr(writer_module, "CHUNK", 16)
    first, second, other = documents(*range(40)), documents(*range(60), seed=1), documents(9)
    where = where.format(tmp_path)
    old = write(where, tokenizer, ("train", "de", first), ("valid", "ga", other), lines=41)
    with StoreWriter(where, tokenizer, extend=old) as writer:
        for start in range(0, 60, 7):
            rows = second[start : start + 7]
            writer.append("train", "de", ids=rows, sizes=[3 * len(row) for row in rows])
        writer.append("train", "mt", ids=other, sizes=[27])
        grown = writer.finish(lines=61, sources=[Source(file="b", bytes=1)])
    rows = [("train", "de", first + second), ("valid", "ga", other), ("train", "mt", other)]
    assert grown.digest == write(tmp_path / "once", tokenizer, *rows).digest
    assert grown.manifest.lines == 102
    assert verify(where, progress=False) == sum(range(40)) + sum(range(60)) + 100 + 20
    found = grown.documents("train", "de", 1000)
    assert all(np.array_equal(a, b) for (a, _), b in zip(found, first + second, strict=True))
    if not where.startswith("memory"):
        assert [path.name for path in tmp_path.glob("s*")] == ["s"]


def test_a_reader_goes_on_while_text_is_appended(tmp_path, tokenizer, monkeypatch):
    """The append rewrites the reader's last shard under it."""
    monkeypatch.setattr(writer_module, "SHARD", 256)
    monkeypatch.setattr(writer_module, "CHUNK", 16)
    rows = documents(300)
    old = write(tmp_path / "s", tokenizer, ("train", "de", rows))
    assert np.array_equal(old.read("train", "de", 256, 270), rows[0][256:270])
    with StoreWriter(tmp_path / "s", tokenizer, extend=old) as writer:
        writer.append("train", "de", ids=documents(700, seed=1), sizes=[5])
        writer.finish()
    for start in (0, 256, 270, 290):
        assert np.array_equal(
            old.read("train", "de", start, start + 10), rows[0][start : start + 10]
        )


def test_an_append_that_died_leaves_the_store_as_it_was_and_can_be_done_again(
    tmp_path, tokenizer, monkeypatch
):
    monkeypatch.setattr(writer_module, "SHARD", 64)
    monkeypatch.setattr(writer_module, "CHUNK", 16)
    old = write(tmp_path / "s", tokenizer, ("train", "de", documents(50, 30)))
    with StoreWriter(tmp_path / "s", tokenizer, extend=old) as writer:
        writer.append("train", "de", ids=documents(500, seed=1), sizes=[5])
        writer._streams["train", "de"].close()  # everything but the manifest is written
    assert TokenStore.open(tmp_path / "s").digest == old.digest
    assert verify(tmp_path / "s", progress=False) == 82
    with StoreWriter(tmp_path / "s", tokenizer, extend=old) as writer:
        writer.append("train", "de", ids=documents(7, seed=2), sizes=[21])
        again = writer.finish()
    rows = documents(50, 30) + documents(7, seed=2)
    assert again.digest == write(tmp_path / "t", tokenizer, ("train", "de", rows)).digest


def test_a_url_without_a_store_and_one_that_is_no_url_are_errors():
    with pytest.raises(UserError, match=r"memory://none: is not a token store"):
        TokenStore.open("memory://none")
    with pytest.raises(UserError, match=r"gopher://x: cannot be opened"):
        TokenStore.open("gopher://x")


@pytest.fixture
def impatient(monkeypatch):
    """Servers are asked three times again, within a moment."""
    soon = {"max_retries": 3, "initial_delay": "1ms", "max_delay": "1ms"}
    monkeypatch.setattr(location, "RETRIES", soon)
    location.context.cache_clear()
    yield
    location.context.cache_clear()


def test_a_server_that_is_gone_is_no_damage(tmp_path, tokenizer, impatient):
    written = write(tmp_path / "store", tokenizer, ("train", "de", documents(50)))
    with served(written.path) as port:
        store = TokenStore.open(f"http://127.0.0.1:{port}")
        stream = Stream(store, DataConfig(store=str(tmp_path)), sequence_length=8, seed=1)
        assert store.sizes("train", "de") == [150]
    with pytest.raises(TryAgainError, match=f"http://127.0.0.1:{port}: .* 'ids' .* 'de'"):
        next(batches(stream, batch_size=1, first_step=0, rows=[0]))
    with pytest.raises(UserError, match=f"http://127.0.0.1:{port}/.*: cannot be read"):
        TokenStore.open(f"http://127.0.0.1:{port}")


def test_verifying_finds_damage_and_differences(tmp_path, tokenizer):
    store = write(tmp_path / "s", tokenizer, ("train", "de", documents(3000)))
    assert verify(store.path, progress=False) == 3001
    manifest = store.path / "manifest.json"
    values = json.loads(manifest.read_text())
    counts = values["splits"]["train"]["de"]
    for change, message in (
        ({"sha256": "0" * 16}, "the hash of 'ids' is"),
        ({"tokens": 3000}, "the hash of 'ids' is"),
        ({"bytes": 1}, "'bytes' sums to 9000, the manifest says 1"),
    ):
        values["splits"]["train"]["de"] = counts | change
        manifest.write_text(json.dumps(values))
        with pytest.raises(UserError, match=f"language 'de' in train differs: {message}"):
            verify(store.path, progress=False)
    values["splits"]["train"]["de"] = counts
    manifest.write_text(json.dumps(values))
    file = array_file(store, "ends")
    file.write_bytes(file.read_bytes()[:-30] + b"\1" * 30)
    with pytest.raises(UserError, match="'ends' of language 'de' in train is damaged"):
        verify(store.path, progress=False)
