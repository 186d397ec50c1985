import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from teukenjax.data import prepare as module
from teukenjax.data import shards
from teukenjax.data.documents import DocumentReader, find_files
from teukenjax.data.prepare import SAMPLE, prepare
from teukenjax.data.report import print_store
from teukenjax.errors import UserError


@pytest.fixture
def model_file(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "given.model")
    return tmp_path / "given.model"


def corpus(path, **counts: int):
    """A folder of JSON lines, document i of each language being "<language> <i>"."""
    (path / "text").mkdir()
    for language, count in counts.items():
        rows = [json.dumps({"text": f"{language} {number}"}) for number in range(count)]
        (path / "text" / f"{language}.jsonl").write_text("".join(row + "\n" for row in rows))
    return path / "text"


def texts(store, split: str, language: str) -> list[str]:
    tokenizer = store.tokenizer()
    return [tokenizer.decode(ids) for ids, _ in store.documents(split, language, 10_000)]


def test_every_kth_document_of_each_language_is_held_out(tmp_path, model_file):
    text = corpus(tmp_path, de=25, ga=9, mt=10)
    store = prepare(text, tmp_path / "s", tokenizer=model_file, holdout=0.1, progress=False)
    assert texts(store, "valid", "de") == ["de 9", "de 19"]
    assert texts(store, "train", "de") == [f"de {i}" for i in range(25) if i not in (9, 19)]
    assert texts(store, "valid", "ga") == []
    assert texts(store, "train", "ga") == [f"ga {i}" for i in range(9)]
    assert texts(store, "valid", "mt") == ["mt 9"]


def test_without_holdout_everything_is_for_training(tmp_path, model_file):
    text = corpus(tmp_path, de=25)
    store = prepare(text, tmp_path / "s", tokenizer=model_file, holdout=0.0, progress=False)
    assert len(texts(store, "train", "de")) == 25
    assert store.manifest.splits["valid"] == {}


def test_languages_are_counted_apart_when_a_file_mixes_them(tmp_path, model_file):
    rows = [{"text": f"{lang} {i}", "lang": lang} for i in range(4) for lang in ("de", "fr")]
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    store = prepare(file, tmp_path / "s", tokenizer=model_file, holdout=0.5, progress=False)
    for language in ("de", "fr"):
        assert texts(store, "train", language) == [f"{language} 0", f"{language} 2"]
        assert texts(store, "valid", language) == [f"{language} 1", f"{language} 3"]


def test_the_bundled_sample_becomes_a_store(tmp_path):
    store = prepare("sample", tmp_path / "s", train_tokenizer=1500, holdout=0.2, progress=False)
    documents = list(DocumentReader(find_files(SAMPLE)))
    assert store.languages == sorted({document.language for document in documents})
    assert len(store.languages) == 24
    counts = [c for languages in store.manifest.splits.values() for c in languages.values()]
    assert sum(c.documents for c in counts) == store.manifest.lines == len(documents)
    assert sum(c.bytes for c in counts) == sum(len(d.text.encode()) for d in documents)
    assert store.manifest.vocab_size == 1500


def test_the_same_text_gives_the_same_store_on_any_number_of_processes(tmp_path, monkeypatch):
    options = {"train_tokenizer": 1500, "tokenizer_bytes_per_language": 4096, "progress": False}
    one = prepare(SAMPLE, tmp_path / "a", processes=1, **options)
    monkeypatch.setattr(shards, "SHARD_BYTES", 5000)
    many = prepare("sample", tmp_path / "b", processes=3, **options)
    assert one.digest == many.digest


def test_the_tokenizer_sees_a_balanced_sample_of_training_documents_only(tmp_path, monkeypatch):
    text = corpus(tmp_path, de=4000, ga=20)
    seen = []

    def stop(sentences, **_):
        seen.extend(sentences)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(
            text,
            tmp_path / "s",
            train_tokenizer=600,
            holdout=0.5,
            tokenizer_bytes_per_language=5000,
            progress=False,
        )
    german = {int(line[3:]) for line in seen if line.startswith("de ")}
    irish = {int(line[3:]) for line in seen if line.startswith("ga ")}
    assert irish == set(range(0, 20, 2))
    assert all(number % 2 == 0 for number in german)
    assert 4980 < sum(len(f"de {number}") for number in german) <= 5000
    assert 1600 < sum(german) / len(german) < 2400  # from everywhere, not from the beginning
    assert not (tmp_path / "s").exists()


