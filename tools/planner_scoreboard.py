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
from teukenjax.planner.own import own_errors, own_runs
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
    table = Table("error of", "rows", "mean", "median", "worst", box=None)
    for name, found in {
        "tokens/s, constant MFU (the baseline)": constant_mfu(rows),
        "tokens/s, fitted rows": errors(runs, fitted),
        "tokens/s, each model left out of the fit": unseen,
        "seconds of our own steps": own_errors("step_s"),
        "seconds of our own steps, programs before": own_errors("step_s", before=True),
        "temporary memory of our own steps": own_errors("temporary_gib"),
        "peak memory of our own steps": own_errors("peak_gib"),
    }.items():
        found = np.array(found)
        worst = found[np.argmax(np.abs(found))]
        numbers = f"{mape(found):.1%}", f"{np.median(np.abs(found)):.1%}", f"{worst:+.1%}"
        table.add_row(name, str(len(found)), *numbers)
    for row in read_rows(PUBLISHED / "others.csv"):
        table.add_row(row["source"], "1", f"{understand(row).error():+.1%}")
    console = Console(width=140)
    console.print(table)
    console.print(fits_table())
    console.print(own_table())


def fits_table() -> Table:
    """Which runs fitted, and which were predicted to."""
    table = Table("", "predicted to fit", "predicted not to", box=None)
    published = [understand(row) for row in read_rows(PUBLISHED / "mosaic_h100.csv")]
    verdicts = [(True, bool(run.predict().fits[0])) for run in published]
    verdicts += [(bool(run.row["step_s"]), bool(run.prediction.fits[0])) for run in own_runs()]
    for name, ran in (("ran", True), ("did not fit", False)):
        found = [predicted for truth, predicted in verdicts if truth == ran]
        table.add_row(name, str(sum(found)), str(len(found) - sum(found)))
    return table


def own_table() -> Table:
    """Each of our own runs of today's programs: measured, and the errors of its prediction."""
    columns = ("step_s", "temporary_gib", "peak_gib")
    table = Table("our own run", *(name.replace("_", ", ") for name in columns), box=None)
    for run in own_runs():
        if not run.before:
            row, errors_ = run.row, [run.error(name) for name in columns]
            cells = (
                f"{row[name] or '-'}" + ("" if error is None else f" ({error:+.1%})")
                for name, error in zip(columns, errors_, strict=True)
            )
            table.add_row(own_name(row), *cells)
    return table


def own_name(row: dict[str, str]) -> str:
    """What ran where."""
    return (
        f"{row['devices']} × {row['hardware']} {row['layers']} layers {row['strategy']} "
        f"{row['remat']} {row['micro_batch']} × {row['accumulation']} ({row['program']})"
    )


if __name__ == "__main__":
    main()
