import json

import pytest

from teukenjax.data import prepare as module
from teukenjax.data.documents import DocumentReader, find_files
from teukenjax.data.prepare import SAMPLE, prepare
from teukenjax.data.tokenizer import Tokenizer
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


def test_the_same_text_gives_the_same_store_on_any_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 1000)
    options = {"train_tokenizer": 1500, "tokenizer_bytes_per_language": 4096, "progress": False}
    one = prepare(SAMPLE, tmp_path / "a", threads=1, **options)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 1 << 22)
    many = prepare("sample", tmp_path / "b", threads=3, **options)
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
    assert not (tmp_path / "t.partial").exists()


def test_an_interrupted_run_leaves_no_store(tmp_path, model_file, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "encode_batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus(tmp_path, de=3), tmp_path / "s", tokenizer=model_file, progress=False)
    assert not (tmp_path / "s").exists()


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
