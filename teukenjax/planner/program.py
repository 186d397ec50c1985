"""What a compiled program does, read from its text: collectives and products, with their counts.

XLA prints optimised programs as computations of one instruction a line. A ``while`` whose trip
count is known says so; fusions and loops call other computations. So each instruction runs as
often as the computations around it, and nothing is counted once that runs for each layer.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}  # others by their number
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COLLECTIVE = re.compile(rf"(?:^|\s)({'|'.join(KINDS)})(-start)?\(")
_DOT = re.compile(r"\bdot\(%?([\w.\-]+), ")
_CAUSAL = re.compile(r'"mask_type": ?"CAUSAL"')
_KERNEL = 'custom_call_target="mosaic_gpu_v2"'
_ATTENTION = re.compile(r'custom_call_target="__cudnn\$fmhaSoftmax(Backward)?')


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: one of ``KINDS``.
      bytes: of the whole arrays: gathered, or before they are reduced.
      group: the devices that the first group joins, in the order of the mesh.
      count: how often a step runs it.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]
    count: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step, by the ring."""
        rounds = 2 if self.kind == "all-reduce" else 1
        share = 1 / len(self.group) if self.kind == "all-to-all" else 1
        return rounds * share * self.count * self.bytes * (1 - 1 / len(self.group))


def collectives(text: str) -> list[Collective]:
    """The collectives of an optimised program that join at least two devices."""
    found = []
    for count, _, line in _executed(text):
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        kind, group = match[1], first_group(line)
        if len(group) > 1:
            size = _whole_bytes(kind, line[: match.start()], len(group), bool(match[2]))
            found.append(Collective(kind, size, group, count))
    return found


def product_flops(text: str) -> float:
    """FLOPs of all products and cuDNN attentions that one device runs in a step.

    An attention with a causal mask counts half of its square. Of our kernels the head's logits
    count, as the product that they are; symmetric products of the optimizer do not.
    """
    total = 0.0
    for count, shapes, line in _executed(text):
        if match := _DOT.search(line):
            contracted = _numbers(line, "lhs_contracting_dims")
            sizes = _arrays(shapes[match[1]])[0][1]
            summed = math.prod(sizes[axis] for axis in contracted)
            total += count * 2 * math.prod(_arrays(line)[0][1]) * summed
        elif match := _ATTENTION.search(line):
            total += count * _attention_flops(line, backward=bool(match[1]))
        elif _KERNEL in line:
            total += count * _logits_flops(line)
    return total


def _logits_flops(line: str) -> float:
    """2·T·V·D of a kernel with operands [1, T, D] and [1, V, D] and a result [T, V]; else 0."""
    results, operands = line.split(" custom-call(", 1)
    operands = operands.split("operand_layout_constraints={")[1].split("}, ")[0:3]
    cubes = [shape for _, shape in _arrays(" ".join(operands)) if len(shape) == 3]
    if len(cubes) != 2 or cubes[0][-1] != cubes[1][-1]:
        return 0.0
    (_, T, D), (_, V, _) = cubes
    made = any(shape == (T, V) for _, shape in _arrays(results))
    return 2.0 * T * V * D if made else 0.0


def _attention_flops(line: str, *, backward: bool) -> float:
    """4·B·H·S²·N forward, 10·B·H·S²·N backward; the operands are q, k, v [B, S, H, N]."""
    operands = line.split("operand_layout_constraints={")[1]
    (_, (B, S, H, N)), (_, (_, T, _, _)) = _arrays(operands)[:2]
    square = B * H * S * T * N * (0.5 if _CAUSAL.search(line) else 1.0)
    return (10 if backward else 4) * square


def _executed(text: str) -> Iterator[tuple[int, dict[str, str], str]]:
    """Each instruction: how often it runs, the types of its computation's names, its text."""
    bodies, entry = computations(text)

    def visit(name: str, count: int):
        body = bodies[name]
        for line in body.values():
            yield count, body, line
            trips = _TRIPS.search(line) if " while(" in line else None
            for role, callee in _CALLED.findall(line):
                # Reductions apply scalars; their bodies hold nothing that is counted here.
                if role != "to_apply" and callee in bodies:
                    yield from visit(callee, count * (int(trips[1]) if trips else 1))

    yield from visit(entry, 1)


def computations(text: str) -> tuple[dict[str, dict[str, str]], str]:
    """Of a program's text: computation → instruction → the rest of its line; the entry's name."""
    found: dict[str, dict[str, str]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = found.setdefault(match[2], {})
            entry = match[2] if match[1] else entry
        elif match := _INSTRUCTION.match(line):
            current[match[1]] = match[2]
    return found, entry


def _whole_bytes(kind: str, types: str, members: int, started: bool) -> int:
    """The types of a started collective hold operands and results; the larger are the whole."""
    total = sum(_bytes(array) for array in _arrays(types))
    if not started:
        return total * (members if kind == "reduce-scatter" else 1)
    if kind in ("all-gather", "reduce-scatter"):
        return total * members // (members + 1)
    return total // 2


def first_group(line: str) -> tuple[int, ...]:
    """The first replica group, from any of the three notations."""
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return tuple(int(d) for d in match[1].split(",") if d)
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        groups, shape, order = ([int(d) for d in (m or "").split(",") if d] for m in match.groups())
        ids = np.arange(math.prod(shape)).reshape(shape)
        ids = ids.transpose(order) if order else ids
        return tuple(int(d) for d in ids.reshape(groups)[0])
    match = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if match is None:
        return ()
    axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
    joined = re.findall(r"'(\w+)'", match[2])
    ids = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
    first = tuple(slice(None) if axis in joined else 0 for axis in axes)
    return tuple(int(d) for d in ids[first].reshape(-1))


def _arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Element types and shapes of all arrays that a type mentions, in order."""
    return [
        (kind, tuple(int(d) for d in shape.split(",") if d)) for kind, shape in _ARRAY.findall(text)
    ]


def _bytes(array: tuple[str, tuple[int, ...]]) -> int:
    kind, shape = array
    bits = BITS.get(kind) or int(re.search(r"\d+", kind)[0])
    return math.prod(shape) * bits // 8


def _numbers(line: str, key: str) -> list[int]:
    match = re.search(rf"{key}=\{{([\d,]*)\}}", line)
    return [int(d) for d in match[1].split(",") if d] if match else []
