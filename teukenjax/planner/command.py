"""What ``teukenjax plan`` does, as one function for each question that it answers."""

import math
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from teukenjax.errors import UserError
from teukenjax.hardware import named
from teukenjax.planner import inverse
from teukenjax.planner.memory import capacity
from teukenjax.planner.profile import as_measured
from teukenjax.planner.report import print_answer
from teukenjax.planner.search import Answer, Question, recipe_of, search
from teukenjax.planner.table import errors, mape, predict_table, understand
from teukenjax.recipe import Recipe, load, to_yaml, validate
from teukenjax.run import write_atomically
from teukenjax.train.plan import with_vocabulary
from teukenjax.units import GIB

# Each question by the option that asks it; the first is asked without one. What else it takes:
COMMON = {"RECIPE", "[KEY=VALUE]...", "--hardware", "--devices", "--tokens", "--sequence"}
TAKES = {
    None: COMMON | {"--top", "--out", "--compile", "--report"},
    "--table": {"--out"},
    "--ablate": {"RECIPE", "[KEY=VALUE]..."},
    "--target-days": COMMON | {"--mfu-floor"},
}


def check_go_together(given: set[str]) -> None:
    """Refuses what the question that is asked would not look at.

    Args:
      given: options and arguments that the command line has.

    Raises:
      UserError: for one that belongs to another question, or two questions.
    """
    asked = next((question for question in TAKES if question in given), None)
    for option in sorted(given - TAKES[asked] - {asked}):
        if asked is None:
            needed = next(name for name, takes in TAKES.items() if option in takes)
            raise UserError(f"{option}: needs {needed}")
        raise UserError(f"{option}: does not go with {asked}")


@dataclass(frozen=True)
class Request:
    """The options of the command line."""

    recipe: Path | None
    overrides: tuple[str, ...]
    hardware: str
    devices: int
    tokens: float | None
    sequences: tuple[int, ...]

    def question(self) -> Question:
        """Read and checked; with a profile of that hardware, if there is one, applied.

        Raises:
          UserError: for a mistake in the recipe, or unknown hardware.
        """
        hw, constants = as_measured(named(self.hardware))
        recipe = self._load()
        _refuse_what_is_not_predicted(recipe)
        return Question(recipe, hw, self.devices, self.sequences, constants)

    @property
    def budget(self) -> float:
        """Tokens of the run: as asked, or the recipe's.

        Raises:
          UserError: for a number that is not positive or not finite.
        """
        if self.tokens is None:
            recipe = self._load()
            return float(recipe.steps * recipe.tokens_per_step)
        return _positive("--tokens", self.tokens)

    def _load(self) -> Recipe:
        if self.recipe is None:
            raise UserError("plan: RECIPE is missing; only --table goes without one")
        return with_vocabulary(load(self.recipe, self.overrides))


def _refuse_what_is_not_predicted(recipe: Recipe) -> None:
    if recipe.compute.dtype != "bfloat16":
        raise UserError(
            f"plan: compute.dtype={recipe.compute.dtype}: products and activations are predicted "
            "in bfloat16 only: plan with compute.dtype=bfloat16"
        )
    if recipe.sft is not None and recipe.sft.lora is not None:
        raise UserError(
            "plan: sft.lora: gradients and moments are predicted of all weights only: "
            "plan with sft.lora=null"
        )


def plan(
    console: Console,
    request: Request,
    *,
    top: int,
    out: Path | None,
    compiled: int,
    report: Path | None,
) -> None:
    """The best plans; the first as a recipe at ``out``; the first ``compiled`` compiled."""
    answer = search(request.question())
    if not len(answer.best):
        raise UserError(nothing_fits(answer))
    print_answer(console, answer, top=top, tokens=request.budget)
    if compiled:
        from teukenjax.planner.oracle import check_best

        check_best(console, answer, compiled)
    if out is not None:
        write_recipe(answer, out)
        console.print(f"{out}: the first plan as a recipe for teukenjax train")
    if report is not None:
        from teukenjax.planner.document import write_document

        write_document(answer, request.budget, report)
        console.print(f"{report}: the report")


