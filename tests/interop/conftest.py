"""A tokenizer with Teuken's options, trained on the bundled sample."""

from pathlib import Path

import pytest
import sentencepiece

import teukenjax
from teukenjax.data.tokenizer import train_tokenizer

SAMPLE = Path(teukenjax.__file__).parent / "data" / "sample"


@pytest.fixture(scope="session")
def sample() -> dict[str, str]:
    """Language → text."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(SAMPLE.glob("*.txt"))}


@pytest.fixture(scope="session")
def tokenizer_model(sample) -> bytes:
    return train_tokenizer(sample.values(), vocab_size=2000).model


@pytest.fixture(scope="session")
def reference(tokenizer_model) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
