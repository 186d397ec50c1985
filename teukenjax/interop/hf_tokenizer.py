"""A SentencePiece model as a ``tokenizer.json`` that stock ``transformers`` loads.

Teuken's releases ship SentencePiece behind remote code. The files written here need none, and
their ids are those of SentencePiece's ``encode`` (no bos, no eos, one dummy prefix per text).
Four things keep the two equal where a plain conversion is not:

- SentencePiece's search tree holds no byte pieces and no ``<unk>``; that of ``tokenizers`` does,
  and would read the six characters ``<0x0A>`` as a newline. Text is therefore split inside such
  strings, at a place no learned piece spans (a piece has one script, and digits stand alone).
- User-defined pieces always win: they score −0.1, as in SentencePiece (unigram_model.cc).
- Unicode is normalised by NFKC proper. SentencePiece's own table run by ``tokenizers``
  (``Precompiled``) loses the second accent of decomposed text: u + ¨ + ¯ becomes ü.
- The dummy prefix is put on by the normalizer, so the special tokens must be matched after it
  (``normalized=True``): ``<s>a`` is ▁ <s> a, and no part after a special token gets a fresh ▁.

What still differs, with the cause:

- Near-ties. SentencePiece adds scores in fp32 along the whole text, ``tokenizers`` in fp64, so
  segmentations equal to about 1e-7 of the total score may come out differently: 17 of 6,733
  corpus documents (4.4 million tokens), none once the scores are multiples of 1/64.
- A text that is nothing but one special token, such as ``</s>``, has no ▁ before it here, and
  the noncharacter U+FDD0 is ``<unk>``: the price of matching special tokens after the prefix.
- Unicode corner cases: a mark after a letter that is already composed (ê + ´) or marks out of
  canonical order are composed here and left alone by SentencePiece's table; and 172 code points,
  none of them in an alphabet of a European language, that one of the two Unicodes does not know
  yet (134 are too new for ``tokenizers``).
- Decoding, of what no text encodes to: id 0 is ``<unk>`` here and " ⁇ " in SentencePiece; one
  invalid UTF-8 byte spoils its whole run of byte tokens here, and only itself in SentencePiece.
"""

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from teukenjax.data.tokenizer import SPECIAL_PIECES
from teukenjax.errors import UserError
from teukenjax.interop.chat_template import chat_template
from teukenjax.interop.resumable import write_json

Piece = ModelProto.SentencePiece
UNKNOWN = "<unk>"
SPECIAL = (UNKNOWN, *SPECIAL_PIECES)  # ids 0 … 4
SPACE = "▁"  # U+2581, a space inside pieces
NEVER = "\ufdd0"  # a noncharacter: not in any text
USER_DEFINED_SCORE = -0.1
# What the conversion relies on; all are Teuken's options.
TRAINER = {"model_type": 1, "byte_fallback": True, "split_digits": True, "unk_id": 0}
TRAINER |= {"split_by_unicode_script": True, "treat_whitespace_as_suffix": False}
NORMALIZER = {"name": "nfkc", "add_dummy_prefix": True, "remove_extra_whitespaces": False}


def parse_model(model: bytes) -> ModelProto:
    """The content of a ``tokenizer.model``.

    Raises:
      UserError: when it is no SentencePiece model, or one without Teuken's options and ids.
    """
    try:
        proto = ModelProto.FromString(model)
    except DecodeError:
        raise UserError("the tokenizer is not a SentencePiece model") from None
    for spec, required in ((proto.trainer_spec, TRAINER), (proto.normalizer_spec, NORMALIZER)):
        for key, value in required.items():
            if getattr(spec, key) != value:
                found = getattr(spec, key)
                raise UserError(f"tokenizer option {key}={found}: the export needs {value}")
    pieces = tuple(piece.piece for piece in proto.pieces[: len(SPECIAL)])
    if pieces != SPECIAL:
        raise UserError(f"the tokenizer begins with {pieces}: the export needs {SPECIAL}")
    return proto


def fast_tokenizer(proto: ModelProto) -> Tokenizer:
    """The tokenizer that ``tokenizer.json`` describes: text → ids as SentencePiece, and back."""
    lowest = min(piece.score for piece in proto.pieces if piece.type == Piece.NORMAL)
    vocabulary = [(piece.piece, _score(piece, lowest)) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(f"<(?=0x[0-9A-F]{{2}}>|{UNKNOWN[1:]})"), "merged_with_previous"
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),  # the dummy prefix
        ]
    )
    tokenizer.add_special_tokens([_added(piece) for piece in SPECIAL])
    return tokenizer


def write_tokenizer(model: bytes, out: Path, *, context: int, form: str = "plain") -> None:
    """Writes the tokenizer's four files into directory ``out``.

    Args:
      model: content of a ``tokenizer.model``; also copied.
      context: tokens that the model can see.
      form: of the chat template, one of ``data.chat.template.FORMS``.
    """
    fast_tokenizer(parse_model(model)).save(str(out / "tokenizer.json"))
    (out / "tokenizer.model").write_bytes(model)
    write_json(out / "tokenizer_config.json", _tokenizer_config(context, form))
    write_json(out / "special_tokens_map.json", _roles())


def _score(piece: Piece, lowest: float) -> float:
    if piece.type == Piece.NORMAL:
        return piece.score
    # Bytes and <unk> are never matched; but both libraries derive the penalty of an unknown
    # character from the lowest score, so theirs must not be lower.
    return USER_DEFINED_SCORE if piece.type == Piece.USER_DEFINED else lowest


def _normalizer() -> normalizers.Normalizer:
    """NFKC, ▁ for spaces, the dummy prefix; the last two steps are for special tokens only.

    Special tokens are matched after normalization, and as strings that went through it alone:
    they must lose the prefix again, and <unk>, which is no text, must match nothing.
    """
    matched = "|".join(SPECIAL_PIECES)
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(" ", SPACE),
            normalizers.Prepend(SPACE),
            normalizers.Replace(Regex(rf"\A{SPACE}(?=(?:{matched})\z)"), ""),
            normalizers.Replace(Regex(rf"\A{SPACE}{UNKNOWN}\z"), NEVER),
        ]
    )


def _added(piece: str) -> AddedToken:
    return AddedToken(piece, special=True, normalized=True)


def _roles() -> dict[str, str]:
    bos, eos, pad, _ = SPECIAL_PIECES
    return {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": UNKNOWN}


def _tokenizer_config(context: int, form: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {
        # transformers adds none here in any case; GGUF's converter takes them for "not said".
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(index): {"content": piece, **flags, "special": True}
            for index, piece in enumerate(SPECIAL)
        },
        **_roles(),
        "chat_template": chat_template(form),
        "clean_up_tokenization_spaces": False,
        # Without token_type_ids, which Llama's generate refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
