"""``bench kernels`` at small sizes on a CPU, where the references alone can run."""

import jax.numpy as jnp
import pytest
from ruamel.yaml import YAML

from teukenjax.bench.kernels import choices, largest_error, measure
from teukenjax.errors import UserError
from teukenjax.kernels.cases import KERNELS, find_cases
from teukenjax.kernels.choice import TABLE


@pytest.fixture(scope="module")
def rows():
    return list(measure(find_cases(["rms_norm", "symmetric_matmul"], 32)))


def test_the_reference_is_checked_and_timed_and_others_say_why_not(rows):
    for row in rows:
        if row.implementation == "reference":
            assert len(row.times) == 8
            assert 0 < row.error < 2**-7  # the inputs are bf16, the exact result is fp32's
        else:
            assert "the device is a cpu" in row.refusal
            assert not row.times


def test_every_kernel_has_cases_whose_shape_is_that_of_the_table():
    """So that what is printed can be put into ``measured.yaml``."""
    known = {(row["kernel"], *row["shape"]) for row in YAML(typ="safe").load(TABLE.read_text())}
    shapes = {
        (case.kernel, *case.shape)
        for name in KERNELS
        for case in find_cases([name], 1)
        if case.shape
    }
    assert known <= shapes


def test_the_lines_for_the_table_are_read_as_rows_of_it(rows):
    read = YAML(typ="safe").load("\n".join(choices(rows, "cpu")))
    assert [row["kernel"] for row in read] == ["rms_norm", "symmetric_matmul"]
    assert read[0]["shape"] == {"T": 512, "D": 4096}
    assert all(row["ms"].keys() == {"reference"} for row in read)


def test_an_error_is_a_share_of_the_largest_value_of_its_array():
    exact = (jnp.array([0.0, 4.0]), jnp.array([100.0]))
    found = (jnp.array([1.0, 4.0]), jnp.array([101.0]))
    assert largest_error(found, exact) == 0.25


def test_an_unknown_kernel_is_refused():
    with pytest.raises(UserError, match=r"'rmsnorm' is not known: did you mean 'rms_norm'"):
        find_cases(["rmsnorm"], 1)
