"""What a sweep leaves: one Parquet row for each run and horizon, and the way there.

    OUT/rows/GROUP.parquet      rows of a finished group
    OUT/traces/GROUP.parquet    loss and norms of its runs at steps that are half an octave apart
    OUT/unfinished/GROUP/       its checkpoint while it is being trained
    OUT/claims/GROUP            locked by the process that trains it
    OUT/results.parquet         all rows, and results-traces.parquet all traces, when all is done

Groups of any number of sweeps may lie in one OUT, and results of several OUTs are read together.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from teukenjax.errors import UserError

BY_NAME = pa.map_(pa.string(), pa.float64())

ROWS = pa.schema(
    {
        "run": pa.string(),  # group and number of the member
        "model": pa.string(),  # its name in the sweep
        "optimizer": pa.string(),
        "momentum": pa.float64(),  # Scion's β, AdamW's β₁
        "norm_target": pa.float64(),  # log2 of what the rate was steered to; null: it was not
        "width": pa.int64(),
        "layers": pa.int64(),
        "parameters": pa.int64(),
        "context": pa.int64(),
        "batch": pa.int64(),  # sequences a step
        "log2_learning_rate": pa.float64(),
        "seed": pa.int64(),  # of the start
        "data_seed": pa.int64(),  # of the order of the data
        "multiplier_input": pa.float64(),
        "multiplier_hidden": pa.float64(),
        "multiplier_output": pa.float64(),
        "step": pa.int64(),
        "tokens": pa.int64(),  # the horizon
        "epochs": pa.float64(),  # of the language that was read most often
        "diverged": pa.bool_(),  # the loss is not finite, or no lower than that of step 1
        "loss": pa.float64(),  # mean of the last sixteenth of the steps; null: not finite
        "loss_last": pa.float64(),  # of the last third of those
        "loss_sd": pa.float64(),  # between the thirds
        "valid_loss": pa.float64(),  # mean over languages of held-out text, nats per token
        "valid": BY_NAME,  # by language
        "norm_input": pa.float64(),  # 1→RMS
        "norm_hidden": pa.float64(),  # RMS→RMS
        "norm_output": pa.float64(),  # RMS→∞
        "norms": pa.map_(pa.string(), pa.list_(pa.float64())),  # leaf/measure → layers
        "recipe_hash": pa.string(),
        "tokenizer": pa.string(),
        "store": pa.string(),
        "device": pa.string(),
        "seconds": pa.float64(),  # of the group, without compilation, up to this horizon
    }
)
TRACES = pa.schema(
    [ROWS.field(name) for name in ("run", "model", "width", "layers", "batch")]
    + [ROWS.field(name) for name in ("log2_learning_rate", "seed", "step", "tokens", "loss")]
    + [ROWS.field(f"norm_{role}") for role in ("input", "hidden", "output")]
)


def write(rows: Sequence[dict[str, Any]], schema: pa.Schema, path: Path) -> None:
    """Writes rows under ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), partial, compression="zstd")
    partial.replace(path)


def read(paths: Iterable[Path], part: str = "rows") -> list[dict[str, Any]]:
    """The rows (or traces) of sweeps' folders and of single Parquet files.

    Raises:
      UserError: for a path without results, a file of another kind, or rows that were made with
        different tokenizers: their losses cannot be compared.
    """
    schema = {"rows": ROWS, "traces": TRACES}[part]
    found = [row for path in paths for file in _files(path, part) for row in _rows(file, schema)]
    tokenizers: dict[str, str] = {}
    for row in found:
        tokenizers.setdefault(row.get("tokenizer", ""), row["run"])
    if len(tokenizers) > 1:
        (one, run), (other, its) = list(tokenizers.items())[:2]
        raise UserError(
            f"results of mixed tokenizers: run {run} has {one}, run {its} has {other}: "
            "their losses per token cannot be compared: give results of one tokenizer"
        )
    return list({(row["run"], row["step"]): row for row in found}.values())


def merge(paths: Sequence[Path], out: Path) -> None:
    """All rows in one file, and all traces beside it."""
    write(read(paths), ROWS, out)
    write(read(paths, "traces"), TRACES, out.with_name(f"{out.stem}-traces.parquet"))


def _files(path: Path, part: str) -> list[Path]:
    if path.is_file():
        own = path.with_name(f"{path.stem}-traces.parquet") if part == "traces" else path
        return [own] if own.is_file() else []
    files = sorted((path / part).glob("*.parquet"))
    if not files:
        raise UserError(f"{path}: no results: neither a Parquet file nor a sweep's folder with any")
    return files


def _rows(file: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    try:
        rows = pq.read_table(file).to_pylist(maps_as_pydicts="strict")
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: is no Parquet file: {str(error).splitlines()[0]}") from None
    if missing := set(schema.names) - set(rows[0] if rows else schema.names):
        raise UserError(f"{file}: is no result of a sweep: column '{min(missing)}' is missing")
    return rows
