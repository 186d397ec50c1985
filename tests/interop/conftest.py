"""A tokenizer with Teuken's options, trained on the bundled sample."""

from pathlib import Path

import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

import teukenjax
from teukenjax.data.tokenizer import train_tokenizer

SAMPLE = Path(teukenjax.__file__).parent / "data" / "sample"


@pytest.fixture(scope="session")
def sample() -> dict[str, str]:
    """Language → text."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(SAMPLE.glob("*.txt"))}


@pytest.fixture(scope="session")
def trained_model(sample, tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(sample.values(), vocab_size=2000).save(file)
    return file.read_bytes()


@pytest.fixture(scope="session")
def tokenizer_model(trained_model) -> bytes:
    """With scores rounded to 1/64: their sums are exact in fp32, so all break ties alike."""
    proto = ModelProto.FromString(trained_model)
    for piece in proto.pieces:
        piece.score = round(piece.score * 64) / 64
    return proto.SerializeToString()


@pytest.fixture(scope="session")
def reference(tokenizer_model) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
