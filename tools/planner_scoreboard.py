"""How far off the planner is: published runs, fits that never saw them, our own steps.

    uv run python tools/planner_scoreboard.py

Fits the shares of ``configs/software/torch-fsdp.yaml`` to MosaicML's 52 rows on H100, then again
with each model left out, and compares with predicting the median MFU of the other rows. Rows of
other sources, GPUs and sizes have no part in any fit.
"""

import numpy as np
from rich.console import Console
from rich.table import Table

from teukenjax.planner.fit import FITTED, constant_mfu, fit, left_out
from teukenjax.planner.own import own_errors
from teukenjax.planner.software import software
from teukenjax.planner.table import PUBLISHED, errors, mape, read_rows, understand


def main() -> None:
    """Prints the scoreboard."""
    rows = read_rows(PUBLISHED / "mosaic_h100.csv")
    runs = [understand(row) for row in rows]
    start = software("torch-fsdp")
    fitted = fit(runs, start)
    print("fitted:", {key: round(getattr(fitted, key), 3) for key in FITTED})
    fits = sum(bool(run.predict().fits[0]) for run in runs)
    print(f"published runs predicted to fit: {fits} of {len(runs)}")
    unseen = left_out(rows, start)
    own = own_errors()
    table = Table("error of", "rows", "mean", "median", "worst", box=None)
    for name, found in {
        "tokens/s, constant MFU (the baseline)": constant_mfu(rows),
        "tokens/s, fitted rows": errors(runs, fitted),
        "tokens/s, each model left out of the fit": unseen,
        "seconds of our own steps, one H200": own.seconds,
        "temporary memory of our own steps": own.temporary,
    }.items():
        worst = found[np.argmax(np.abs(found))]
        numbers = f"{mape(found):.1%}", f"{np.median(np.abs(found)):.1%}", f"{worst:+.1%}"
        table.add_row(name, str(len(found)), *numbers)
    for row in read_rows(PUBLISHED / "others.csv"):
        table.add_row(row["source"], "1", f"{understand(row).error():+.1%}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
