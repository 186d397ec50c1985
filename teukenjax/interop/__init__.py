"""Hugging Face in and out."""

from teukenjax.interop.export import export_hf, export_run

__all__ = ["export_hf", "export_run"]