def test_broken_lines_are_kept_beside_the_store(tmp_path, model_file):
    text = corpus(tmp_path, de=9)
    with (text / "de.jsonl").open("a") as file:
        file.write("nonsense\n")
    store = prepare(text, tmp_path / "s", tokenizer=model_file, max_broken=0.1, progress=False)
    (reject,) = map(json.loads, (store.path / "rejects.jsonl").read_text().splitlines())
    assert (reject["line"], reject["raw"]) == (10, "nonsense")
    assert (store.manifest.lines, store.manifest.rejects) == (10, 1)
    with pytest.raises(UserError, match=r"de\.jsonl:10: is not JSON: .*; 1 of 10 lines"):
        prepare(text, tmp_path / "t", tokenizer=model_file, progress=False)
    assert not (tmp_path / "t").exists()


def test_what_too_many_broken_lines_stopped_goes_on_when_more_are_allowed(
    tmp_path, model_file, encoded
):
    text = corpus(tmp_path, de=9)
    with (text / "de.jsonl").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(UserError, match=r"de\.jsonl:10"):
        prepare(text, tmp_path / "t", tokenizer=model_file, progress=False)
    assert encoded == [0, 1, 2, 3]
    prepare(text, tmp_path / "t", tokenizer=model_file, max_broken=0.1, progress=False)
    assert encoded == [0, 1, 2, 3]


