"""A sweep as jobs: each does what the command does without ``--jobs``, and claims what is free.

So a job that is killed, or that starts days after the others, loses and repeats nothing. Jobs go to
Slurm by way of submitit (its extra: ``slurm``), or to processes of this machine by its local
executor.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from ruamel.yaml import YAML

from teukenjax.errors import UserError, nearest
from teukenjax.scaling.spec import Group, load_sweep, select

DEFAULTS: dict[str, dict[str, Any]] = {
    "slurm": {"gpus_per_node": 1, "timeout_min": 24 * 60, "name": "teukenjax-sweep"},
    "local": {"timeout_min": 24 * 60, "name": "teukenjax-sweep"},
}


class Request(NamedTuple):
    """A sweep's command line: plain values, which is all that travels to a job."""

    spec: Path
    overrides: tuple[str, ...]
    models: tuple[str, ...]
    out: Path

    def groups(self) -> list[Group]:
        """What there is to train; raises as ``load_sweep`` and ``select``."""
        return select(load_sweep(self.spec, self.overrides), self.models)

    def work(self, console: Console) -> None:
        """Trains what is free; raises as ``flags.launch`` and ``sweep.work``."""
        from teukenjax.flags import launch  # JAX starts in the job, not where it is sent from
        from teukenjax.scaling.sweep import work

        groups = self.groups()
        computes = {group.model: group.recipe.compute for group in groups}
        for compute in computes.values():  # of environments that differ, the first one's holds
            launch(compute)
        work(groups, self.out, console)


def submit(
    request: Request, console: Console, *, jobs: int, cluster: str, given: Sequence[str]
) -> list[Any]:
    """Hands the sweep to ``jobs`` jobs of a cluster; returns them without waiting.

    Args:
      request: what they share.
      console: is told their numbers.
      jobs: how many.
      cluster: "slurm" or "local".
      given: ``key=value``, parameters of submitit, such as ``slurm_partition=gpu``.

    Raises:
      UserError: for an unknown cluster or parameter, without submitit or Slurm, and for all that
        is wrong with the sweep itself.
    """
    if cluster not in DEFAULTS:
        raise UserError(f"--cluster {cluster}: {nearest(cluster, DEFAULTS)}")
    try:
        import submitit
    except ModuleNotFoundError:
        raise UserError("submitit is not installed: uv sync --extra slurm") from None
    request.groups()
    logs = (request.out / "jobs").resolve()
    parameters = DEFAULTS[cluster] | dict(map(_parameter, given))
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**parameters)
        with executor.batch():
            sent = [executor.submit(_job, request) for _ in range(jobs)]
    except (NameError, AssertionError, RuntimeError, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--cluster {cluster}: {first}") from None
    numbers = ", ".join(job.job_id for job in sent)
    console.print(f"{jobs} jobs on {cluster}: {numbers}; logs in {logs}", highlight=False)
    return sent


def _job(request: Request) -> None:
    request.work(Console(width=200, markup=False))


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: expected key=value, as in slurm_partition=gpu")
    return key, YAML(typ="safe", pure=True).load(value)
