"""What XLA and the process are told besides the program: ``configs/flags.yaml``, by name.

XLA's flags go to the compiler with the train step, as its options, instead of through the
environment variable XLA_FLAGS. There a misspelt or retired flag aborts the process, and every
other program of the process gets it too; here it is an error that names it.
"""

import functools
import os

import jax
from pydantic import Field

from teukenjax.errors import UserError, nearest
from teukenjax.hardware import configs
from teukenjax.recipe import ComputeConfig, Section, read_yaml, validate

Options = dict[str, bool | int | str]


class FlagSet(Section):
    """One named set."""

    xla: Options = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)


@functools.cache
def catalogue() -> dict[str, FlagSet]:
    """All sets, by name."""
    path = configs() / "flags.yaml"
    return {
        name: validate(FlagSet, values, f"{path}: {name}")
        for name, values in read_yaml(path).items()
    }


def flag_set(name: str) -> FlagSet:
    """The set of that name.

    Raises:
      UserError: for a name that is not in the file.
    """
    known = catalogue()
    if name not in known:
        raise UserError(f"compute.flags={name}: {nearest(name, known)}")
    return known[name]


def compiler_options(compute: ComputeConfig) -> Options:
    """What the train step is compiled with: the named set, then the recipe's own flags."""
    return flag_set(compute.flags).xla | compute.xla_flags


def launch(compute: ComputeConfig) -> None:
    """Sets the environment and tries the flags; before anything else touches a device.

    Raises:
      UserError: for a flag that this XLA does not have, or a value that it does not take.
    """
    for name, value in flag_set(compute.flags).environment.items():
        os.environ.setdefault(name, value)
    for name, value in compiler_options(compute).items():
        try:
            jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
            known = {flag for each in catalogue().values() for flag in each.xla}
            own = name in compute.xla_flags
            key = "compute.xla_flags" if own else f"compute.flags={compute.flags}"
            raise UserError(f"{key}: {name}={value}: {reason}; {nearest(name, known)}") from None


def describe(compute: ComputeConfig) -> str:
    """The flags and the environment in one line, as they are in force."""
    parts = [f"{name}={value}" for name, value in compiler_options(compute).items()]
    parts += [f"{name}={os.environ.get(name)}" for name in flag_set(compute.flags).environment]
    if given := os.environ.get("XLA_FLAGS"):
        parts.append(f"XLA_FLAGS={given}")
    return f"{compute.flags}: {', '.join(parts) or 'nothing'}"
