"""A tokenizer without a model."""

from teukenjax.data.tokenizer import Tokenizer


class Letters(Tokenizer):
    """One id a letter, and none for what is no letter."""

    ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    eod_id = 36  # plain attributes, where a real tokenizer asks its model
    end_of_turn_id = 2
    special_ids = frozenset()

    def __init__(self, eod_id: int = 36):
        self.eod_id = eod_id

    def encode(self, text: str) -> list[int]:
        return [self.ALPHABET.index(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.ALPHABET[i] for i in ids)
