"""Seconds of a step, by what takes them.

A micro-step computes and communicates. Products, attention and elementwise passes follow each
other on the device; collectives run beside them, at the cost of what they take from them. All
arrays are [P], a row per plan.
"""

from dataclasses import dataclass

import numpy as np

from teukenjax.hardware import Hardware
from teukenjax.planner.fabric import Group
from teukenjax.planner.optimizer import Optimizer
from teukenjax.planner.plans import Plans
from teukenjax.planner.shape import Shape
from teukenjax.planner.software import FAST_LATENCY_S, NETWORK_LATENCY_S, Software
from teukenjax.units import GIGA, TERA


@dataclass(frozen=True)
class Setting:
    """What all plans of a search have in common."""

    shape: Shape
    hw: Hardware
    software: Software
    optimizer: Optimizer


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step on each device; arrays [P].

    ``fast`` and ``network`` are how long the collectives run inside nodes and between them,
    ``exposed`` is by how much they lengthen the step. The step is products + attention + passes +
    exposed + latency + optimizer.
    """

    products: np.ndarray
    attention: np.ndarray
    passes: np.ndarray
    fast: np.ndarray
    network: np.ndarray
    exposed: np.ndarray
    latency: np.ndarray
    optimizer: np.ndarray
    hardware_flops: np.ndarray  # of products and attention, recomputation included

    @property
    def total(self) -> np.ndarray:
        """Seconds of the step."""
        computing = self.products + self.attention + self.passes
        return computing + self.exposed + self.latency + self.optimizer


def step_time(plans: Plans, setting: Setting) -> StepTime:
    """The model of a step.

    T = A · max(T_c + σ·T_fast, T_net) + A · T_lat + T_opt, with A micro-batches, T_c the computing
    and σ ``Software.exposed``. Perfect overlap is σ = 0. Source: derived; the maximum is the usual
    law of overlap, σ·T_fast the processors and memory bandwidth that collectives take from the
    products (calculon's "processor usage").
    """
    products, flops = _products(plans, setting)
    attention, attention_flops = _attention(plans, setting)
    passes = _passes(plans, setting)
    fast, network, launches, nodes = _collectives(plans, setting)
    orthogonalised = setting.optimizer.flops(plans, setting.shape)
    computing = products + attention + passes
    exposed = np.maximum(computing + setting.software.exposed * fast, network) - computing
    latency = launches * (FAST_LATENCY_S + NETWORK_LATENCY_S * np.log2(nodes))
    A = plans.accumulation
    return StepTime(
        products=A * products,
        attention=A * attention,
        passes=A * passes,
        fast=A * fast,
        network=A * network,
        exposed=A * exposed,
        latency=A * latency,
        optimizer=setting.optimizer.seconds(plans, setting.shape, setting.hw, setting.software),
        hardware_flops=A * (flops + attention_flops) + orthogonalised,
    )


def _products(plans: Plans, setting: Setting):
    """Seconds and FLOPs of the products of a micro-step, on each device.

    6·φ_layers·E/t + again·L·E/t + 6·V·D·E/t; the rate is η·C with C the best product measured on
    the device. Source: derived; standard counts.
    """
    shape, E = setting.shape, plans.tokens
    layers = 6.0 * shape.layer_weights + shape.layers * plans.remats(shape).matmul
    flops = E * (layers + 6.0 * shape.vocab * shape.width) / plans.tensor
    rate = setting.software.matmul * setting.hw.matmul_tflops * TERA
    return flops / rate, flops


def attention_rate(hw: Hardware, software: Software) -> float:
    """FLOP/s of causal attention: a share of the best product, or what the processors issue.

    A kernel written for another generation's matrix unit does the same work in each clock of a
    processor whatever the device's peak is. Source: derived.
    """
    rate = software.attention * hw.matmul_tflops * TERA
    if software.attention_flops_per_cycle is None:
        return rate
    clocks = hw.target.processors * hw.target.clock_ghz * GIGA
    return min(rate, software.attention_flops_per_cycle * clocks)


def _attention(plans: Plans, setting: Setting):
    """Seconds and FLOPs of attention: 2·H·N·S·L a token for half a square forward, 2.5 back."""
    shape = setting.shape
    forward = 2.0 * shape.layers * shape.heads * shape.head_dim * plans.sequence
    flops = plans.tokens * forward * (3.5 + plans.remats(shape).attention) / plans.tensor
    return flops / attention_rate(setting.hw, setting.software), flops


def _passes(plans: Plans, setting: Setting) -> np.ndarray:
    """Seconds that a micro-step spends on memory: activations, weights and gradients, logits.

    2·D·L·widths·(3 + again) bytes a token, whole_bytes·φ/t + shard_bytes·φ/shards, and
    logit_bytes·V a token. Source: derived; the constants are the software's.
    """
    shape, software = setting.shape, setting.software
    repeats = 3.0 + plans.remats(shape).elementwise
    activations = 2.0 * shape.width * shape.layers * software.widths * repeats
    logits = software.logit_bytes * shape.vocab / plans.tensor
    weights = software.whole_bytes * shape.parameters / plans.tensor
    weights = weights + software.shard_bytes * shape.parameters / plans.shards("gradients")
    traffic = plans.tokens * (activations + logits) + weights
    return traffic / (setting.hw.memory_gb_per_s * GIGA)


def wire_bytes(plans: Plans, setting: Setting) -> np.ndarray:
    """Bytes that each device sends in a step, by the ring, [P]."""
    members = plans.fsdp, plans.replica, plans.tensor
    volumes = zip(members, _volumes(plans, setting), strict=True)
    micro_step = sum(volume * (m - 1) / m for m, volume in volumes)
    update = setting.optimizer.volume(plans, setting.shape) * (plans.devices - 1) / plans.devices
    return plans.accumulation * micro_step + update


def _collectives(plans: Plans, setting: Setting):
    """Of a micro-step: seconds inside nodes, between nodes, launches, and nodes of a group."""
    over = Group.fsdp(plans, setting.hw), Group.replica(plans, setting.hw)
    within = Group.tensor(plans, setting.hw)
    fast = network = np.zeros(len(plans))
    groups = zip((*over, within), _volumes(plans, setting), strict=True)
    for group, volume in groups:
        fast = fast + volume * group.fast_s_per_byte
        network = network + volume * group.network_s_per_byte
    launches = setting.shape.layers * setting.software.launches * (plans.devices > 1)
    return fast, network, launches, np.maximum(1, plans.devices / setting.hw.node.devices)


def _volumes(plans: Plans, setting: Setting):
    """Bytes of whole arrays that a micro-step moves over fsdp, replica and tensor axes.

    An all-gather or reduce-scatter counts once, an all-reduce twice (ring). Per device:

        ddp            all-reduce of gradients over fsdp and replica, of our layers' once a step
        zero1, zero2   reduce-scatter over fsdp, all-reduce of the pieces over replica likewise
        fsdp, …        all-gather forward, backward and for recomputed weights, or once for all
                       micro-steps; reduce-scatter
        tensor         all-reduce of [E, D] twice a layer forward, twice back, once more where
                       attention is computed again, since its output is; and of the table's
                       states, (2 + 4 + 2)·E·D bytes
        table          if split and staying: tokens gathered for the head, their gradients
                       scattered, and the embedding's the other way: (2·2 + 4 + 2)·n·E·D bytes;
                       if split and gathered, as a layer; if whole, its gradient as a layer's, but
                       zero1 and zero2 on replicas all-reduce it in each micro-step

    Source: derived; compared with compiled programs in tests/planner/test_compiled.py.
    """
    shape, software = setting.shape, setting.software
    remats, Qg = plans.remats(shape), software.gradient_bytes
    t, whole = plans.tensor, shape.layer_weights / plans.tensor
    split_weights = plans.shards("parameters") > t
    split_gradients = plans.shards("gradients") > t
    gathers = 2.0 + software.regathers * remats.weights
    gathers = np.where(plans.once, 1.0 / plans.accumulation, gathers)
    tables = shape.table_weights / t
    states = plans.fsdp * plans.tokens * shape.width
    if software.table_stays:
        table_gathers, table_gradients = 10.0 * states, 0.0
    else:
        table_gathers, table_gradients = 2.0 * 2.0 * tables, Qg * tables
    over_fsdp = np.where(split_weights, gathers * 2.0 * whole + table_gathers, 0.0)
    # What devices add that hold the same piece waits for the last micro-batch, but for a table
    # that is whole while its gradient is not.
    waits = plans.accumulation if software.table_stays else 1
    each_time = software.table_stays & split_gradients & ~split_weights & (plans.replica > 1)
    ends = np.where(split_weights, table_gradients, Qg * tables * np.where(each_time, 2.0, 1.0))
    over_fsdp = over_fsdp + np.where(
        split_gradients, Qg * whole + ends, 2.0 * (Qg * whole + ends) / waits
    )
    awaited = whole / waits + tables / np.where(each_time, 1, waits)
    over_replica = 2.0 * Qg * awaited / (plans.shards("gradients") / t)
    passes = 2.0 * (4.0 + remats.attention) * shape.layers + 8.0 * software.table_stays
    over_tensor = 2.0 * passes * plans.tokens * shape.width
    return over_fsdp, over_replica, over_tensor
