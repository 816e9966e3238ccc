"""What the bodies of messages hold: typed structs, decoded strictly, as msgpack.

A new kind of question is a new field value or a new optional field here, never a new wire format.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from typing import Literal, TypeVar

import msgspec

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.choices import FeatureDtype, Policy
from devit_contract.errors import WireError
from devit_contract.printable import fit_to_store, in_all_texts, printable
from devit_contract.wire.codec import Dtype, Message

T = TypeVar("T", bound=msgspec.Struct)

_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of a new histogram, from half a millisecond to a second: what the parts of a cell take."""


class _TextEnum(str, enum.Enum):
    """A closed set of words; a member is its word wherever text is wanted."""

    def __str__(self) -> str:
        return str(self.value)


class Question(_TextEnum):
    """What a CONTROL message asks for."""

    STATUS = "status"
    """The node: its state and its devices', as :class:`NodeStatus`."""
    DESCRIBE = "describe"
    """An agent: what it runs on, as :class:`Description`."""
    MARK = "mark"
    """An agent: its clock and its counters, as :class:`Mark`."""
    SAMPLE_START = "sample-start"
    """An agent: sample power, and send :class:`Telemetry`."""
    SAMPLE_STOP = "sample-stop"
    """An agent: stop sampling, and report :class:`SamplingCost`."""
    BASELINE = "baseline"
    """An agent: take a step with the bundle's baseline model, as :class:`BaselineState`."""
    PING = "ping"
    """An agent, by the node alone: reply."""


class DeviceState(_TextEnum):
    """How the node treats a device."""

    ABSENT = "absent"
    """No link."""
    READY = "ready"
    STALLED = "stalled"
    """An answer is overdue."""
    SUSPENDED = "suspended"
    """It missed deadline after deadline, and is probed once a second."""
    LEAVING = "leaving"
    """It shuts down."""
    SUSPECT = "suspect"
    """Its features do not fit those of the others, so they are not used; it is probed once a second."""


class MissingReason(_TextEnum):
    """Why a device's feature is not in an answer: what happened, then what to do."""

    ABSENT = "absent"
    """There is no link to it. Start its agent; read its journal."""
    RESTARTED = "restarted"
    """Its agent was restarted after it got the frame. Nothing; if you did not restart it, read its journal."""
    RECONNECTED = "reconnected"
    """Its link was lost after it got the frame, and is back. Look at the network if it happens again."""
    LEAVING = "leaving"
    """Its agent is shutting down. Nothing; start it again when you are done."""
    DEADLINE = "deadline"
    """Its feature did not come before the deadline. Raise `deadline_ms`; lock clocks; look at the network."""
    STALLED = "stalled"
    """An earlier answer of it is overdue, so the node did not wait. The same as for `deadline`."""
    SUSPENDED = "suspended"
    """Too many of its last frames came late, so the node did not wait. The same as for `deadline`."""
    OVERLOAD = "overload"
    """More requests come than the devices answer in time. Send fewer, or use another cell."""
    EXPIRED = "expired"
    """The deadline was over before the device started. Raise `deadline_ms`, or lower the load."""
    DECODE = "decode"
    """The device could not read the picture. Send another; PNG and JPEG are read."""
    ENGINE = "engine"
    """Its engine failed on the image, or was replaced meanwhile. Read its journal."""
    NO_SOURCE = "no_source"
    """It was triggered, but has no camera, or no picture yet. Set `source` in `agent.toml`; look at the cable."""
    STOPPING = "stopping"
    """Its agent stopped before it came to the frame. Nothing; start it again when you are done."""
    SHAPE = "shape"
    """Its feature has another shape or type than the bundle's. Give node and device the same bundle."""
    DEVICE = "device"
    """Its feature carries another device's number. Give node and device the same release."""
    NONFINITE = "nonfinite"
    """Its feature held NaN or infinity. Run `devit engines verify`, then `devit build` again."""
    IMPLAUSIBLE = "implausible"
    """Its feature is far longer than any of a validation image. Build its engine again; else that device is faulty."""
    FUSION = "fusion"
    """The node could not fuse the features; `devit status` says why. Ask again; if it stays, export the bundle anew."""
    SUSPECT = "suspect"
    """Its features do not fit those of the others, so none is used. Look at its camera; run `devit engines verify`."""
    NOT_ASKED = "not asked"
    """The client, or its policy, asked for other devices. Nothing."""
    NOT_NEEDED = "not needed"
    """The answer was certain without it. Nothing."""


