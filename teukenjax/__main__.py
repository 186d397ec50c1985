"""``python -m teukenjax`` is the command ``teukenjax``."""

from teukenjax.cli import main

main()
