"""What a model is worth: bits per byte for each language."""

from teukenjax.evaluate.bits_per_byte import Evaluator, Score, mean

__all__ = ["Evaluator", "Score", "mean"]
