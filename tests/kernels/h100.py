"""An H100 that is not there, to lower kernels for."""

import functools

import jax
from jax.sharding import AbstractDevice, AbstractMesh

H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")


def on_an_h100(function, *shapes) -> str:
    """The function's text for an H100."""
    mesh = AbstractMesh((1,), ("x",), abstract_device=H100)
    with jax.sharding.use_abstract_mesh(mesh):
        # Not the function itself: what was traced for other devices would be found again.
        traced = jax.jit(functools.partial(function)).trace(*shapes)
        return traced.lower(lowering_platforms=("cuda",)).as_text()
