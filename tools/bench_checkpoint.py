r"""How long a recipe's state takes to save and to restore, bit sums included.

    uv run python tools/bench_checkpoint.py configs/recipes/teuken-7b.yaml OUT \
        model.vocab_size=250680

OUT is a new directory on the disk to be measured. A run goes on when its save has returned.
"""

import json
import sys
import time
from pathlib import Path

import jax

from teukenjax.checkpoint import Checkpoints
from teukenjax.recipe import CheckpointConfig, load
from teukenjax.sharding import make_layout
from teukenjax.train.state import Program


def main(path: str, out: str, *overrides: str) -> None:
    """Prints one JSON object."""
    recipe = load(path, overrides)
    platform = jax.devices()[0].platform
    program = Program(recipe, make_layout(recipe.sharding), platform=platform)
    state = jax.block_until_ready(program.init())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    checkpoints, seconds = Checkpoints(Path(out), CheckpointConfig()), {}
    for step in (1, 2):  # the second one has nothing left to compile
        start = time.perf_counter()
        checkpoints.save(step, state, {"step": step})
        seconds["save returned"] = time.perf_counter() - start
        checkpoints.wait()
        seconds["saved"] = time.perf_counter() - start
    del state
    start = time.perf_counter()
    jax.block_until_ready(checkpoints.restore(2, program.abstract_state))
    seconds["restored"] = time.perf_counter() - start
    checkpoints.close()
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    print(json.dumps({"device": device, "gib": size / 2**30, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
