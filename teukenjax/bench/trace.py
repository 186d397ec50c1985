"""A profile of some steps, read into time per class."""

import itertools
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.profiler import ProfileData, ProfileOptions

from teukenjax.bench.classes import by_kernel

Interval = tuple[float, float]  # nanoseconds


@dataclass(frozen=True)
class Event:
    """One run of an instruction, or of one of its kernels, on a device."""

    device: str
    instruction: str  # empty where the profiler does not know it
    kernel: str
    start: float
    end: float

    @property
    def on_gpu(self) -> bool:
        """Where only kernels run; a host's events are also of loops around others."""
        return self.device.startswith("/device:GPU")


@dataclass(frozen=True)
class Shares:
    """Where the time of a step went, mean of devices.

    Attributes:
      window_s: from a device's first event to its last, per step.
      seconds: per step and class. Communication is what ran while nothing else did, and what
        other classes hid is ``hidden_s``. Classes that overlap each other count each in full.
      hidden_s: communication beside other work.
      idle_s: of the window, when nothing ran.
      by_name: of the classes' seconds, the share that only the kernel's name could tell.
    """

    window_s: float
    seconds: dict[str, float]
    hidden_s: float
    idle_s: float
    by_name: float

    def share(self, kind: str) -> float:
        """Of the window."""
        return self.seconds.get(kind, 0.0) / self.window_s


def profile(run: Callable[[], None]) -> list[Event]:
    """The events of a call; it must wait for its devices."""
    options = ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = 1
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        with warnings.catch_warnings():
            # The reader's types are deprecated by Python 3.12; as an error it would abort.
            warnings.simplefilter("ignore", DeprecationWarning)
            return list(read(path))


def read(path: Path) -> Iterator[Event]:
    """Events of devices; where there is no device but the host, of its instructions."""
    planes = list(ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in devices:
        for line in plane.lines:
            if line.name.startswith("Stream"):
                for event in line.events:
                    yield _event(plane.name, event, _last_stat(event, "hlo_op"))
    if not devices:
        for event in _host_events(planes):
            if instruction := _last_stat(event, "hlo_op"):
                yield _event(_last_stat(event, "device_ordinal"), event, instruction)


def shares(events: list[Event], classes: Mapping[str, str], *, steps: int) -> Shares:
    """Time per class of a profile of ``steps`` steps.

    Args:
      events: of all devices. A kernel of an instruction without a class, such as a CUDA graph of
        many, is classed by its name; loops on a host, which have no class, are left out.
      classes: instruction → class.
      steps: how many were profiled.
    """
    found = defaultdict(lambda: defaultdict(list))
    named = total = 0.0
    for event in events:
        kind = classes.get(event.instruction)
        if kind is None and event.instruction and not event.on_gpu:
            continue
        if kind is None:
            kind, named = by_kernel(event.kernel), named + event.end - event.start
        total += event.end - event.start
        found[event.device][kind].append((event.start, event.end))
    if not found:
        raise ValueError("the profile holds no event of the compiled step")
    each = [_device_shares(kinds) for kinds in found.values()]
    scale = 1e-9 / steps / len(each)
    kinds = {kind for one, _, _, _ in each for kind in one}
    return Shares(
        window_s=scale * sum(window for _, window, _, _ in each),
        seconds={kind: scale * sum(one.get(kind, 0.0) for one, _, _, _ in each) for kind in kinds},
        hidden_s=scale * sum(hidden for _, _, hidden, _ in each),
        idle_s=scale * sum(idle for _, _, _, idle in each),
        by_name=named / total,
    )


def _device_shares(kinds: dict[str, list[Interval]]):
    """Of one device: nanoseconds per class, of the window, of hidden communication, and idle."""
    busy = {kind: _length(_union(intervals)) for kind, intervals in kinds.items()}
    everything = _union(itertools.chain(*kinds.values()))
    work = _union(itertools.chain(*(i for kind, i in kinds.items() if kind != "communication")))
    hidden = 0.0
    if "communication" in busy:
        exposed = _length(everything) - _length(work)
        hidden, busy["communication"] = busy["communication"] - exposed, exposed
    window = everything[-1][1] - everything[0][0]
    return busy, window, hidden, window - _length(everything)


def _union(intervals) -> list[Interval]:
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _length(intervals: list[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def _event(device, event, instruction: str) -> Event:
    return Event(str(device), instruction, event.name, event.start_ns, event.end_ns)


def _last_stat(event, key: str):
    """The innermost of nested annotations comes last."""
    return ([value for name, value in event.stats if name == key] or [""])[-1]


def _host_events(planes) -> Iterator:
    for plane in planes:
        if plane.name.startswith("/host"):
            for line in plane.lines:
                yield from line.events
