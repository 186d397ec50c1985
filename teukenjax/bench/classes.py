"""What each instruction of a compiled train step is for: the classes of a profile.

An instruction carries the path of named scopes that it came from, and that decides; inside a layer
what it does decides further. A fusion has the scope of its last operation: what XLA fuses around a
norm counts as norm. Only instructions that a device runs by themselves are looked up, so loops
and calls have no class.
"""

import re

from teukenjax.planner.program import KINDS, computations, first_group

CLASSES = (
    "attention",  # the kernel, forward and backward, without projections
    "products",  # of a layer: projections and MLP
    "head",  # final products, loss and their gradients
    "embedding",
    "norms",
    "elementwise",  # SwiGLU, rotation, residual sums, casts of weights
    "copies",  # data that only moves
    "gradients",  # their sum over micro-batches
    "optimizer",
    "metrics",
    "communication",
    "other",
)
SCOPES = {  # scope → class; the first that occurs in the path
    "optimizer": "optimizer",
    "metrics": "metrics",
    "head": "head",
    "embed": "embedding",
    "kernel": "attention",
    "gradients": "gradients",
}
MOVES = {
    "bitcast", "broadcast", "concatenate", "constant", "copy", "copy-done", "copy-start",
    "dynamic-slice", "dynamic-update-slice", "get-tuple-element", "iota", "pad", "parameter",
    "reshape", "slice", "transpose", "tuple",
}  # fmt: skip
CONTROL = {"while", "conditional", "call"}
# Kernels of captured graphs do not say which instruction they are: by name, and only then.
KERNELS = {
    "communication": re.compile("nccl", re.I),
    "attention": re.compile("fmha|flash|sdpa|attention", re.I),
    "norms": re.compile("rms_norm"),
    "head": re.compile("head_exponentials"),
    "optimizer": re.compile("symmetric_product"),
    "products": re.compile("gemm|nvjet|cutlass|xmma|cublas", re.I),
    "copies": re.compile("memcpy|memset|copy", re.I),
}

_OPCODE = re.compile(r" ([a-z][a-z\d\-]*)\(")
_PATH = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_INDEX = re.compile(r"(?:[su]\d+|pred)\[\]")
_TOKEN = re.compile(r"\w+")


def classify(text: str) -> dict[str, str]:
    """Instruction → class, for all instructions of an optimised program's text."""
    bodies, _ = computations(text)
    return {
        name: _class(line, bodies)
        for body in bodies.values()
        for name, line in body.items()
        if _opcode(line) not in CONTROL
    }


def by_kernel(name: str) -> str:
    """The class of a kernel that no instruction is known for."""
    return next((kind for kind, names in KERNELS.items() if names.search(name)), "other")


def _class(line: str, bodies: dict[str, dict[str, str]]) -> str:
    opcodes = _opcodes(line, bodies)
    if any(opcode.startswith(KINDS) for opcode in opcodes):
        return "copies" if len(first_group(line)) == 1 else "communication"
    path = match[1] if (match := _PATH.search(line)) else ""
    scopes = _TOKEN.findall(path)
    for scope, kind in SCOPES.items():
        if scope in scopes:
            return kind
    if "dot" in opcodes or any(opcode.startswith("target:__cublas") for opcode in opcodes):
        return "products"
    if any(opcode.startswith("target:__cudnn$fmha") for opcode in opcodes):
        return "attention"
    if opcodes <= MOVES:
        return "copies"
    if "norm" in scopes or KERNELS["norms"].search(path):
        return "norms"
    return "elementwise" if scopes else "other"


def _opcode(line: str) -> str:
    match = _OPCODE.search(line)
    return match[1] if match else ""


def _opcodes(line: str, bodies: dict[str, dict[str, str]]) -> set[str]:
    """Of the instruction, or of all inside it if it is a fusion; indices are no work."""
    if match := _CALLS.search(line):
        return set().union(*(_opcodes(each, bodies) for each in bodies[match[1]].values()))
    if match := _TARGET.search(line):
        return {f"target:{match[1]}"}
    return set() if _INDEX.match(line) else {_opcode(line)}
