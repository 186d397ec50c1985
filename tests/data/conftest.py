"""A tokenizer trained once, and stores whose ids say where they are."""

import numpy as np
import pytest

from teukenjax.data.prepare import SAMPLE
from teukenjax.data.tokenizer import Tokenizer, train_tokenizer
from teukenjax.data.writer import StoreWriter


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = [file.read_text(encoding="utf-8") for file in sorted(SAMPLE.glob("*.txt"))]
    return train_tokenizer(texts, vocab_size=1500)


@pytest.fixture
def counting_store(tmp_path, tokenizer):
    """Makes a store in which id k of each language is k (but for the eod at the end)."""

    def make(**tokens: int):
        with StoreWriter(tmp_path / "store", tokenizer) as writer:
            for language, count in tokens.items():
                ids = np.arange(count - 1, dtype=np.int32)
                writer.append("train", language, ids=[ids], sizes=[count])
            return writer.finish()

    return make
