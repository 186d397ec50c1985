"""The scripts in tools/ do what they say, at the smallest size."""

import runpy
from pathlib import Path

TOOLS = Path(__file__).parent.parent / "tools"


def test_tutorial_learns(capsys):
    runpy.run_path(str(TOOLS / "scion_tutorial.py"), run_name="__main__")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert float(first.split()[-1]) > 3.5
    assert float(last.split()[-1]) < 1.0
