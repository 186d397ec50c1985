"""Using a trained model: sampling, generation, chat."""

from teukenjax.infer.generate import Generator
from teukenjax.infer.sampling import Sampling

__all__ = ["Generator", "Sampling"]