NEVER_ASKED = (MissingReason.NOT_ASKED, MissingReason.NOT_NEEDED)
"""Why a feature is missing though nothing went wrong."""


BaselineStep = Literal["load", "run", "rest", "state", "free"]
"""What an agent may be asked to do with the bundle's baseline model; ``state`` only reports."""
BaselinePhase = Literal["nothing", "loading", "resting", "running", "freeing", "failed"]
"""What an agent's baseline model is doing."""


class Hello(msgspec.Struct, frozen=True):
    """HELLO: an agent introduces itself."""

    name: str
    submodel: int
    feature_dim: int
    model_sha256: str
    """Digest of the ONNX graph in the manifest, so that devices of two bundles never meet in one answer."""
    engine: str
    """Back end and version, for people."""
    feature_dtypes: tuple[str, ...]
    """What it can send: ``float32``, ``float16``."""
    software: str
    """Version of this package."""
    can_withdraw: bool = False
    """Whether it knows WITHDRAW; absent from older agents."""


class Welcome(msgspec.Struct, frozen=True):
    """WELCOME: the node accepts an agent."""

    credit: int
    """Frames in flight at the same time."""
    feature_dtype: FeatureDtype


class Refused(msgspec.Struct, frozen=True):
    """REFUSED: why, in one line for people; the reason in the header is for programs."""

    text: str


class Control(msgspec.Struct, frozen=True):
    """CONTROL, the question: client to node, and node to agent where ``device`` is set."""

    question: Question
    device: str = ""
    interval_ms: int = 0
    """``sample-start``: sampling period."""
    step: BaselineStep = "state"
    """``baseline``: what to do."""


class Description(msgspec.Struct, frozen=True):
    """What an agent reports of its device."""

    board_model: str
    """Device-tree model, or the machine's CPU if there is none."""
    l4t: str
    """L4T release; empty if there is none."""
    engine: str
    sensor: str
    """The command that samples power; empty where none is set."""
    inference_threads: int
    power_mode: str = ""
    """Current name and number of ``nvpmodel``; empty if there is none or a container hides it."""
    clocks: tuple[str, ...] = ()
    """Current ranges of GPU and CPU clocks, a single figure is a fixed clock, as after ``jetson_clocks``."""
    is_root: bool | None = None
    """Whether the sampler may read what only root may; absent from older agents."""
    board_choice: str = "auto"
    """``board`` of agent.toml, or what else names the board."""
    compatible: tuple[str, ...] = ()
    """Of the device tree; empty if there is none, and from older agents."""


class Mark(msgspec.Struct, frozen=True):
    """A moment on an agent's clock, and its counters at that moment."""

    monotonic_ns: int
    inferences: int
    busy_ns: int
    """Time spent in the engine since start."""
    baseline_inferences: int = 0
    """Of the baseline model, run for the profiler."""
    baseline_busy_ns: int = 0


class Histogram(msgspec.Struct):
    """How long something took, counted since start: two additions a duration, no list that grows."""

    bounds_s: tuple[float, ...]
    """Upper bounds of the buckets, rising; one more bucket takes what is longer."""
    counts: list[int]
    """How many fell into each bucket, not added up; one more than bounds."""
    sum_s: float

    @classmethod
    def empty(cls) -> Histogram:
        """Start with no duration, in buckets from half a millisecond to a second."""
        return cls(_BOUNDS_S, [0] * (len(_BOUNDS_S) + 1), 0.0)

    def add_us(self, duration_us: int) -> None:
        """Count one duration."""
        duration_s = duration_us / 1e6
        self.counts[bisect_left(self.bounds_s, duration_s)] += 1
        self.sum_s += duration_s

    def quantile_s(self, share: float) -> float | None:
        """Estimate a quantile by a straight line within its bucket; ``None`` where nothing was counted.

        A duration beyond the last bound counts as twice that bound at most.
        """
        wanted, below, lower_s = share * sum(self.counts), 0, 0.0
        for count, upper_s in zip(self.counts, (*self.bounds_s, 2 * self.bounds_s[-1]), strict=True):
            if count and below + count >= wanted:
                return lower_s + (upper_s - lower_s) * max(0.0, wanted - below) / count
            below += count
            lower_s = upper_s
        return None


