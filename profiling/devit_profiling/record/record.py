"""What a run is made of: its plan, phases and snapshots, and the raw data that were gathered in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from devit_contract.artefacts.fleet import Extra
from devit_contract.errors import DevitError, InputError
from devit_contract.wire.codec import State
from devit_contract.wire.messages import Description, DeviceTiming, Mark, PowerLine, SamplingCost
from devit_contract.wire.status import NodeStatus
from devit_profiling.record.calibration import Calibration

SCHEMA = 2
TOGETHER = "together"
"""Name of the scenario in which the whole cell works."""
PhaseKind: TypeAlias = Literal["idle", "idle after", "settle", "warm-up", "window"]
IDLE: PhaseKind = "idle"
IDLE_AFTER: PhaseKind = "idle after"
SETTLE: PhaseKind = "settle"
WARM_UP: PhaseKind = "warm-up"
WINDOW: PhaseKind = "window"
OUTSIDE = 0
"""Window number of answers outside all windows: warm-up, and those in flight at the end."""
LOCAL = "local"
"""Name of this machine where it is measured without a node."""
NODE = "fusion node"
"""Name of the node's machine among the devices: none of them can have it."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is measured, and for how long. The defaults are the full plan; :data:`QUICK` is the quick look."""

    is_quick: bool = False
    has_alone: bool = True
    """Whether each device is asked alone before all are asked together."""
    has_idle_after: bool = True
    """Whether the idle power is measured again after the load, to see it drift."""
    settle_s: float = 3.0
    """Rest before each idle phase: seven time constants of the sensor's lag."""
    idle_s: float = 10.0
    warm_up_s: float = 3.0
    warm_up_answers: int = 20
    """The warm-up lasts until both its time and its number of answers are reached."""
    duration_s: float = 10.0
    """Length of one window."""
    windows: int = 5
    interval_ms: int = 100
    """Sampling period that the sampler is asked for."""
    in_flight: int = 1
    """Requests in flight at once; with 1 the latency has no queueing in it."""
    rate_hz: float | None = None
    """Requests a second, sent whatever has been answered; absent: each answer makes the next request due."""
    baseline: str = ""
    """Device that runs the baseline model too, before anything else; empty: none does."""
    sustained_s: float | None = None
    """Longest time in which windows of all devices together are repeated until the temperature has settled; absent: as
    many windows as in any scenario."""
    has_power: bool = True
    """Whether power is sampled; without it, times alone are measured."""
    idle_samples: int = 8
    """Least power samples of an idle phase."""
    window_samples: int | None = None
    """Least power samples of a window, of any length; by default the rules of :func:`~.energy.measure_window`."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        bounds = (
            ("settle_s", self.settle_s, 0, 3600),
            ("idle_s", self.idle_s, 0.01, 3600),
            ("warm_up_s", self.warm_up_s, 0, 3600),
            ("warm_up_answers", self.warm_up_answers, 0, 1_000_000),
            ("duration_s", self.duration_s, 0.01, 86_400),
            ("windows", self.windows, 1, 1000),
            ("interval_ms", self.interval_ms, 10, 60_000),
            ("in_flight", self.in_flight, 1, 64),
            ("rate_hz", self.rate_hz, 0.01, 100_000),
            ("sustained_s", self.sustained_s, 2 * self.duration_s, 86_400),
        )
        for name, value, low, high in bounds:
            if value is not None and not low <= value <= high:
                raise InputError(f"plan: {name}: expected {low} to {high}, found {value:g}: choose another value")


QUICK = Plan(is_quick=True, has_alone=False, has_idle_after=False, settle_s=0.0, idle_s=5.0, windows=1)
"""A first look in about 20 s: the whole cell, one window, no interval of confidence."""


NO_POWER = "left out by the plan (--no-power)"
"""Why a run by such a plan has no joules."""


class Boundary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The boundary of a phase: the moment on every clock, and the work of every device so far."""

    host_ns: int
    """Monotonic clock of the host, the machine that runs ``profile``; for answers per second only."""
    snapshots: dict[str, Mark]
    """By device, each on its own clock; and of the node's machine where it was sampled, which is the host: its work is
    answers."""
    asked_ns: dict[str, tuple[int, int]] = {}
    """By device: the host's clock before and after the question for its snapshot; not of the node's machine."""


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An interval of the run in which nothing changes on purpose."""

    scenario: str
    kind: PhaseKind
    number: int
    """Of a window, from 1; :data:`OUTSIDE` for other phases."""
    start: Boundary
    end: Boundary

    @property
    def title(self) -> str:
        """Its kind, and the number of a window."""
        return self.kind if self.number == OUTSIDE else f"{self.kind} {self.number}"

    @property
    def duration_s(self) -> float:
        """Length on the host's clock."""
        return (self.end.host_ns - self.start.host_ns) / 1e9

    def span_ns(self, device: str) -> tuple[int, int]:
        """Give start and end on a device's clock."""
        return self.start.snapshots[device].monotonic_ns, self.end.snapshots[device].monotonic_ns


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which devices get requests."""

    name: str
    """:data:`TOGETHER`, or the device's name and "alone"."""
    mask: int
    """Of the requests: bit i for device i; 0 asks all."""
    device: str = ""
    """The device that works alone; empty where all work."""
    is_baseline: bool = False
    """Whether that device runs the baseline model by itself, without requests; its snapshots count that model."""
    is_idle: bool = False
    """Whether nothing runs: its windows are those of a machine at rest."""


class BaselineWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inferences of the baseline model in one window, timed by its device."""

    number: int
    inferences: int
    p50_ms: float | None
    """Absent where there was none."""
    p95_ms: float | None
    p99_ms: float | None


class BaselineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The baseline model on one device."""

    device: str
    engine: str
    windows: tuple[BaselineWindow, ...]


class CellDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the node knew of one device of the cell, measured or not."""

    name: str
    submodel: int
    state: str
    answered: int
    late: int
    missing: int


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run keeps of the node's status."""

    image_shape: tuple[int, int, int]
    min_devices: int
    deadline_ms: float
    frames: dict[str, int]
    """Frames ended since the node's start, by state."""
    devices: tuple[CellDevice, ...]

    @classmethod
    def of(cls, status: NodeStatus) -> NodeRecord:
        """Take it from the node's answer."""
        devices = tuple(
            CellDevice(each.name, each.submodel, each.state, each.answered, each.late, sum(each.missing.values()))
            for each in status.devices
        )
        return cls(status.image_shape, status.min_devices, status.deadline_ms, status.frames, devices)


class DeviceRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named device of the run."""

    name: str
    submodel: int
    description: Description
    sensor_problem: str = ""
    """Why there are no power samples, or no more from some moment on; empty if sampling worked."""
    sampling: SamplingCost | None = None
    """Cost of the sampling itself on the device; absent where the device did not report it."""
    calibration: Calibration | None = None
    """Calibration of its total at the time of the run; absent where there was none."""


class CutShort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run ended before its plan did."""

    cause: str
    """Why, for people."""
    is_interrupt: bool
    """Whether the user ended it."""
    scenario: str
    """The scenario that was running."""
    windows: int
    """Of its windows, how many had ended; an unfinished one is in no figure."""

    @classmethod
    def by(cls, cause: KeyboardInterrupt | DevitError, scenario: str, phases: Iterable[Phase]) -> CutShort:
        """Describe what ended a run early in a scenario, after these phases."""
        windows = max((phase.number for phase in phases if phase.scenario == scenario), default=OUTSIDE)
        is_interrupt = isinstance(cause, KeyboardInterrupt)
        why = "Ctrl-C or SIGTERM" if is_interrupt else " ".join(str(cause).split())
        return cls(why, is_interrupt, scenario, windows)


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``run.json``."""

    schema: int
    name: str
    started_utc: str
    software: str
    """Version of this package."""
    pictures: str
    """What was sent, for people."""
    plan: Plan
    devices: tuple[DeviceRecord, ...]
    scenarios: tuple[Scenario, ...]
    phases: tuple[Phase, ...]
    bundle: str
    """What the engines were made from, as the node or the engine calls it; a sentence where no engine ran."""
    node_before: NodeRecord | None = None
    """Absent where a machine was measured without a node."""
    node_after: NodeRecord | None = None
    """Absent where the node could no longer be asked."""
    cut_short: CutShort | None = None
    node: DeviceRecord | None = None
    """The node's machine, without a submodel (-1); absent in runs without a node."""
    extras: tuple[Extra, ...] = ()
    """``[[extra]]`` of the fleet file."""
    baseline: BaselineRecord | None = None

    @property
    def machines(self) -> tuple[DeviceRecord, ...]:
        """The devices, and the node's machine where it was sampled."""
        return (*self.devices, self.node) if self.node is not None and self.node.description.sensor else self.devices

    @property
    def boundaries(self) -> list[Boundary]:
        """Those of all phases, in their order."""
        return [boundary for phase in self.phases for boundary in (phase.start, phase.end)]

    @property
    def is_local(self) -> bool:
        """Whether a machine was measured by itself, without a node."""
        return self.node_before is None

    def names_by_submodel(self) -> dict[int, str]:
        """Give the name of every device of the cell, measured here or not, by device index."""
        cell = self.devices if self.node_before is None else self.node_before.devices
        names: dict[int, str] = {}
        for device in cell:
            names.setdefault(device.submodel, device.name)  # its spares come behind
        return names


@dataclass(frozen=True)
class AnswerRow:
    """One row of ``latency.csv``."""

    scenario: str
    window: int
    """Window in which it arrived, from 1; :data:`OUTSIDE` outside of them."""
    state: State
    mask: int
    latency_ms: float
    wait_us: int
    collect_us: int
    fuse_us: int
    missing: Mapping[int, str]
    """Device index to why its feature is not in the answer."""
    devices: tuple[DeviceTiming, ...]
    sent_ns: int
    """The host's monotonic clock when the request was due, which the latency counts from."""
    late_us: int = 0
    """How much later than that it was sent: only with requests at a fixed rate."""

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer; a failed frame has none."""
        return self.state is not State.FAILED


@dataclass(frozen=True)
class Recording:
    """All raw data of a run."""

    run: Run
    lines: Mapping[str, Collection[PowerLine]]
    """By device name; empty where nothing was sampled. Those of a folder are read whenever they are gone through."""
    answers: tuple[AnswerRow, ...]
