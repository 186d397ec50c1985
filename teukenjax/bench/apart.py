"""``teukenjax bench step`` in a process of its own, as an allocator keeps its memory."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def step_apart(recipe: Path, overrides: Sequence[str], *, repeats: int, **how) -> dict[str, Any]:
    """Its row, on random tokens; ``how`` as ``subprocess.run`` takes it.

    Raises:
      CalledProcessError: when it ended with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "row.jsonl"
        verb = "from teukenjax.cli import main; main()"
        options = ["--fake-data", "--repeats", str(repeats), "--results", str(results)]
        step = [sys.executable, "-c", verb, "bench", "step", str(recipe), *overrides, *options]
        subprocess.run(step, check=True, **how)
        return json.loads(results.read_text(encoding="utf-8"))
