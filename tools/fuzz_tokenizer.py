"""tokenizer.json against SentencePiece, on random Unicode strings and on text: ids, by cause.

    uv run python tools/fuzz_tokenizer.py TOKENIZER [--texts DIR] [--strings 1000000]

TOKENIZER is a SentencePiece model with Teuken's options. Half of the strings are drawn from all of
Unicode, half from the letters, marks, spaces and special strings of European text. A string whose
ids differ is put under the first cause of the list in interop/hf_tokenizer.py that it shows.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer as Fast

from teukenjax.data.documents import DocumentReader, find_files
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.interop.hf_tokenizer import NEVER, SPECIAL, fast_tokenizer, parse_model

BATCH = 10_000
PIECES = [*SPECIAL, "<placeholder_tok_7>", "<0x0A>", "<", ">", "0x", " ", "  ", "\n", "\t", "▁"]
EUROPE = [*map(chr, range(0x20, 0x250)), *map(chr, range(0x370, 0x530))]
EUROPE += [*map(chr, range(0x300, 0x370)), *map(chr, range(0x2000, 0x2070))]


def main() -> int:
    """Prints counts and the first example of each cause; 1 when one is not on the list."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--texts", type=Path, help="documents, as `data prepare` takes them")
    parser.add_argument("--strings", type=int, default=1_000_000)
    options = parser.parse_args()
    model = Tokenizer.load(options.tokenizer).model
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    fast = fast_tokenizer(parse_model(model))
    found: dict[str, list[str]] = {}
    counts = {"random strings": compare(fast, reference, strings(options.strings), found)}
    if options.texts:
        counts["documents"] = compare(fast, reference, documents(options.texts), found)
    for kind, count in counts.items():
        print(f"{count:,} {kind}")
    for cause, examples in found.items():
        print(f"{len(examples):,} differ: {cause}; such as {min(examples, key=len)!a:.100}")
    return int(UNLISTED in found)


UNLISTED = "for a cause that is not on the list"


def strings(count: int) -> Iterator[str]:
    """Random strings of up to 24 characters or special pieces; the same on every machine."""
    draw = random.Random(0)
    for number in range(count):
        length = draw.randint(1, 24)
        if number % 2:
            parts = [draw.choice(EUROPE if draw.random() < 0.9 else PIECES) for _ in range(length)]
        else:
            parts = [scalar(draw) for _ in range(length)]
        yield "".join(parts)


def scalar(draw: random.Random) -> str:
    """Any Unicode scalar value."""
    code = draw.randrange(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)


def documents(folder: Path) -> Iterator[str]:
    """The text of every document."""
    return (document.text for document in DocumentReader(find_files(folder)))


def compare(fast: Fast, reference, texts: Iterator[str], found: dict[str, list[str]]) -> int:
    """Counts texts; puts those whose ids differ into ``found``, by cause."""
    seen: Counter[str] = Counter()
    batch: list[str] = []

    def flush() -> None:
        ours = fast.encode_batch_fast(batch)
        for text, mine, theirs in zip(batch, ours, reference.encode(batch), strict=True):
            if mine.ids != theirs:
                found.setdefault(cause_of(text, fast, reference, mine.ids, theirs), []).append(text)
        seen["texts"] += len(batch)
        batch.clear()

    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            flush()
            print(f"\r{seen['texts']:,} ", end="", file=sys.stderr)
    flush()
    return seen["texts"]


def cause_of(text: str, fast: Fast, reference, ours: list[int], theirs: list[int]) -> str:
    """Which of the listed causes makes the ids of ``text`` differ."""
    if text in SPECIAL:
        return "the text is one special token"
    if NEVER in text:
        return "it holds U+FDD0"
    if reference.normalize(text) != fast.normalizer.normalize_str(text):
        return "it is normalised otherwise (order of marks, versions of Unicode)"
    scores = [sum(map(reference.get_score, ids)) for ids in (ours, theirs)]
    if abs(scores[0] - scores[1]) <= 2**-20 * abs(scores[1]):
        return "two segmentations score the same"
    return UNLISTED


if __name__ == "__main__":
    sys.exit(main())
