"""A picture, alone or with the numbers behind it as NAME.png and NAME.csv; whole after a kill."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from teukenjax.data.begun import save
from teukenjax.errors import UserError, disk_errors


class Picture(NamedTuple):
    """A figure and its numbers; the first row names the columns."""

    figure: Figure
    table: list[tuple]

    def save(self, path: Path) -> list[Path]:
        """Writes PATH.png and PATH.csv, each whole or not at all; returns them.

        Both are made before either is written: a figure that fails leaves the files of an earlier
        one as they were.
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.table)
        files = {".png": _drawn(self.figure, "png"), ".csv": text.getvalue().encode()}
        for suffix, content in files.items():
            save(path.with_suffix(suffix), content)
        return [path.with_suffix(suffix) for suffix in files]


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure to PATH, whole or not at all; the name's ending says in which format.

    Raises:
      UserError: for an ending that Matplotlib does not know, or a path that cannot be written.
    """
    allowed = figure.canvas.get_supported_filetypes()
    kind = path.suffix.removeprefix(".").lower()
    if kind not in allowed:
        endings = ", ".join(f".{known}" for known in allowed)
        raise UserError(f"{path}: no picture ends in '{path.suffix}': allowed: {endings}")
    with disk_errors(path):
        save(path, _drawn(figure, kind))


def _drawn(figure: Figure, kind: str) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, dpi="figure", format=kind)
    return image.getvalue()


def table_of(rows: Sequence[dict[str, Any]]) -> list[tuple]:
    """Rows by name as a table: all columns, as they first appear; "" where a row lacks one."""
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return [columns, *(tuple(row.get(name, "") for name in columns) for row in rows)]
