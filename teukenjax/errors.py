"""The two ways to end early: "the user can mend this", and "start it again"."""

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


class UserError(ValueError):
    """A mistake in a recipe, a path or a file.

    The message is one line that names the thing, its value and what is allowed. The command line
    prints it without a traceback and exits with code 2; a library caller sees a ``ValueError``.
    """


class TryAgainError(Exception):
    """The run ended through no mistake: the same command goes on from its newest checkpoint.

    The command line prints the message and exits with ``code``, which tells a scheduler to start
    the job again.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


PREEMPTED = 75  # was told to stop, and has saved (sysexits.h: EX_TEMPFAIL)
LOST = 76  # a process, a network, a data server or a replica is not what it was


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The end of an error line: the closest allowed spelling, or the list of what is allowed."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"allowed: {', '.join(allowed)}"


def check_room_for(path: Path) -> None:
    """A UserError when no new file could come to be at ``path``, before hours are spent on it.

    Neither the file nor its folder is made.
    """
    reasons = {
        "it is a folder": path.is_dir(),
        "its folder does not exist": not path.parent.is_dir(),
        "its folder cannot be written to": not os.access(path.parent, os.W_OK),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"{path}: cannot be written: {reason}")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Says in one line, as a UserError, what a full or unwritable disk does to work on ``path``."""
    try:
        yield
    except OSError as error:
        # A write that fails does not know its file.
        where, reason = error.filename or path, error.strerror or error
        raise UserError(f"{where}: cannot be written: {reason}") from None