class Event(msgspec.Struct, frozen=True):
    """Something that a node noticed, for people."""

    age_s: float
    """Seconds ago."""
    device: str
    """Name of a device, or of a client; empty if it concerns no single one."""
    text: str


class DeviceStatus(msgspec.Struct, frozen=True):
    """What the node knows of one device; counters run since the node's start."""

    name: str
    submodel: int
    state: DeviceState
    engine: str = ""
    engine_revision: int = 0
    credit: int = 0
    """Frames it may have in flight."""
    in_flight: int = 0
    last_seen_s: float | None = None
    """Seconds since its last message; ``None`` if none ever came."""
    links: int = 0
    """How often it was accepted."""
    sent: int = 0
    """Frames sent to it."""
    answered: int = 0
    late: int = 0
    missing: dict[MissingReason, int] = {}
    """Frames that ended without its feature though it was requested, by cause."""
    rejected: dict[str, int] = {}
    """Messages of it that were not used, by reason."""
    round_trip: Histogram | None = None
    """From dispatch to its feature's arrival."""
    inference: Histogram | None = None
    queue: Histogram | None = None
    """From reading a frame to starting on it."""
    is_revoked: bool = False
    """Whether its key is revoked, so that it is locked out."""
    suspicion: float = 0.0
    """How much speaks against its features, from 0 to 1, the limit."""
    is_suspect: bool = False
    """Whether its features do not fit those of the others."""


class ClientStatus(msgspec.Struct, frozen=True):
    """What the node knows of one client; counters run since the node's start."""

    name: str
    """Of its key; empty for all clients of a cell without encryption."""
    waiting: int = 0
    """Requests that have not been sent to devices."""
    in_flight: int = 0
    """Requests that have, and are not answered."""
    frames: dict[str, int] = {}
    """As those of the node."""
    device_s: float = 0.0
    """What its frames took of the slowest device in them: clients share this time evenly."""


class HeadStatus(msgspec.Struct, frozen=True):
    """The heads of subsets of devices that a node has: it computes one when a frame needs it."""

    kept: int = 0
    kept_bytes: int = 0
    computed: int = 0
    """Since its start; the kept ones are the last of them."""
    waiting: int = 0
    """Frames that wait for one."""


class PromiseStatus(msgspec.Struct, frozen=True):
    """What the node promises of certain answers, and what checking some of them has shown since its start."""

    flips: float
    """The largest share of answers that may differ from that of all devices."""
    confidence: float
    audited: int = 0
    """Certain answers that were checked by all devices."""
    flipped: int = 0
    """Those of them that differ from that of all devices."""
    flip_rate_bound: float = 1.0
    """How large the share of answers that differ may be, with that confidence."""
    is_broken: bool = False
    """Whether more differ than promised, so that the node asks all devices again."""


class NodeStatus(msgspec.Struct, frozen=True):
    """What the node reports of itself and of its devices; counters run since its start."""

    bundle: str
    labels: tuple[str, ...]
    image_shape: tuple[int, int, int]
    preprocess: Preprocess
    """How a picture file becomes an image of that shape."""
    frames: dict[str, int]
    """Frames ended, by state; ``shed`` are those among ``failed`` that the queue had no room for."""
    devices: tuple[DeviceStatus, ...]
    min_devices: int
    deadline_ms: float
    wire_bytes: dict[str, int]
    """Headers included: ``devices_in`` and ``clients_in`` of every message, ``devices_out`` of frames,
    ``clients_out`` of answers."""
    software: str = ""
    """Version of this package at the node."""
    uptime_s: float = 0.0
    open_frames: int = 0
    waiting_requests: int = 0
    frame_time: Histogram | None = None
    """From a request's arrival at the node to its answer."""
    refused_handshakes: int = 0
    """Connections that ended without a message: no allowed key, no CURVE, garbage, half a handshake."""
    unknown_peers: int = 0
    """Messages under a name that is not in the fleet, or not the sender's."""
    refused_requests: dict[str, int] = {}
    """Invalid messages of clients, by reason."""
    floods: int = 0
    """Connections shut because their message did not end."""
    events: tuple[Event, ...] = ()
    """The latest ones, newest first."""
    without_device: tuple[int, ...] = ()
    """Submodels of the bundle that no device of the fleet runs."""
    clients: tuple[ClientStatus, ...] = ()
    heads: HeadStatus = HeadStatus()
    policy: Policy = "all"
    """Of requests that name none."""
    promise: PromiseStatus | None = None
    """``None`` where the bundle holds no calibration."""
    asked: dict[int, int] = {}
    """Frames ended, by the number of devices that were sent them."""


