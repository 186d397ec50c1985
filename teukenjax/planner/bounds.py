"""Closed-form bounds beside a prediction: what no plan of this kind can exceed.

Symbols: φ parameters; C best product, FLOP/s; η its share that the program reaches; Q, Q_g bytes of
a gathered parameter and of a reduced gradient; B bytes/s at which one whole array is gathered; A(γ)
bytes kept per token; E tokens per device and micro-step; F_f forward FLOPs per token; M_free bytes
left for activations. Throughput is per device.

Source: derived ("memory × bandwidth ÷ compute", the functional content of arXiv 2504.03655's title;
its own equations were not at hand).
"""

from dataclasses import dataclass

import numpy as np

from teukenjax.planner.memory import RESTING, capacity
from teukenjax.planner.predict import Prediction


@dataclass(frozen=True)
class Bounds:
    """Of one plan.

    Attributes:
      compute: tokens/s if nothing but products and attention took time.
      communication: tokens/s if nothing but collectives took time, with the largest micro-batch
        that fits: E_max / T_comm.
      tokens_max: E_max, tokens per device and micro-step that fit.
      tokens_even: E*, tokens at which computing lasts as long as collectives.
      devices_min: N at which parameters, moments and gradients leave room for one sequence; 0 if
        no N does.
      bandwidth_even: bytes/s per device inside nodes below which collectives outlast computing.
    """

    compute: float
    communication: float
    tokens_max: int
    tokens_even: int
    devices_min: int
    bandwidth_even: float


def bounds(prediction: Prediction, index: int) -> Bounds:
    """The bounds of one plan of a prediction."""
    time, plans = prediction.time, prediction.plans
    parts, split = int(plans.accumulation[index]), int(plans.tensor[index])
    tokens = float(plans.tokens[index])
    computing = float(time.products[index] + time.attention[index]) / parts
    inside = float(time.fast[index]) / parts
    wire = max(inside, float(time.network[index]) / parts)
    free, per_token = _room(prediction, index)
    most = max(0, int(free / per_token))
    return Bounds(
        compute=tokens / (computing * split),
        communication=most / (wire * split) if wire else np.inf,
        tokens_max=most,
        tokens_even=int(tokens * wire / computing),
        devices_min=_devices_min(prediction, index, per_token * float(plans.sequence[index])),
        bandwidth_even=prediction.setting.hw.node.fast_gb_per_s * 1e9 * inside / computing,
    )


def _room(prediction: Prediction, index: int) -> tuple[float, float]:
    """M_free of the backward pass, and A(γ) with one layer's working set."""
    held = prediction.memory
    growing = float(held.kept[index] + held.layer[index])
    resting = sum(float(getattr(held, name)[index]) for name in RESTING)
    resting += float(held.of_phase("backward")[index]) - growing
    per_token = growing / float(prediction.plans.tokens[index])
    return capacity(prediction.setting) - resting, per_token


def _devices_min(prediction: Prediction, index: int, one_sequence: float) -> int:
    """N ≥ b_st·φ / (M − M_res − M_buf − one sequence), if all that rests were split over all."""
    held, plans = prediction.memory, prediction.plans
    states = (held.parameters, held.moments, held.gradients, held.transposed)
    whole = sum(float(part[index]) for part in states)
    whole *= float(plans.fsdp[index] * plans.tensor[index])
    free = capacity(prediction.setting) - float(held.reserve[index] + held.gathered[index])
    free -= one_sequence
    return int(np.ceil(whole / free)) if free > 0 else 0
