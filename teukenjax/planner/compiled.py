"""The real compiler as an oracle: our train step for GPUs that are not there.

XLA:GPU needs a description of its target, not the target. So the step that ``teukenjax train``
would run is lowered from the abstract state, compiled for a mesh of such devices, and asked what
it allocates and what it sends. Needs ``jax[cuda13]`` installed; needs no GPU and no memory beyond
the compiler's own. What the compiler says is exact for its version; that it agrees with a real run
was measured (BUILD_NOTES.md).
"""

import os
import time
from dataclasses import dataclass

import numpy as np
from jax.sharding import AxisType, Mesh

from teukenjax.errors import UserError
from teukenjax.hardware import Hardware
from teukenjax.planner.program import Collective, collectives, product_flops
from teukenjax.recipe import Recipe
from teukenjax.sharding import AXES, Layout, mesh_shape
from teukenjax.train.batch import abstract_batch
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step

INSTALL = "compiling for GPUs needs their compiler: uv sync --extra cuda13 (4 GB, no GPU needed)"


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one step, per device.

    Attributes:
      seconds: that compilation took.
      arguments: bytes of state and batch; the state is donated, its outputs are these bytes.
      temporary: bytes beside them at the peak.
      collectives: with how often a step runs each.
      flops: of all matrix products and attention, recomputation included.
    """

    seconds: float
    arguments: int
    temporary: int
    collectives: list[Collective]
    flops: float

    @property
    def memory(self) -> int:
        """Bytes that the step needs at its peak."""
        return self.arguments + self.temporary


def target_text(hw: Hardware) -> str:
    """The target's description in the text form of XLA's ``GpuTargetConfigProto``."""
    target = hw.target
    major, minor = target.compute_capability
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {target.shared_optin_bytes}
  shared_memory_per_core: {target.shared_bytes}
  core_count: {target.processors}
  fpus_per_core: {target.lanes}
  clock_rate_ghz: {target.clock_ghz}
  memory_bandwidth: {int(hw.memory_gb_per_s * 1e9)}
  l2_cache_size: {target.l2_bytes}
  device_memory_size: {target.memory_bytes}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{hw.name}"
"""


def devices_of(hw: Hardware, count: int) -> list:
    """That many devices that do not exist, as the compiler sees them.

    Raises:
      UserError: when the compiler for GPUs is not installed, with how to install it.
    """
    # Without this jaxlib's plugin looks for a driver when it is loaded.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(
            hw.name, platform="cuda", target_config=target_text(hw), topology=f"1x1x{count}"
        )
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(f"{INSTALL} ({str(error).splitlines()[0]:.80})") from None
    return topology.devices


def abstract_step(recipe: Recipe, hw: Hardware, count: int):
    """The lowered train step of a recipe on that many devices of the target."""
    sizes = mesh_shape(recipe.sharding, count)
    grid = np.array(devices_of(hw, count)).reshape(tuple(sizes.values()))
    mesh = Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    program = Program(recipe, Layout(mesh, recipe.sharding.strategy), platform="gpu")
    batch = abstract_batch(recipe, program.layout)
    return make_train_step(program).lower(program.abstract_state, batch)


def compile_step(recipe: Recipe, hw: Hardware, count: int) -> Compiled:
    """Compiles the train step of a resolved recipe for ``count`` devices.

    Raises:
      UserError: when the compiler is missing, or the recipe does not suit that many devices.
    """
    start = time.perf_counter()
    compiled = abstract_step(recipe, hw, count).compile()
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory.temp_size_in_bytes, "the compiler gave no sizes"
    return Compiled(
        seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        collectives=collectives(text),
        flops=product_flops(text),
    )