class SamplingCost(msgspec.Struct, frozen=True):
    """What sampling power cost the device itself, from the first sample to the end."""

    duration_s: float
    sampler_cpu_s: float | None
    """CPU time of the sampler's process; ``None`` if it is unknown."""
    reader_cpu_s: float
    """CPU time of the agent to read the samples and pass them on."""


class BaselineState(msgspec.Struct, frozen=True):
    """How an agent's baseline model is, and the times of its inferences since the last such message."""

    state: BaselinePhase
    engine: str
    problem: str
    """Why it failed, with what to run; empty if it did not."""
    inferences: int = 0
    p50_ms: float | None = None
    """Absent if there was no inference."""
    p95_ms: float | None = None
    p99_ms: float | None = None


class ControlReply(msgspec.Struct, frozen=True):
    """CONTROL, the answer: one field is set, or ``error``, or none if there is nothing to report."""

    error: str = ""
    status: NodeStatus | None = None
    description: Description | None = None
    mark: Mark | None = None
    sampling: SamplingCost | None = None
    """To ``sample-stop``: what the last sampling cost."""
    baseline: BaselineState | None = None


class PowerLine(msgspec.Struct, frozen=True, array_like=True):
    """One line of the sampler as it came."""

    monotonic_ns: int
    """The device's monotonic clock: when the sensor was read if the line says so, else on arrival."""
    text: str


class Telemetry(msgspec.Struct, frozen=True):
    """TELEMETRY: power samples of one device since the last such message."""

    device: str
    lines: tuple[PowerLine, ...]
    ended: str = ""
    """Why no more will come; empty while sampling continues."""


class DeviceTiming(msgspec.Struct, frozen=True, array_like=True):
    """What one device cost in one answer, in microseconds."""

    device: int
    network_us: int
    """Round trip less what the agent accounts for."""
    queue_us: int
    decode_us: int
    inference_us: int
    arrival_us: int
    """From the dispatch to this device, which of a later stage is not the frame's, to its feature's arrival."""
    capture_age_us: int = 0
    """With the device's own source: age of the image when its feature was sent."""


class AnswerBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """ANSWER: logits and what they cost; state and mask are in the header."""

    logits: bytes
    """float32, little-endian, shape ``(K,)``; empty if the frame failed."""
    devices: tuple[DeviceTiming, ...]
    """Those whose features are in the answer."""
    missing: dict[int, MissingReason]
    """Device index to why its feature is not in the answer."""
    wait_us: int
    """From the request's arrival at the node to its dispatch to the devices."""
    collect_us: int
    """From dispatch to the last feature or the deadline."""
    fuse_us: int
    policy: Policy = "all"
    """By which devices were asked."""
    asked: int = 0
    """Mask of the devices that were sent the frame."""
    score: float | None = None
    """How certain the answer is, where that was tested."""
    threshold: float | None = None
    """The score from which on it is certain."""
    novelty: float | None = None
    """How unlike the validation images it is, as a quantile of these; 1 is unlike any."""


def body(value: msgspec.Struct) -> bytes:
    """Encode a struct as a message's payload (dtype ``BODY``)."""
    try:
        return msgspec.msgpack.encode(value)
    except UnicodeEncodeError:  # an error's text may hold a file name that is not UTF-8
        return msgspec.msgpack.encode(fit_to_store(value, builtin_types=(bytes,)))


def read_text(message: Message, kind: type[T]) -> T:
    """Decode a payload as :func:`read_body` does, with what a terminal would obey escaped in all its texts.

    For what people are shown, as devices and nodes may say anything.
    """
    return msgspec.convert(in_all_texts(printable, msgspec.to_builtins(read_body(message, kind))), kind)


def read_body(message: Message, kind: type[T]) -> T:
    """Decode a message's payload.

    Raises:
        WireError: (reason ``body``) It is no struct of that kind.
    """
    if message.dtype is not Dtype.BODY:
        raise WireError("body", f"{message.kind.name}: expected a body, found {message.dtype.name}")
    try:
        return msgspec.msgpack.decode(message.payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise WireError("body", f"{message.kind.name}: expected a {kind.__name__}: {err}") from err