def predict_rows(console: Console, table: Path, out: Path | None) -> None:
    """Predicts a table of runs into ``out``, and says how far off it is where that is known."""
    if out is None:
        raise UserError("--table needs --out: where to write the rows with predictions")
    rows = predict_table(table, out)
    fit = sum(row["fits"] == "true" for row in rows)
    console.print(f"{out}: {len(rows)} rows predicted, {fit} fit")
    measured = [run for run in map(understand, rows) if run.measured is not None]
    if measured:
        found = mape(errors(measured))
        console.print(
            f"mean absolute error of tokens/s on {len(measured)} measured rows: {found:.1%}"
        )


def run_ablation(console: Console, request: Request, out: Path) -> None:
    """Every strategy × remat × micro-batch on the devices here: a table, a CSV, a picture."""
    from teukenjax.planner.ablation import ablate, table, write

    if request.recipe is None:
        raise UserError("--ablate needs RECIPE")
    rows = []
    for row in ablate(request.recipe, request.overrides):
        rows.append(row)
        write(rows, out)  # after each case: a run that is cut short leaves what it had
    console.print(table(rows))
    console.print(f"{out}: ablation.csv, ablation.png")


def write_recipe(answer: Answer, out: Path) -> Recipe:
    """Writes the recipe of the best plan, and returns it as ``train`` will read it."""
    recipe = recipe_of(answer.question.recipe, answer.prediction.plans, int(answer.best[0]))
    checked = validate(Recipe, recipe.model_dump(mode="json"), str(out))
    try:
        write_atomically(out, to_yaml(checked))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    return checked


def nothing_fits(answer: Answer) -> str:
    """By how much the plan that needs least is too large, and what would fit."""
    question, prediction = answer.question, answer.prediction
    needed, has = prediction.memory.total[answer.least] / GIB, capacity(prediction.setting) / GIB
    fewest, longest = inverse.fewest_devices(question), inverse.longest_sequence(question)
    ways = [f"{fewest} devices" if fewest else "no number of devices"]
    ways.append(f"sequences of {longest}" if longest else "no shorter sequence")
    return (
        f"nothing fits on {question.devices} × {question.hw.name}: the smallest plan needs "
        f"{needed:.1f} GiB of {has:.1f}, {needed - has:.1f} too much; what would fit: "
        f"{' or '.join(ways)}"
    )


def inverse_questions(
    console: Console, request: Request, *, target_days: float, mfu_floor: float
) -> None:
    """For each kind of hardware: how many for the target, the largest model, the network's floor.

    ``request.hardware`` may name several kinds, with commas between them.
    """
    _positive("--target-days", target_days)
    if not 0 < mfu_floor <= 1:  # nor NaN
        raise UserError(f"--mfu-floor {mfu_floor:g}: expected a share above 0, up to 1")
    table = Table(box=None, title=f"{request.budget:.3g} tokens in {target_days:g} days, predicted")
    titles = ("hardware", "devices", "days", "GPU-hours", "MFU")
    for title in (
        *titles,
        f"largest model at {mfu_floor:.0%} MFU",
        "FSDP × TP beats FSDP, node's network",
    ):
        table.add_column(title, justify="left" if title == "hardware" else "right")
    for name in request.hardware.split(","):
        single = Request(**{**vars(request), "hardware": name})
        table.add_row(*_inverse_row(single, target_days=target_days, mfu_floor=mfu_floor))
    console.print(table)


def _inverse_row(request: Request, *, target_days: float, mfu_floor: float) -> list[str]:
    question = request.question()
    found = inverse.cluster_for(question, tokens=request.budget, target_days=target_days)
    cells = [question.hw.name, f"more than {max(inverse.counts(question))}", "-", "-", "-"]
    if found is not None:
        answer = found.answer
        question = question.on(devices=answer.question.devices)
        mfu = answer.prediction.mfu[answer.best[0]]
        hours = f"{found.gpu_hours:,.0f}"
        cells[1:] = [f"{question.devices}", f"{found.days:.1f}", hours, f"{mfu:.1%}"]
    largest = inverse.largest_model(question, mfu=mfu_floor)
    cells.append(f"{_billions(largest)} on {question.devices}" if largest else "none")
    cells.append(inverse.tensor_pays(question))
    return cells


def _positive(option: str, value: float) -> float:
    if not 0 < value < math.inf:  # nor NaN
        raise UserError(f"{option} {value:g}: expected a number above 0")
    return value


def _billions(found) -> str:
    _, answer = found
    return f"{answer.prediction.setting.shape.parameters / 1e9:.1f} B"
