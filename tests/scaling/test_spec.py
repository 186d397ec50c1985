"""What a sweep may say, and how it falls into groups."""

from pathlib import Path

import pytest

from teukenjax.errors import UserError
from teukenjax.scaling.spec import load_sweep, member_recipe, select

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "sweeps"


def test_runs_of_one_shape_are_one_group_and_horizons_are_steps_of_one_run(make_sweep):
    path = make_sweep(models="{a: {}, wide: {model.width: 32}}", seeds="[1, 2]")
    small, wide = load_sweep(path)
    assert [len(group.members) for group in (small, wide)] == [6, 6]
    assert small.horizons == (4, 8)
    assert wide.recipe.model.width == 32
    assert small.name != wide.name


def test_a_name_changes_with_what_decides_the_numbers_and_not_with_the_place(make_sweep):
    path = make_sweep()
    (group,) = load_sweep(path)
    assert load_sweep(path, ["out=elsewhere"])[0].name == group.name
    assert load_sweep(path, ["seed=8"])[0].name != group.name
    assert load_sweep(make_sweep(tokens="[9, 11]"))[0].name != group.name


def test_large_axes_fall_into_programs_of_so_many_runs(make_sweep):
    path = make_sweep(seeds="[1, 2, 3, 4, 5, 6, 7]")
    assert [len(group.members) for group in load_sweep(path)] == [16, 5]


def test_the_recipe_of_a_member_has_its_rate_and_the_product_of_multipliers(make_sweep):
    path = make_sweep(multipliers="[{hidden: 0.5}]")
    (group,) = load_sweep(path, ["optimizer.multiplier.hidden=0.5"])
    optimizer = member_recipe(group, group.members[1]).optimizer
    assert optimizer.learning_rate == 0.25
    assert optimizer.multiplier.hidden == 0.25
    assert optimizer.multiplier.input == 1.0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps_are_read(path):
    for group in load_sweep(path):
        assert group.recipe.steps == group.horizons[-1]


MISTAKES = {
    "axes that do not divide": ({"tokens": "[9, 9.5]"}, [], "no whole number of steps of batch=8"),
    "fewer tokens than a step": ({"tokens": "[6]"}, [], "log2_tokens=6 is 64 tokens"),
    "an axis as override": ({}, ["steps=3"], "steps is an axis of the sweep: log2_tokens"),
    "an axis in a model": ({"models": "{a: {batch.sequences: 3}}"}, [], "an axis of the sweep"),
    "unknown key of a model": ({"models": "{a: {model.widht: 8}}"}, [], "did you mean 'width'?"),
    "a rate that changes": ({}, ["schedule=[{shape: linear, end: 0.0}]"], "2 horizons"),
    "a rate that is steered": ({}, ["optimizer.norm_target=8.0"], "2 horizons"),
    "a role that is none": ({"multipliers": "[{hiden: 1}]"}, [], "did you mean 'hidden'?"),
    "nothing to vary": ({"seeds": "[]"}, [], "seeds"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_the_thing(name, make_sweep):
    axes, overrides, expected = MISTAKES[name]
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        load_sweep(make_sweep(**axes), overrides)
    assert expected in str(error.value)


def test_an_unknown_model_is_answered_with_the_nearest(make_sweep):
    groups = load_sweep(make_sweep(models="{narrow: {}}"))
    with pytest.raises(UserError, match="did you mean 'narrow'"):
        select(groups, ["narow"])
    assert select(groups, []) == groups
