"""The verb that says what a model is worth."""

from pathlib import Path
from typing import Annotated

import typer

from teukenjax.cli.options import RunPath, console
from teukenjax.errors import UserError, check_room_for


def evaluate(
    run: RunPath,
    text: Annotated[
        Path | None, typer.Option("--data", help="Documents: bits per byte of each language.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Benchmarks: a file, or a name, of configs/suites.")
    ] = None,
    fidelity: Annotated[
        str | None,
        typer.Option(help='Conversations whose last questions are asked anew, or "toy" (bundled).'),
    ] = None,
    gaps: Annotated[
        bool, typer.Option("--gaps", help="With --data: which languages trail, and why.")
    ] = False,
    task_data: Annotated[
        Path | None, typer.Option(help="With --suite: a folder of questions, not the hub.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --suite: questions of each task and language.")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="With --suite: other scores, as in configs/scores.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--json", help="Default: RUN/eval-WHAT-STEP.json.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one batch.")] = 32_768,
) -> None:
    """Score RUN on a text, a suite of benchmarks, or the languages that it answers in."""
    from teukenjax.evaluate import command

    if [text, suite, fidelity].count(None) != 2:
        raise UserError("eval: give one of --data, --suite and --fidelity")
    if gaps and text is None:
        raise UserError("--gaps: goes with --data")
    for name, value in (("task-data", task_data), ("limit", limit), ("against", against)):
        if value and suite is None:
            raise UserError(f"--{name}: goes with --suite")
    if out is not None:
        if out.suffix != ".json":
            raise UserError(f"--json {out}: expected a name that ends in .json")
        check_room_for(out)
    if text is not None:
        command.text(console(), run, text, out=out, batch_tokens=batch_tokens, gaps=gaps)
    elif suite is not None:
        command.suite(
            console(),
            run,
            suite,
            folder=task_data,
            limit=limit,
            against=against or [],
            out=out,
            batch_tokens=batch_tokens,
        )
    else:
        command.faithful(console(), run, fidelity, out=out, batch_tokens=batch_tokens)
