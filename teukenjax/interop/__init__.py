"""Hugging Face in and out."""

from teukenjax.interop.export import export_hf

__all__ = ["export_hf"]
