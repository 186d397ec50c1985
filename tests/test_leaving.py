"""The last words of a process that left early, as the others hear them."""

import pytest

from teukenjax import processes


class Table:
    """The coordinator's, with the last words of a process that left."""

    def __init__(self, words: str):
        self.words = words
        self.asked = 0

    def key_value_try_get(self, key: str) -> str:
        assert key == "left"
        self.asked += 1
        return self.words


class EndedError(Exception):
    """In place of the process."""


def heard(monkeypatch, words: str, *, by: int) -> None:
    """What process ``by`` does about the words: ends, or listens a second time and is stopped."""
    table = Table(words)

    def end(code: int) -> None:
        raise EndedError(code)

    monkeypatch.setattr(processes.os, "_exit", end)
    monkeypatch.setattr(processes.jax, "process_index", lambda: by)
    monkeypatch.setattr(processes, "client", lambda: table if table.asked < 2 else None)
    monkeypatch.setattr(processes, "LISTEN_S", 0.0)
    processes._listen()


def test_a_process_that_is_named_in_anothers_last_words_ends_too(monkeypatch):
    words = "76 process 0 (a): stopped: step 4; no sign of life from process 1 (b)"
    with pytest.raises(EndedError, match="76"):
        heard(monkeypatch, words, by=1)


def test_a_process_does_not_end_by_its_own_last_words(monkeypatch):
    words = "76 process 1 (b): stopped: step 4; no sign of life from process 0 (a)"
    heard(monkeypatch, words, by=1)
    with pytest.raises(EndedError, match="76"):
        heard(monkeypatch, words, by=11)
