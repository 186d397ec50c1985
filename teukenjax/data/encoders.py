"""Any tokenizer as the report sees it: SentencePiece models and Hugging Face's tokenizer.json."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from teukenjax.data.tokenizer import MODEL_FILE, Tokenizer
from teukenjax.errors import UserError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
REPLACEMENT = "\ufffd"  # what part of a character decodes to


@dataclass(frozen=True)
class Encoder:
    """Text to ids and back, nothing added at either end."""

    name: str
    encode_batch: Callable[[list[str]], list[list[int]]]
    decode: Callable[[list[int]], str]
    pieces: list[str]  # by id, as the vocabulary writes them
    unknown: int | None  # the id of what the vocabulary cannot say

    @functools.cached_property
    def texts(self) -> list[str]:
        """What each piece stands for alone."""
        return [self.decode([index]) for index in range(len(self.pieces))]

    @functools.cached_property
    def partial(self) -> frozenset[int]:
        """Ids that are bytes or other parts of a character."""
        return frozenset(
            index
            for index, (piece, text) in enumerate(zip(self.pieces, self.texts, strict=True))
            if BYTE.fullmatch(piece) or REPLACEMENT in text
        )


def load_encoder(path: str | Path, name: str | None = None) -> Encoder:
    """The tokenizer in a ``.model`` or ``.json`` file, or in a folder that holds one.

    Raises:
      UserError: when there is none, or it cannot be read.
    """
    path = Path(path)
    name, file = name or _name(path), path
    if path.is_dir():
        found = [path / file for file in (MODEL_FILE, "tokenizer.json") if (path / file).is_file()]
        if not found:
            raise UserError(f"{path}: holds neither {MODEL_FILE} nor tokenizer.json")
        file = found[0]
    return _fast(file, name) if file.suffix == ".json" else _sentencepiece(file, name)


def _name(path: Path) -> str:
    """What tells it from others: a folder's name, when the file has the usual one."""
    usual = path.name in (MODEL_FILE, "tokenizer.json")
    return path.absolute().parent.name if usual else path.stem


def _sentencepiece(file: Path, name: str) -> Encoder:
    model = Tokenizer.load(file)
    return Encoder(
        name=name,
        encode_batch=lambda texts: [row.tolist() for row in model.encode_batch(texts, threads=1)],
        decode=model.decode,
        pieces=model.pieces,
        unknown=model.unknown_id,
    )


def _fast(file: Path, name: str) -> Encoder:
    try:
        model = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{file}: is not a tokenizer.json: {error!s:.80}") from None
    # The model's own spelling counts: an added token may be matched as something else.
    named = model.get_vocab(with_added_tokens=True) | model.get_vocab(with_added_tokens=False)
    pieces = {index: piece for piece, index in named.items()}
    unknown = getattr(model.model, "unk_token", None)
    return Encoder(
        name=name,
        encode_batch=lambda texts: [
            row.ids for row in model.encode_batch(texts, add_special_tokens=False)
        ],
        decode=lambda ids: model.decode(ids, skip_special_tokens=False),
        pieces=[pieces.get(index, "") for index in range(max(pieces) + 1)],
        unknown=model.token_to_id(unknown) if unknown else None,
    )
