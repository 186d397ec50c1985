"""A small OpenAI-compatible server, for trying a checkpoint with the clients people have."""

from teukenjax.serve.app import make_app, run_server

__all__ = ["make_app", "run_server"]