@pytest.fixture
def encoded(monkeypatch):
    """The numbers of the shards that are encoded, which hold two or three documents each."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 40)
    numbers, encode = [], shards.ShardEncoder.__call__

    def counted(self, number, records):
        encode(self, number, records)
        numbers.append(number)

    monkeypatch.setattr(shards.ShardEncoder, "__call__", counted)
    return numbers


def test_a_finished_shard_is_never_done_again(tmp_path, model_file, encoded, monkeypatch):
    text = corpus(tmp_path, de=20, mt=10)
    options = {"tokenizer": model_file, "holdout": 0.2, "progress": False}
    whole = prepare(text, tmp_path / "whole", **options)
    shards_of_all = list(encoded)
    assert len(shards_of_all) > 8
    encoded.clear()

    def stop_at_five(self, number, records):
        if number == 5:
            (self.parts / "000005.partial").mkdir()  # as a kill would leave it
            raise KeyboardInterrupt
        call(self, number, records)

    call = shards.ShardEncoder.__call__
    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardEncoder, "__call__", stop_at_five)
        with pytest.raises(KeyboardInterrupt):
            prepare(text, tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()
    store = prepare(text, tmp_path / "s", **options)
    assert encoded == shards_of_all
    assert store.digest == whole.digest
    assert sorted(path.name for path in tmp_path.glob("s*")) == ["s"]


def test_a_tokenizer_is_not_trained_again(tmp_path, monkeypatch):
    text = corpus(tmp_path, de=400)
    options = {"train_tokenizer": 530, "progress": False}

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_shards", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(text, tmp_path / "s", **options)
    monkeypatch.setattr(module, "train", interrupt)
    assert prepare(text, tmp_path / "s", **options).manifest.vocab_size == 530


def test_a_killed_prepare_goes_on_where_it_stopped(tmp_path, model_file):
    """SIGKILL to the command while its worker processes encode."""
    text = tmp_path / "text"
    text.mkdir()
    rows = [json.dumps({"text": f"{number} Zeilen Text " * 40}) + "\n" for number in range(4000)]
    (text / "de.jsonl").write_text("".join(rows))
    whole = prepare(text, tmp_path / "whole", tokenizer=model_file, progress=False)
    script = (
        "from teukenjax.data import prepare, shards\n"
        "shards.SHARD_BYTES = 20_000\n"
        "if __name__ == '__main__':\n"
        f"    prepare.prepare({str(text)!r}, {str(tmp_path / 's')!r}, progress=False,\n"
        f"        tokenizer={str(model_file)!r}, processes=2)\n"
    )
    parts = tmp_path / "s.partial" / "parts"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and len(list(parts.glob("00????"))) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in parts.glob("[0-9]" * 6)}
    assert 5 <= len(done) < 150
    while any(_is_running(pid) for pid in _session(process.pid)):
        assert time.monotonic() < deadline  # the workers end with their parent
        time.sleep(0.05)
    seen = {}
    remove = shutil.rmtree

    def keep_times(folder, *rest, **options):
        if str(folder) == str(tmp_path / "s.partial"):
            seen.update({path: path.stat().st_mtime_ns for path in parts.iterdir()})
        remove(folder, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 20_000)
        patch.setattr(shutil, "rmtree", keep_times)
        store = prepare(text, tmp_path / "s", tokenizer=model_file, progress=False)
    assert store.digest == whole.digest
    assert len(seen) > len(done)
    assert {path: seen[path] for path in done} == done


def _session(leader: int) -> list[int]:
    output = subprocess.run(["ps", "-s", str(leader), "-o", "pid="], capture_output=True, text=True)
    return [int(pid) for pid in output.stdout.split()]


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def test_unfinished_work_of_another_kind_is_refused(tmp_path, model_file, encoded, monkeypatch):
    text = corpus(tmp_path, de=20)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_put_together", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(text, tmp_path / "s", tokenizer=model_file, progress=False)
    with pytest.raises(
        UserError, match=r"s\.partial: was begun with tokenizer=.*given\.model, not"
    ):
        prepare(text, tmp_path / "s", train_tokenizer=600, progress=False)
    (text / "fr.jsonl").write_text('{"text": "deux"}\n')
    with pytest.raises(UserError, match=r"begun with other files \(.*fr\.jsonl has changed\)"):
        prepare(text, tmp_path / "s", tokenizer=model_file, progress=False)


def test_a_second_writer_is_refused(tmp_path, model_file, monkeypatch):
    text = corpus(tmp_path, de=5)
    put_together = module._put_together

    def meanwhile(*arguments):
        with pytest.raises(UserError, match=r"s: is being written by another process"):
            prepare(text, tmp_path / "s", tokenizer=model_file, progress=False)
        put_together(*arguments)

    monkeypatch.setattr(module, "_put_together", meanwhile)
    prepare(text, tmp_path / "s", tokenizer=model_file, progress=False)


def test_a_full_disk_is_one_line_and_keeps_the_finished_shards(
    tmp_path, model_file, encoded, monkeypatch
):
    text = corpus(tmp_path, de=20)
    write = Path.write_bytes

    def full(path, content):
        if "000003" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        message = (
            r"000003\.partial/ids\.npy: No space left on device; what is finished is kept in .*/s\."
        )
        with pytest.raises(UserError, match=message):
            prepare(text, tmp_path / "s", tokenizer=model_file, progress=False)
    assert encoded == [0, 1, 2]
    prepare(text, tmp_path / "s", tokenizer=model_file, progress=False)
    assert encoded == list(range(len(encoded)))


def test_an_append_is_the_store_of_all_the_text(tmp_path, model_file, monkeypatch):
    (tmp_path / "b").mkdir()
    first, second = corpus(tmp_path, de=25, mt=3), corpus(tmp_path / "b", de=17, fr=30)
    both = tmp_path / "both"
    for number, folder in enumerate((first, second)):
        (both / str(number)).mkdir(parents=True)
        for file in folder.iterdir():
            shutil.copy(file, both / str(number))
    options = {"progress": False, "holdout": 0.1}
    whole = prepare(both, tmp_path / "whole", tokenizer=model_file, **options)
    prepare(first, tmp_path / "s", tokenizer=model_file, **options)
    grown = prepare(second, tmp_path / "s", append=True, progress=False)
    assert grown.digest == whole.digest
    assert [source.documents for source in grown.manifest.sources] == [25, 3, 17, 30]
    monkeypatch.chdir(second)
    for again in (second, "."):
        with pytest.raises(UserError, match=r"de\.jsonl: is in the store .*/s already"):
            prepare(again, tmp_path / "s", append=True, progress=False)
    with pytest.raises(UserError, match=r"holdout=0\.5: the store .*/s was made with 0\.1"):
        prepare(SAMPLE, tmp_path / "s", append=True, holdout=0.5, progress=False)
    with pytest.raises(UserError, match="an append takes the store's own tokenizer"):
        prepare(SAMPLE, tmp_path / "s", append=True, tokenizer=model_file, progress=False)
    with pytest.raises(UserError, match="none: is not a token store"):
        prepare(SAMPLE, tmp_path / "none", append=True, progress=False)


def test_a_store_at_a_url_is_that_of_a_disk(tmp_path, model_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = corpus(tmp_path, de=25)
    local = prepare(text, tmp_path / "s", tokenizer=model_file, progress=False)
    remote = prepare(text, "memory://bucket/s", tokenizer=model_file, progress=False)
    assert remote.digest == local.digest
    assert remote.tokenizer().digest == local.tokenizer().digest
    with pytest.raises(UserError, match="memory://bucket/s: already exists"):
        prepare(text, "memory://bucket/s", tokenizer=model_file, progress=False)


def test_a_column_of_numbers_is_all_rejects(tmp_path, model_file):
    file = tmp_path / "de.parquet"
    pq.write_table(pa.table({"text": [1, 2, 3]}), file)
    with pytest.raises(
        UserError, match=r"de\.parquet:1: field 'text' is not a string but int; 3 of"
    ):
        prepare(file, tmp_path / "s", tokenizer=model_file, progress=False)


def test_an_empty_file_of_a_language_is_said(tmp_path, model_file):
    text = corpus(tmp_path, de=5, ga=0)
    store = prepare(text, tmp_path / "s", tokenizer=model_file, progress=False)
    screen = io.StringIO()
    print_store(Console(file=screen, width=200), store)
    assert f"{text / 'ga.jsonl'}: holds no documents" in screen.getvalue()


@pytest.mark.parametrize("options", [{}, {"train_tokenizer": 600, "tokenizer": "x.model"}])
def test_exactly_one_tokenizer_is_needed(tmp_path, options):
    with pytest.raises(UserError, match="give either train_tokenizer"):
        prepare("sample", tmp_path / "s", progress=False, **options)


@pytest.mark.parametrize("holdout", [-0.1, 0.6, 1.0])
def test_a_holdout_out_of_range_is_refused(tmp_path, holdout):
    with pytest.raises(UserError, match=f"holdout={holdout}: a share from 0 to 0.5 is allowed"):
        prepare("sample", tmp_path / "s", train_tokenizer=600, holdout=holdout, progress=False)


def test_a_corpus_without_documents_is_refused(tmp_path, model_file):
    file = tmp_path / "de.txt"
    file.write_text("\n \n\n")
    for tokenizer in ({"tokenizer": model_file}, {"train_tokenizer": 600}):
        with pytest.raises(UserError, match="no documents in 1 files"):
            prepare(file, tmp_path / "s", progress=False, **tokenizer)
    assert not (tmp_path / "s").exists()


def test_an_existing_store_is_refused_before_any_work(tmp_path, model_file):
    store = prepare(corpus(tmp_path, de=3), tmp_path / "s", tokenizer=model_file, progress=False)
    with pytest.raises(UserError, match="already exists"):
        prepare(tmp_path / "nothing", store.path, tokenizer=model_file, progress=False)


def test_progress_is_shown_on_standard_error_or_not_at_all(tmp_path, model_file, capfd):
    text = corpus(tmp_path, de=3)
    prepare(text, tmp_path / "a", tokenizer=model_file, progress=False)
    assert capfd.readouterr() == ("", "")
    prepare(text, tmp_path / "b", tokenizer=model_file, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "encoding" in err
