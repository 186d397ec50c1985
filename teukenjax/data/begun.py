"""Long work in a folder: begun once, gone on with after a kill, never by two at a time."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from teukenjax.errors import UserError


def fingerprint_files(files: list[Path]) -> dict[str, list[int]]:
    """Name → size and time of change, which tell whether a file is still the same."""
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


@contextmanager
def working_in(folder: Path, options: dict[str, Any], *, on: str) -> Iterator[None]:
    """Locks a folder (made when it is missing) for work that ``options`` describe.

    Args:
      folder: holds ``begun.json`` and ``lock``.
      options: plain values; ``files`` among them from ``fingerprint_files``.
      on: what is being written, for errors.

    Raises:
      UserError: when another process works there, the work was begun with other options, or a
        file cannot be written, as when the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{on}: is being written by another process") from None
        _refuse_changes(folder, options)
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{error.filename or folder}: {error.strerror or error}; what is finished is kept "
                f"in {folder}, and the same command goes on from there"
            ) from None


def _refuse_changes(folder: Path, options: dict[str, Any]) -> None:
    begun = folder / "begun.json"
    if not begun.is_file():
        save(begun, json.dumps(options, indent=1).encode())
    new = json.loads(json.dumps(options))
    try:
        old = json.loads(begun.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{begun}: is damaged: not JSON: remove {folder} to begin anew") from None
    changed = [key for key, value in new.items() if old.get(key) != value]
    if changed:
        raise UserError(
            f"{folder}: was begun with {_difference(old, new, changed[0])}: give the same, or "
            "remove it to begin anew"
        )


def _difference(old: dict[str, Any], new: dict[str, Any], key: str) -> str:
    if key != "files" or key not in old:
        return f"{key}={old.get(key)}, not {new[key]}"
    names = old["files"].keys() | new["files"].keys()
    changed = sorted(name for name in names if old["files"].get(name) != new["files"].get(name))
    return f"other files ({changed[0]} has changed)"


def save(path: Path, content: bytes) -> None:
    """Writes a file so that neither a reader nor a kill meets half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
