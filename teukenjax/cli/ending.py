"""How a command ends: a user's mistake is one line and exit code 2, whatever the command."""

import os
import sys
from collections.abc import Callable

import typer
from typer.exceptions import TyperException

from teukenjax.errors import TryAgainError, UserError


def run(app: typer.Typer) -> None:
    """Runs an app and exits; see ``errors`` for the exit codes."""
    if not sys.stderr.isatty():  # read when some library imports tqdm, which draws their bars
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        sys.exit(app(standalone_mode=False) or 0)  # which leaves the parser's mistakes to us
    except (UserError, TyperException) as error:
        if str(error):  # a group without its verb has shown its help
            print(f"error: {_line(error)}", file=sys.stderr)
        sys.exit(2)
    except TryAgainError as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(error.code)


def run_script(main: Callable) -> None:
    """The same for a script of one command: its parameters are the options."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    run(app)


def _line(error: UserError | TyperException) -> str:
    """The message; the option parser's names the option only when it is asked to format it."""
    return error.format_message() if isinstance(error, TyperException) else str(error)
