"""A folder that appears under its name when it is whole, and goes on after a kill until then.

OUT.partial/content/      becomes OUT
OUT.partial/begun.json    what the work was begun with; other options are refused
OUT.partial/journal       a line for each tensor that is written, with the sum of its bits
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from teukenjax.data.begun import working_in
from teukenjax.errors import UserError


class Journal:
    """Which tensors are written, and the sum of the bits of each as 32-bit words."""

    def __init__(self, path: Path):
        self.sums: dict[str, int] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # a cut line is none
                name, total = line.split("\t")
                self.sums[name] = int(total)
            path.write_text("".join(map(_line, self.sums.items())), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def __contains__(self, name: str) -> bool:
        return name in self.sums

    def add(self, name: str, total: int) -> None:
        """Notes a tensor whose content has been handed to the system."""
        self.sums[name] = total
        self._file.write(_line((name, total)))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Work(NamedTuple):
    """What ``building`` gives."""

    content: Path
    journal: Journal


@contextmanager
def building(out: Path, options: dict[str, Any] | None) -> Iterator[Work]:
    """Makes directory ``out``; ``options`` are plain values that decide its content.

    A mistake in the input leaves nothing; a kill, an interrupt and a full disk leave
    ``OUT.partial``, and the same call goes on from there. Without options, as for arrays in
    memory, it begins anew.

    Raises:
      UserError: when ``out`` holds something, another process makes it, or it was begun otherwise.
    """
    check_is_free(out)
    partial = out.with_name(out.name + ".partial")
    with working_in(partial, options or {}, on=str(out)):
        content, noted = partial / "content", partial / "journal"
        if options is None:  # only here, where no other process is at work in it
            shutil.rmtree(content, ignore_errors=True)
            noted.unlink(missing_ok=True)
        content.mkdir(exist_ok=True)
        journal = Journal(noted)
        try:
            yield Work(content, journal)
            content.replace(out)
        except OSError:
            raise  # the disk's fault, not the input's: what is written is good
        except Exception:
            shutil.rmtree(partial)
            raise
        finally:
            journal.close()
        shutil.rmtree(partial)


def check_is_free(out: Path) -> None:
    """Raises a UserError when ``out`` holds something, or is "." and so cannot be renamed to."""
    if not out.name:
        raise UserError(f"{out}: give the directory by its name: it is made anew")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose another directory or remove it")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, as Hugging Face writes it."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _line(entry: tuple[str, int]) -> str:
    return "\t".join(map(str, entry)) + "\n"
