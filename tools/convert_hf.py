"""Hugging Face in and out, as a script on the public functions.

    uv run python tools/convert_hf.py import HF_DIR OUT
    uv run python tools/convert_hf.py export RUN OUT

The same as `teukenjax import` and `teukenjax export`; tools/bench_convert.py measures them.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from teukenjax.cli.ending import run_script
from teukenjax.interop import export_run, import_hf


def main(
    direction: Literal["import", "export"],
    source: Annotated[Path, typer.Argument(help="HF_DIR, or RUN.")],
    out: Path,
) -> None:
    """Converts one directory; a call that was killed goes on where it stopped."""
    convert = {"import": import_hf, "export": export_run}[direction]
    convert(source, out, progress=True)


if __name__ == "__main__":
    run_script(main)
