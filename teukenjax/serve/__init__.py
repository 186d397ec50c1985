"""A small OpenAI-compatible server, for trying a checkpoint with the clients people have."""

from teukenjax.serve.app import listen, make_app, run_server

__all__ = ["listen", "make_app", "run_server"]
