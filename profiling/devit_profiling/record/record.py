"""What a run is made of: its plan, phases and snapshots, and the raw data that were gathered in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from devit_contract.artefacts.fleet import Extra
from devit_contract.errors import InputError
from devit_contract.wire.codec import State
from devit_contract.wire.messages import Description, DeviceTiming, Mark, NodeStatus, PowerLine, SamplingCost
from devit_profiling.record.calibration import Calibration

SCHEMA = 2
TOGETHER = "together"
"""Name of the scenario in which the whole cell is asked."""
IDLE, IDLE_AFTER, SETTLE, WARM_UP, WINDOW = "idle", "idle after", "settle", "warm-up", "window"
"""Kinds of phases."""
OUTSIDE = 0
"""Window number of answers outside all windows: warm-up, and what was under way at the end."""
LOCAL = "local"
"""State of a device that is measured by itself, without a node; and how the command line calls this machine."""
NODE = "fusion node"
"""Name of the node's machine among the devices: none of them can have it."""
_KINDS = (IDLE, IDLE_AFTER, SETTLE, WARM_UP, WINDOW)


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
    """Requests under way at once; with 1 the latency has no queueing in it."""
    rate_hz: float | None = None
    """Requests a second, sent whatever has been answered; absent: each answer makes the next request due."""
    undivided: str = ""
    """Device that runs the undivided model too, before anything else; empty: none does."""
    sustained_s: float | None = None
    """Longest time in which windows of all devices together are repeated until the temperature has settled; absent: as
    many windows as in any scenario."""
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


class Boundary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The boundary of a phase: the moment on every clock, and what every device had done by then."""

    host_ns: int
    """Monotonic clock of the machine that asks; for answers per second only."""
    snapshots: dict[str, Mark]
    """By device, each on its own clock; and of the node's machine where it was sampled, which is the one that asks:
    what it has done are answers."""
    asked_ns: dict[str, tuple[int, int]] = {}
    """By device: the host's clock before and behind the question for its snapshot; not in older runs."""


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stretch of the run in which nothing changes on purpose."""

    scenario: str
    kind: str
    """One of :data:`IDLE`, :data:`IDLE_AFTER`, :data:`SETTLE`, :data:`WARM_UP`, :data:`WINDOW`."""
    number: int
    """Of a window, from 1; :data:`OUTSIDE` for other phases."""
    start: Boundary
    end: Boundary

    def __post_init__(self) -> None:
        """Refuse unknown kinds."""
        if self.kind not in _KINDS:
            raise ValueError(f"kind: expected one of {', '.join(_KINDS)}, found {self.kind!r}")

    @property
    def duration_s(self) -> float:
        """Length on the host's clock."""
        return (self.end.host_ns - self.start.host_ns) / 1e9


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is asked."""

    name: str
    """:data:`TOGETHER`, or the device's name and "alone"."""
    mask: int
    """Of the requests: bit i for device i; 0 asks all."""
    device: str = ""
    """The device that works alone; empty where all do."""
    is_undivided: bool = False
    """Whether that device runs the undivided model by itself, and nobody is asked; its snapshots count that model."""
    is_idle: bool = False
    """Whether nothing runs: its windows are those of a machine at rest."""


class UndividedWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inferences of the undivided model in one window, as its device timed them."""

    number: int
    inferences: int
    p50_ms: float | None
    """Absent where there was none."""
    p95_ms: float | None
    p99_ms: float | None


class UndividedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The undivided model on one device."""

    device: str
    engine: str
    windows: tuple[UndividedWindow, ...]


class CellDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the node knew of one device of the cell, measured or not."""

    name: str
    submodel: int
    state: str
    answered: int
    late: int
    missing: int


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run keeps of the node's status, whatever else later nodes tell."""

    bundle: str
    image_shape: tuple[int, int, int]
    k_min: int
    deadline_ms: float | None
    """Absent where a machine was measured by itself, without one."""
    frames: dict[str, int]
    """Frames ended since the node's start, by state."""
    devices: tuple[CellDevice, ...]

    @classmethod
    def of(cls, status: NodeStatus) -> NodeRecord:
        """Take it from the node's answer."""
        devices = tuple(
            CellDevice(
                device.name,
                device.submodel,
                device.state,
                device.answered,
                device.late,
                missing=sum(device.missing.values()),
            )
            for device in status.devices
        )
        return cls(status.bundle, status.image_shape, status.k_min, status.deadline_ms, status.frames, devices)


class DeviceRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named device of the run."""

    name: str
    submodel: int
    description: Description
    sensor_problem: str = ""
    """Why there are no power samples, or no more from some moment on; empty if there was no trouble."""
    sampling: SamplingCost | None = None
    """What the sampling itself has cost the device; absent where it did not tell."""
    calibration: Calibration | None = None
    """Of its total, as it stood when the run was measured; absent where there was none."""


class CutShort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run ended before its plan did."""

    cause: str
    """In words."""
    is_interrupt: bool
    """Whether somebody wanted it to end."""
    scenario: str
    """The one that was under way."""
    windows: int
    """Of its windows, how many had ended: the one under way is no figure."""


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
    before: NodeRecord
    after: NodeRecord | None
    """Absent where the node could not be asked any more."""
    cut_short: CutShort | None = None
    node: DeviceRecord | None = None
    """The node's machine, without a submodel (-1); absent in older runs, which did not look for its sensor."""
    extras: tuple[Extra, ...] = ()
    """Of the fleet file."""
    undivided: UndividedRecord | None = None

    @property
    def machines(self) -> tuple[DeviceRecord, ...]:
        """The devices, and the node's machine where it was sampled."""
        return (*self.devices, self.node) if self.node is not None and self.node.description.sensor else self.devices

    @property
    def is_local(self) -> bool:
        """Whether a machine was measured by itself, without a node."""
        return all(device.state == LOCAL for device in self.before.devices)

    def names_by_submodel(self) -> dict[int, str]:
        """Give the name of every device of the cell, measured here or not, by device index."""
        return {device.submodel: device.name for device in self.before.devices}


@dataclass(frozen=True)
class AnswerRow:
    """One row of ``latency.csv``."""

    scenario: str
    window: int
    """Window in which it came, from 1; :data:`OUTSIDE` outside of them."""
    state: State
    mask: int
    latency_ms: float
    wait_us: int
    collect_us: int
    fuse_us: int
    missing: Mapping[int, str]
    """Device index to why its feature is not in the answer."""
    devices: tuple[DeviceTiming, ...]
    sent_ns: int | None = None
    """The host's monotonic clock when the request was due, which the latency counts from; absent in older
    runs."""
    late_us: int = 0
    """How much later than that it was made: only with requests at a fixed rate."""

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer; a failed frame has none."""
        return self.state is not State.FAILED


@dataclass(frozen=True)
class Recording:
    """All raw data of a run."""

    run: Run
    lines: Mapping[str, tuple[PowerLine, ...]]
    """By device name; empty where nothing was sampled."""
    answers: tuple[AnswerRow, ...]
