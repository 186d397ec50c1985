"""Which plans a recipe can have on so many devices, and which are fastest.

The batch of a step is the recipe's, in tokens: it decides what is learnt. Everything else may
vary: strategy, mesh, micro-batch, remat policy, sequence length when asked, and for Scion whether
gradients are summed into the momentum. Every plan is one that a recipe can say.
"""

import dataclasses
import itertools

import numpy as np

from teukenjax.errors import UserError
from teukenjax.hardware import Hardware
from teukenjax.planner.optimizer import Optimizer
from teukenjax.planner.plans import NAMES, Plans
from teukenjax.planner.predict import Prediction, doubled, predict
from teukenjax.planner.profile import with_kernels
from teukenjax.planner.remat import POLICIES
from teukenjax.planner.shape import Shape
from teukenjax.planner.software import Software, software
from teukenjax.planner.step_time import Setting
from teukenjax.recipe import Recipe
from teukenjax.sharding import STRATEGIES, mesh_shape
from teukenjax.units import GIGA

WHAT_IF = {  # what to buy → the hardware with it
    "+10 GB memory": lambda hw: more_memory(hw, 10 * GIGA),
    "twice the network": lambda hw: doubled(hw, ("network_gb_per_s",)),
    "twice the NVLink": lambda hw: doubled(hw, ("fast_gb_per_s",)),
    "twice the memory bandwidth": lambda hw: doubled(hw, ("memory_gb_per_s",)),
    "twice the compute": lambda hw: doubled(hw, ("bf16_tflops", "matmul_tflops")),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A recipe, with its vocabulary known, on so many devices of a kind."""

    recipe: Recipe
    hw: Hardware
    devices: int
    sequences: tuple[int, ...] = ()  # lengths to try; none: the recipe's
    constants: Software = dataclasses.field(default_factory=lambda: software("teukenjax"))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the sequences to try, each once."""
        return tuple(dict.fromkeys(self.sequences)) or (self.recipe.model.context,)

    @property
    def setting(self) -> Setting:
        """What its plans have in common."""
        shape, optimizer = Shape.of(self.recipe.model), Optimizer.of(self.recipe.optimizer)
        constants = with_kernels(self.recipe, self.hw, self.constants)
        return Setting(shape, self.hw, constants, optimizer)

    @property
    def own(self) -> Prediction:
        """Of the plan that the recipe itself says.

        Raises:
          UserError: when its batch or its mesh does not suit that many devices.
        """
        recipe, batch = self.recipe, self.recipe.batch
        sizes = mesh_shape(recipe.sharding, self.devices)
        plan = Plans.single(
            strategy=recipe.sharding.strategy,
            remat=recipe.compute.remat,
            micro_batch=batch.micro_batch(self.devices // sizes["tensor"]),
            accumulation=batch.accumulation,
            sequence=recipe.model.context,
            light=getattr(recipe.optimizer, "light", False),
            once=recipe.compute.gather == "step",
            **sizes,
        )
        return predict(plan, self.setting, head_chunk=recipe.compute.head_chunk)

    def on(self, **changes) -> "Question":
        """The same question with other hardware, devices or sequences."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Answer:
    """All plans of a question, predicted; ``best`` are positions of those that fit, fastest first.

    ``least`` is the position of the plan that needs least memory.
    """

    question: Question
    prediction: Prediction
    best: np.ndarray
    least: int

    @property
    def tokens_per_s(self) -> float:
        """Of the best plan, per device; 0 when none fits."""
        return float(self.prediction.tokens_per_s[self.best[0]]) if len(self.best) else 0.0


def search(question: Question) -> Answer:
    """Predicts all plans.

    Raises:
      UserError: when no mesh of so many devices suits the model and the batch.
    """
    plans = enumerate_plans(question)
    chunk = question.recipe.compute.head_chunk
    prediction = predict(plans, question.setting, head_chunk=chunk)
    order = np.argsort(-prediction.tokens_per_s, kind="stable")
    best = order[prediction.fits[order]]
    return Answer(question, prediction, best, int(np.argmin(prediction.memory.total)))


def what_if(answer: Answer) -> dict[str, float]:
    """By how much each purchase would raise the best plan's throughput, all plans tried again."""
    question, now = answer.question, answer.tokens_per_s
    return {
        name: search(question.on(hw=change(question.hw))).tokens_per_s / now - 1
        for name, change in WHAT_IF.items()
    }


def more_memory(hw: Hardware, size: float) -> Hardware:
    """The hardware with so many bytes more on each device."""
    target = hw.target.model_copy(update={"memory_bytes": int(hw.target.memory_bytes + size)})
    return hw.model_copy(update={"target": target, "memory_gb": hw.memory_gb + size / GIGA})


def enumerate_plans(question: Question) -> Plans:
    """Every strategy × mesh × sequence × accumulation × remat × light × once that divides."""
    recipe, shape = question.recipe, question.setting.shape
    meshes = meshes_of(question.devices, shape)  # ddp at least
    batches = [b for length in question.lengths for b in _batches(recipe, length, meshes)]
    if not batches:
        raise UserError(_no_batch(question))
    lights = (False, True) if question.setting.optimizer.light else (False,)
    # Meshes and batches are few; what multiplies is taken by broadcasting.
    rows, choices = np.array(batches), np.meshgrid(range(len(POLICIES)), lights, (False, True))
    columns = [np.repeat(rows[:, i], choices[0].size) for i in range(rows.shape[1])]
    remat, light, once = (np.tile(choice.ravel(), len(rows)) for choice in choices)
    strategy, replica, fsdp, tensor, sequence, micro_batch, accumulation = columns
    return Plans(
        strategy, replica, fsdp, tensor, micro_batch, accumulation, remat, sequence, light, once
    )


def meshes_of(devices: int, shape: Shape) -> list[tuple[int, int, int, int]]:
    """(strategy, replica, fsdp, tensor) of all meshes that the sharding table can place.

    On one device all strategies are one program, which goes by the name of fsdp.
    """
    if devices == 1:
        return [(NAMES.index("fsdp"), 1, 1, 1)]
    found = []
    for strategy, (name, row) in enumerate(STRATEGIES.items()):
        for replica, tensor in itertools.product(divisors(devices), repeat=2):
            if devices % (replica * tensor):
                continue
            sizes = {"replica": replica, "tensor": tensor}
            if any(size > 1 and row.needs != axis for axis, size in sizes.items()):
                continue
            if row.needs and sizes[row.needs] == 1:
                continue
            fsdp = devices // (replica * tensor)
            split = fsdp if name != "ddp" else 1
            if _divides(shape, split, tensor):
                found.append((strategy, replica, fsdp, tensor))
    return found


def _divides(shape: Shape, fsdp: int, tensor: int) -> bool:
    rows = shape.width % fsdp == 0 and shape.vocab % (fsdp * tensor) == 0
    return rows and not (shape.heads % tensor or shape.kv_heads % tensor or shape.ffn % tensor)


def _batches(recipe: Recipe, length: int, meshes):
    """Rows (strategy, replica, fsdp, tensor, sequence, micro-batch, accumulation)."""
    sequences, rest = divmod(recipe.tokens_per_step, length)
    if rest:
        return
    for strategy, replica, fsdp, tensor in meshes:
        each, rest = divmod(sequences, replica * fsdp)
        if not rest and each:
            for parts in divisors(each):
                yield strategy, replica, fsdp, tensor, length, each // parts, parts


def divisors(n: int) -> list[int]:
    """Of n, ascending."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _no_batch(question: Question) -> str:
    tokens, devices = question.recipe.tokens_per_step, question.devices
    written = ", ".join(map(str, question.lengths))
    whole = [length for length in question.lengths if tokens % length == 0]
    if not whole:
        return f"--sequence {written}: a batch of {tokens:,} tokens is no whole number of them"
    sequences = tokens // max(whole)
    return (
        f"--devices {devices}: a batch of {tokens:,} tokens in sequences of {written} does not "
        f"divide over them: take a divisor of {sequences}, or set batch.sequences to a multiple"
    )


def recipe_of(recipe: Recipe, plans: Plans, index: int) -> Recipe:
    """The recipe with the choices of one plan in place of its own."""
    fields = dataclasses.fields(plans)
    row = {field.name: getattr(plans, field.name)[index].item() for field in fields}
    sections = {
        "sharding": {
            "strategy": NAMES[row["strategy"]],
            **{axis: row[axis] for axis in ("replica", "fsdp", "tensor")},
        },
        "batch": {
            "sequences": recipe.tokens_per_step // row["sequence"],
            "accumulation": row["accumulation"],
        },
        "model": {"context": row["sequence"]},
        "compute": {
            "remat": POLICIES[row["remat"]],
            "gather": "step" if row["once"] else "layer",
        },
    }
    if recipe.optimizer.name == "scion":
        sections["optimizer"] = {"light": row["light"]}
    changed = {
        key: getattr(recipe, key).model_copy(update=values) for key, values in sections.items()
    }
    return recipe.model_copy(update=changed)
