"""The file of measurements: one JSON object a line, one line a run of ``bench step``."""

import json
import os
from pathlib import Path
from typing import Any

from teukenjax.errors import disk_errors


def check_can_append(path: Path) -> None:
    """A UserError when no row could be added, before minutes are spent on one."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()


def append(path: Path, row: dict[str, Any]) -> None:
    """Adds a row in one write, so that two runs that end together do not mix.

    A last line that a kill cut short is closed first, not continued.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write(b"\n" * bool(torn) + json.dumps(row).encode() + b"\n")
