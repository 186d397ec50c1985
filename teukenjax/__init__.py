"""Train multilingual European language models in JAX: Teuken, Scion, sharded meshes."""

__version__ = "0.1.0"
