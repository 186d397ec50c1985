"""Tokens to text while they come: no half characters, and nothing of a stop string."""

from collections.abc import Sequence

from teukenjax.data.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # what part of a character decodes to


class TextStream:
    """The text of new tokens after given ones, in pieces.

    Decoding depends on what came before (the first piece loses its space, a character may be
    spread over byte tokens), so each piece is the difference of two whole texts. New tokens that
    are special pieces are no text: a conversation that holds one could not go on.
    """

    def __init__(self, tokenizer: Tokenizer, given: list[int], stops: Sequence[str] = ()):
        """Args: the tokens of the prompt, and strings that end the text."""
        self._tokenizer, self._ids, self._stops = tokenizer, list(given), tuple(stops)
        self._special = tokenizer.special_ids
        # What part of a character stands for at the prompt's end may become a shorter text.
        self._told = len(tokenizer.decode(self._ids).rstrip(REPLACEMENT))
        self._begin = self._told
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain after one more token."""
        if token in self._special:
            return ""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        end = len(text.rstrip(REPLACEMENT))
        new = text[self._begin : end]
        found = [at for at in map(new.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            return self._tell(text, self._begin + min(found))
        return self._tell(text, end - self._held(new))

    def rest(self) -> str:
        """What was held back, when no token comes any more."""
        text = self._tokenizer.decode(self._ids)
        return self._tell(text, len(text))

    def _tell(self, text: str, end: int) -> str:
        piece = text[self._told : end]
        self._told = max(self._told, end)
        return piece

    def _held(self, text: str) -> int:
        """How many characters at the end may be the start of a stop string."""
        starts = (stop[:n] for stop in self._stops for n in range(1, len(stop)))
        return max((len(start) for start in starts if text.endswith(start)), default=0)
