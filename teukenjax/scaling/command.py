"""What the verbs of ``scaling`` do, one function each."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from teukenjax.errors import UserError, disk_errors, nearest
from teukenjax.recipe import load
from teukenjax.scaling import plots, published, results
from teukenjax.scaling import suggest as suggestions
from teukenjax.scaling.fit import (
    ROLES,
    Fitted,
    fit_rows,
    print_fit,
    rules_of,
    write_optima,
)
from teukenjax.scaling.rules import Rules

PUBLISHED = Path("published")


def fit(console: Console, paths: Sequence[Path], *, out: Path | None, role: str) -> None:
    """Fits, prints, and writes fit.json and optima.csv; raises as ``results.read`` and ``fit``."""
    if list(paths) == [PUBLISHED]:
        _fit_published(console, out)
        return
    fitted = _fitted(paths, role)
    print_fit(console, fitted)
    if out is None:
        return
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        write_optima(fitted, out / "optima.csv")
        rules = rules_of(fitted, ", ".join(map(str, paths)))
        if rules is None:
            console.print("no fit.json: η*(B, D) needs optima at several batches and horizons")
            return
        rules.save(out / "fit.json")
    console.print(f"{out / 'fit.json'}: for `teukenjax scaling suggest --rules`", highlight=False)


def plot(console: Console, paths: Sequence[Path], out: Path, *, role: str) -> None:
    """Draws what there is to draw; raises as ``fit``."""
    fitted = _fitted(paths, role)
    with disk_errors(out):
        for file in plots.plot(results.read(paths), results.read(paths, "traces"), fitted, out):
            console.print(str(file), highlight=False)


def suggest(
    console: Console,
    recipe: Path,
    overrides: Sequence[str],
    *,
    tokens: float,
    rules: Path | None,
    out: Path | None,
) -> None:
    """Prints a suggestion and writes the recipe with it; raises as ``suggest``."""
    rule = published.rules() if rules is None else Rules.load(rules)
    made = suggestions.suggest(load(recipe, list(overrides)), rule, tokens=tokens)
    suggestions.print_suggestion(console, made, rule)
    if out is not None:
        with disk_errors(out):
            suggestions.write_recipe(made, out)


def _fitted(paths: Sequence[Path], role: str) -> Fitted:
    if role not in ROLES:
        raise UserError(f"--role {role}: {nearest(role, ROLES)}")
    return fit_rows(results.read(paths), results.read(paths, "traces"), role=role)


def _fit_published(console: Console, out: Path | None) -> None:
    lines = {
        "rate, 4 horizons": published.rate_rule("mean"),
        "rate, 9 horizons": published.rate_rule("best"),
        "batch": published.batch_rule(),
    }
    for name, line in lines.items():
        console.print(f"{name}\n  fitted  {line}\n  printed {published.PRINTED[name]}")
    rules = published.rules()
    console.print(
        f"log2 norm at the best batches: {rules.log2_norm[0]:.2f} ± {rules.log2_norm[1]:.2f}"
    )
    if out is not None:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            rules.save(out / "fit.json")
