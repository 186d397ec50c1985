"""Hugging Face in and out."""

from teukenjax.interop.export import export_hf, export_run
from teukenjax.interop.importing import import_hf

__all__ = ["export_hf", "export_run", "import_hf"]
