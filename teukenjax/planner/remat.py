"""What each remat policy keeps and what it computes again: two numbers, not one.

A single γ cannot say that keeping the outputs of a few products saves most of the recomputed
FLOPs for a third of the bytes. So a named policy is described by the bytes that it keeps and by
the products that run again, per token and layer.

Source: derived from the layers' residuals; γ as in the literature on checkpointing is
kept(policy) / kept("none") for bytes, 1 − again(policy) / forward for FLOPs. The program that
XLA makes of each policy was checked product by product (tests/planner/test_compiled.py).
"""

from dataclasses import dataclass

import numpy as np

from teukenjax.planner.shape import Shape

Number = float | np.ndarray  # of one policy, or of the policies of many plans
# Of a layer's elementwise passes, the share that runs again: norms, SwiGLU, rotation. A guess for
# the middle two, worth 2 % of a step.
ELEMENTWISE = {"none": 0.0, "save_projections": 0.6, "save_attention": 0.7, "full": 1.0}
POLICIES = tuple(ELEMENTWISE)


@dataclass(frozen=True)
class Remat:
    """One policy for one shape; all per token and layer.

    Attributes:
      kept: bytes from the forward to the backward pass, in 16 bits unless the residual is wider.
      whole: of those, bytes that are not split over the tensor axis: the residual stream.
      matmul: FLOPs of products that run again.
      attention: 1 if the attention's forward runs again; its softmax statistics are kept with it.
      elementwise: share of the forward's elementwise passes that run again.
      weights: share of the layer's weights that the recomputation gathers once more. Weights are
        gathered where they are used, and the two uses of the backward pass are not joined.
    """

    kept: Number
    whole: Number
    matmul: Number
    attention: Number
    elementwise: Number
    weights: Number


def remat(shape: Shape, policy: str) -> Remat:
    """The policy of that name; SwiGLU blocks know four, GELU blocks "none" and "full"."""
    if not shape.gated:
        return _gpt(shape, policy)
    D, F = shape.width, shape.ffn
    attended, shared = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = D * (attended + 2 * shared) + attended * D
    gate_up = 2 * D * F
    # Of a layer that is wholly computed again, the last product is not: nobody reads its output.
    weights = {"full": projections + gate_up, "save_attention": gate_up}.get(policy, 0)
    kept = {"full": 2 * D, "save_attention": 4 * D + 2 * (2 * attended + 2 * shared)}
    kept["save_projections"] = kept["save_attention"] + 4 * F
    # Without a policy also norms and rotations in fp32 (24 D) and the factors of SwiGLU in 16 bits;
    # a norm before every linear map keeps its input and its result in fp32.
    kept["none"] = kept["save_projections"] + 24 * D + 4 * 2 * F
    if shape.norms_everywhere:
        kept["none"] += 8 * (2 * attended + 2 * shared + F)
    return Remat(
        kept=float(kept[policy]),
        whole=float({"full": 2 * D, "none": 20 * D}.get(policy, 4 * D)),
        matmul=2.0 * weights,
        attention=float(policy == "full"),
        elementwise=ELEMENTWISE[policy],
        weights=weights / (shape.attention_weights + shape.mlp_weights),
    )


def _gpt(shape: Shape, policy: str) -> Remat:
    """LayerNorm, GELU, no dropout, flash attention, one gather for recomputation and backward.

    Kept of a GPT block: 34 D bytes less two of dropout masks (Korthikanti et al., arXiv
    2205.05198, table 2); only the input under full checkpointing.
    """
    weights = shape.attention_weights + shape.mlp_weights
    if policy == "none":
        return Remat(32.0 * shape.width, 10.0 * shape.width, 0.0, 0.0, 0.0, 0.0)
    return Remat(2.0 * shape.width, 2.0 * shape.width, 2.0 * weights, 1.0, 1.0, 0.0)
