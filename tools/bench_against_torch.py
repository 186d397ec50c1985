"""Our train step beside what a PyTorch user would run, on the same machine in one call.

    python tools/bench_against_torch.py configs/recipes/teuken-7b.yaml batch.sequences=32 \
        batch.accumulation=8 compute.remat=save_projections
    python tools/bench_against_torch.py configs/recipes/teuken-7b.yaml --tiny     # on a CPU

PyTorch's side is transformers' Llama at the recipe's dimensions: SDPA, each block compiled,
checkpointed where memory asks for it, a chunked head loss, fp32 masters computed with in bf16, and
AdamW, fused where there is a GPU. On several GPUs it is FSDP2, one process a GPU. Ours is
``teukenjax bench step`` with the same optimizer. Both read the same random tokens, the same number
per step, and time whole steps: forward, backward, update. Each side has processes of its own,
because an allocator keeps its memory, and runs on its own best micro-batch: give --torch-micro.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from teukenjax.bench.apart import step_apart
from teukenjax.cli.ending import run_script
from teukenjax.recipe import Recipe, load

TINY = [
    "model.width=64", "model.layers=2", "model.heads=4", "model.kv_heads=2", "model.head_dim=16",
    "model.ffn=96", "model.context=64", "model.vocab_size=512", "batch.sequences=4",
    "batch.accumulation=2", "compute.remat=save_attention",
]  # fmt: skip
OPTIMIZER = 'optimizer={"name":"adamw"}'
HEAD_CHUNK = 2048  # tokens


def main(
    recipe: Annotated[Path, typer.Argument(help="A recipe with model.vocab_size.")],
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Of this machine.")] = 1,
    torch_micro: Annotated[
        int, typer.Option(min=1, help="Sequences of PyTorch's micro-batch, on each GPU.")
    ] = 2,
    checkpoint: Annotated[
        bool, typer.Option(help="Checkpoint PyTorch's blocks; off if it fits without.")
    ] = True,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    tiny: Annotated[bool, typer.Option("--tiny", help="A model for a CPU, to try this.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write both as JSON.")] = None,
) -> None:
    """Runs both sides and prints tokens/s of each, and their ratio."""
    given = [*(overrides or []), OPTIMIZER, "telemetry.every=null", *(TINY if tiny else [])]
    theirs = torch_side(recipe, given, gpus, torch_micro, checkpoint, repeats)
    print(json.dumps({"torch": theirs}), flush=True)
    ours = step_apart(recipe, given, repeats=repeats)
    print(json.dumps({"teukenjax": ours}), flush=True)
    ratio = ours["tokens_per_s_per_device"] / theirs["tokens_per_s_per_device"]
    print(f"tokens/s of teukenjax over PyTorch: {ratio:.2f}")
    if out is not None:
        out.write_text(json.dumps({"torch": theirs, "teukenjax": ours, "ratio": ratio}, indent=1))


def torch_side(recipe: Path, overrides, gpus: int, micro: int, checkpoint: bool, repeats) -> dict:
    """PyTorch's median step, from processes that run this file as a worker."""
    job = {"recipe": str(recipe), "overrides": overrides, "micro": micro, "repeats": repeats}
    job["checkpoint"] = checkpoint
    with tempfile.TemporaryDirectory() as folder:
        job["out"] = f"{folder}/row.json"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
        command = [sys.executable, *(launch if gpus > 1 else []), __file__]
        environment = os.environ | {"AGAINST_TORCH": json.dumps(job)}
        subprocess.run(command, check=True, env=environment)
        return json.loads(Path(job["out"]).read_text())


def worker(job: dict) -> None:
    """One process of PyTorch's side."""
    import torch
    import torch.distributed as dist

    recipe = load(Path(job["recipe"]), job["overrides"])
    rank, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group()
    model = build(recipe, device, sharded=world > 1, checkpoint=job["checkpoint"])
    fused = {"fused": True} if device.type == "cuda" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), **fused)
    batch = micro_batches(recipe, job["micro"], rank, world, device)
    times = []
    for _ in range(job["repeats"] + 2):  # the first compiles, the second settles
        start = time.perf_counter()
        loss = step(model, optimizer, batch)
        times.append(time.perf_counter() - start)
    if rank == 0:
        median = statistics.median(times[2:])
        row = {
            "device": torch.cuda.get_device_name() if fused else "cpu",
            "devices": world,
            "versions": {"torch": torch.__version__},
            "micro_batch": job["micro"],
            "checkpoint": job["checkpoint"],
            "step_s": {"median": median, "min": min(times[2:]), "max": max(times[2:])},
            "tokens_per_s_per_device": recipe.tokens_per_step / median / world,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if fused else None,
            "loss": loss,
        }
        Path(job["out"]).write_text(json.dumps(row))
    if world > 1:
        dist.destroy_process_group()


def build(recipe: Recipe, device, *, sharded: bool, checkpoint: bool):
    """transformers' Llama with its loss: fp32 parameters, blocks compiled, sharded by FSDP2."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = recipe.model
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.ffn,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        attn_implementation="sdpa",
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        llama = LlamaForCausalLM(config).train()
    if checkpoint:
        llama.gradient_checkpointing_enable({"use_reentrant": False})
    for block in llama.model.layers:
        block.compile()

    class WithLoss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.llama = llama

        def forward(self, tokens):
            hidden = self.llama.model(tokens[:, :-1]).last_hidden_state
            return chunked_loss(self.llama.lm_head.weight, hidden, tokens[:, 1:])

    model = WithLoss()
    if sharded:
        half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in llama.model.layers:
            fully_shard(block, mp_policy=half)
        fully_shard(model, mp_policy=half)
    return model


def micro_batches(recipe: Recipe, micro: int, rank: int, world: int, device) -> list:
    """This process's rows of the tokens that ours reads too, [micro, S + 1] each."""
    import torch

    shape = (recipe.batch.sequences, recipe.model.context + 1)
    tokens = np.random.default_rng(0).integers(recipe.model.vocab_size, size=shape, dtype=np.int32)
    mine = torch.as_tensor(tokens[rank::world], dtype=torch.long, device=device)
    return list(mine.split(micro))


def step(model, optimizer, batch) -> float:
    """One optimizer step; waits for it, and gives its loss."""
    import torch

    kind = batch[0].device.type
    total = 0.0
    for tokens in batch:
        # FSDP2 casts by itself; on one device autocast does, from the same fp32 masters.
        with torch.autocast(kind, torch.bfloat16):
            loss = model(tokens) / len(batch)
        loss.backward()
        total = total + loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(total)


def chunked_loss(table, hidden, labels):
    """Mean cross-entropy; logits of a chunk exist twice, in the forward and backward passes."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def chunk(hidden, labels):
        logits = torch.nn.functional.linear(hidden, table).float()
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    pairs = zip(
        hidden.flatten(0, 1).split(HEAD_CHUNK), labels.flatten().split(HEAD_CHUNK), strict=True
    )
    return sum(checkpoint(chunk, *pair, use_reentrant=False) for pair in pairs) / labels.numel()


if __name__ == "__main__":
    if "AGAINST_TORCH" in os.environ:
        worker(json.loads(os.environ["AGAINST_TORCH"]))
    else:
        run_script(main)
