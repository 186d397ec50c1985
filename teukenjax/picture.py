"""A picture and the numbers behind it: NAME.png and NAME.csv."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from teukenjax.data.begun import save


class Picture(NamedTuple):
    """A figure and its numbers; the first row names the columns."""

    figure: Figure
    table: list[tuple]

    def save(self, path: Path) -> list[Path]:
        """Writes PATH.png and PATH.csv, each whole or not at all; returns them.

        Both are made before either is written: a figure that fails leaves the files of an earlier
        one as they were.
        """
        text, image = io.StringIO(), io.BytesIO()
        csv.writer(text, lineterminator="\n").writerows(self.table)
        self.figure.savefig(image, dpi="figure", format="png")
        files = {".png": image.getvalue(), ".csv": text.getvalue().encode()}
        for suffix, content in files.items():
            save(path.with_suffix(suffix), content)
        return [path.with_suffix(suffix) for suffix in files]


def table_of(rows: Sequence[dict[str, Any]]) -> list[tuple]:
    """Rows by name as a table: all columns, as they first appear; "" where a row lacks one."""
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return [columns, *(tuple(row.get(name, "") for name in columns) for row in rows)]
