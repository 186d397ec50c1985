"""The tokenizer: SentencePiece unigram with Teuken's options and ids, and its training.

The special pieces are *user-defined*, as in Teuken's release: SentencePiece reports no bos, eos
or pad id, adds nothing at either end, and matches the literal strings (``<s>``, ``<eod>``, …)
inside any text. Ids: 0 ``<unk>``, 1 ``<s>``, 2 ``</s>``, 3 ``<pad>``, 4 ``<eod>`` (ends a
document), 5 … 260 placeholders, 261 … 516 the bytes, then the learned pieces.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Int32
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from teukenjax.data.begun import save
from teukenjax.errors import UserError

MODEL_FILE = "tokenizer.model"
UNKNOWN = "<unk>"
EOD = "<eod>"
END_OF_TURN = "</s>"  # closes an answer of a chat
SPECIAL_PIECES = ("<s>", END_OF_TURN, "<pad>", EOD)
PLACEHOLDERS = 256
FIXED_PIECES = 1 + len(SPECIAL_PIECES) + PLACEHOLDERS + 256  # <unk> and the bytes
MAX_SENTENCE_BYTES = 4096
# Not the machine's: each thread sums its own share of the expectations, so the number of threads
# changes their last bits, and with them pieces. 16 on two cores measured 7 % slower than 2.
TRAINING_THREADS = 16


class Tokenizer:
    """A SentencePiece model; ``model`` is the content of its file."""

    def __init__(self, model: bytes):
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        self.digest = hashlib.sha256(model).hexdigest()[:16]  # names the model

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a model file, or the ``tokenizer.model`` in a folder.

        Raises:
          UserError: when that is no SentencePiece model.
        """
        path = Path(path)
        try:
            path = path / MODEL_FILE if path.is_dir() else path
            return cls.parse(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None

    @classmethod
    def parse(cls, model: bytes, origin: str) -> "Tokenizer":
        """A model file's content as a tokenizer; ``origin`` names it in the UserError."""
        try:
            return cls(model)
        except RuntimeError:
            raise UserError(f"{origin}: is not a SentencePiece model") from None

    def save(self, path: str | Path) -> None:
        """Writes the model file that ``load`` reads, whole or not at all."""
        save(Path(path), self.model)

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._processor.get_piece_size()

    @property
    def eod_id(self) -> int:
        """The id that ends a document; a UserError when the model has no such piece."""
        return self._id_of(EOD, "to end documents with")

    @property
    def end_of_turn_id(self) -> int:
        """The id that ends an answer; a UserError when the model has no such piece."""
        return self._id_of(END_OF_TURN, "to end answers with")

    @property
    def special_ids(self) -> frozenset[int]:
        """``<unk>`` and the special pieces, as far as the model has them: what is no text."""
        processor = self._processor
        found = {processor.piece_to_id(piece) for piece in SPECIAL_PIECES}
        return frozenset(found | {processor.unk_id()})

    def _id_of(self, piece: str, purpose: str) -> int:
        index = self._processor.piece_to_id(piece)
        if self._processor.id_to_piece(index) != piece:
            raise UserError(f"tokenizer {self.digest}: has no piece '{piece}' {purpose}")
        return index

    @property
    def unknown_id(self) -> int:
        """The id of what no piece matches; with byte pieces it is never met."""
        return self._processor.unk_id()

    @property
    def pieces(self) -> list[str]:
        """By id, with ▁ for a space."""
        return [self._processor.id_to_piece(index) for index in range(self.vocab_size)]

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without bos or eos: one dummy prefix, special strings inside.

        This is the ``encode`` route of Teuken's Hugging Face class, and the default here: stores
        and exported tokenizers use it.
        """
        return self._processor.encode(text)

    def encode_split(self, text: str) -> list[int]:
        """The ids of ``text`` by the other route of Teuken's class, that of calling it.

        The text is split at special strings first and each part encoded alone, so every part
        after a special piece begins with a ▁ of its own. Chat turns rendered by
        ``apply_chat_template(tokenize=True)`` took this route.
        """
        parts = re.split(f"({'|'.join(map(re.escape, (UNKNOWN, *SPECIAL_PIECES)))})", text)
        ids: list[int] = []
        for number, part in enumerate(parts):
            ids += [self._processor.piece_to_id(part)] if number % 2 else self.encode(part)
        return ids

    def encode_batch(self, texts: list[str], *, threads: int) -> list[Int32[np.ndarray, " _"]]:
        """The ids of every text, as read-only arrays."""
        return self._processor.encode(texts, num_threads=threads, out_type="numpy")

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, " ids"]) -> str:
        """The text of ``ids``, special pieces as their literal strings."""
        return self._processor.decode([int(index) for index in ids])


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Trains a unigram model of ``vocab_size`` pieces; equal texts give an equal model.

    The options are those of Teuken's ``tokenizer_config.json``; texts are taken line by line.

    Raises:
      UserError: for no text at all, or a vocabulary that the text cannot fill or that cannot
        hold its characters; the message gives the bound.
    """
    sentences = [sentence for text in texts for sentence in split_sentences(text)]
    if not sentences:
        raise UserError("no text to train a tokenizer on: at least one line is needed")
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)  # of the shuffling
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            normalization_rule_name="nfkc",
            character_coverage=0.9999,
            byte_fallback=True,
            split_digits=True,
            split_by_whitespace=True,
            split_by_number=True,
            allow_whitespace_only_pieces=True,
            remove_extra_whitespaces=False,
            max_sentence_length=MAX_SENTENCE_BYTES,
            shuffle_input_sentence=True,
            input_sentence_size=0,
            train_extremely_large_corpus=True,
            user_defined_symbols=[*SPECIAL_PIECES, *_placeholders()],
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explain(error, vocab_size) from None
    return Tokenizer(_round_scores(model.getvalue()))


def _round_scores(model: bytes) -> bytes:
    """The model with its pieces' scores rounded to 1/64.

    SentencePiece adds scores in fp32 along a text, Hugging Face's reader of the same model in
    fp64; so of two segmentations that are nearly equal, one could win here and the other there.
    Sums of multiples of 1/64 are exact in both.
    """
    proto = ModelProto.FromString(model)
    for piece in proto.pieces:
        piece.score = round(piece.score * 64) / 64
    return proto.SerializeToString()


def _placeholders() -> Iterator[str]:
    return (f"<placeholder_tok_{number}>" for number in range(PLACEHOLDERS))


def split_sentences(text: str) -> Iterator[str]:
    """The lines of ``text``, cut to what the trainer takes: it drops longer ones silently."""
    for line in text.split("\n"):
        if len(line) * 4 <= MAX_SENTENCE_BYTES:
            pieces = [line]
        else:
            raw = line.encode()
            starts = range(0, len(raw), MAX_SENTENCE_BYTES)
            # A character that straddles a cut is left out.
            pieces = [raw[at : at + MAX_SENTENCE_BYTES].decode(errors="ignore") for at in starts]
        yield from (piece for piece in pieces if piece.strip())


def _explain(error: RuntimeError, vocab_size: int) -> Exception:
    """SentencePiece's complaint about the size as one about ours; any other as it is."""
    small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
    large = re.search(r"too high .* value <= (\d+)", str(error))
    if small:
        return UserError(
            f"a vocabulary of {vocab_size} pieces is too small for this text: allowed: "
            f"{small[1]} or more ({FIXED_PIECES} fixed pieces and the characters)"
        )
    if large:
        return UserError(
            f"a vocabulary of {vocab_size} pieces is too large for this text: allowed: "
            f"{large[1]} or fewer"
        )
    return error
