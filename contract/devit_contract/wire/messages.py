"""What the bodies of messages hold: typed structs, decoded strictly, as msgpack.

A new kind of question is a new field value or a new optional field here, never a new wire format.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import WireError
from devit_contract.wire.codec import Dtype, Message

T = TypeVar("T", bound=msgspec.Struct)


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


class Welcome(msgspec.Struct, frozen=True):
    """WELCOME: the node accepts an agent."""

    credit: int
    """Frames in flight at once."""
    feature_dtype: str


class Refused(msgspec.Struct, frozen=True):
    """REFUSED: why, in one line for people; the header's reason is for programs."""

    text: str


class Control(msgspec.Struct, frozen=True):
    """CONTROL, the question: client to node, and node to agent where ``device`` is set."""

    ask: str
    """``status`` (node); ``describe``, ``mark``, ``sample-start``, ``sample-stop``, ``undivided`` (agent)."""
    device: str = ""
    interval_ms: int = 0
    """``sample-start``: sampling period."""
    step: str = ""
    """``undivided``: ``load``, ``run``, ``rest``, ``free`` the bundle's undivided model, or tell its ``state``."""


class Description(msgspec.Struct, frozen=True):
    """What an agent says of its device."""

    board_model: str
    """Device-tree model, or the machine's CPU where there is none."""
    l4t: str
    """L4T release, empty where there is none."""
    engine: str
    sensor: str
    """The command that samples power; empty where none is set."""
    inference_threads: int
    power_mode: str = ""
    """As ``nvpmodel`` has it now: name and number; empty where there is none, or a container hides it."""
    clocks: tuple[str, ...] = ()
    """Ranges of GPU and CPU clocks now, for people: a single figure is a fixed clock, as after ``jetson_clocks``."""
    is_root: bool | None = None
    """Whether the sampler may read what root alone may; absent from older agents."""


class Mark(msgspec.Struct, frozen=True):
    """A moment on an agent's clock, and what it had done by then."""

    monotonic_ns: int
    inferences: int
    busy_ns: int
    """Time spent in the engine since start."""
    undivided_inferences: int = 0
    """Of the undivided model, at the profiler's word."""
    undivided_busy_ns: int = 0


class Histogram(msgspec.Struct, frozen=True):
    """How long something took, counted since start."""

    bounds_s: tuple[float, ...]
    """Upper bounds of the buckets, rising; one more bucket takes what is longer."""
    counts: tuple[int, ...]
    """How many fell into each bucket, not added up; one more than bounds."""
    sum_s: float

    def quantile_s(self, share: float) -> float | None:
        """Estimate a quantile by a straight line within its bucket; ``None`` where nothing was counted.

        What lies beyond the last bound is taken for twice that bound at most.
        """
        wanted, below, lower_s = share * sum(self.counts), 0, 0.0
        for count, upper_s in zip(self.counts, (*self.bounds_s, 2 * self.bounds_s[-1]), strict=True):
            if count and below + count >= wanted:
                return lower_s + (upper_s - lower_s) * max(0.0, wanted - below) / count
            below += count
            lower_s = upper_s
        return None


class Happening(msgspec.Struct, frozen=True):
    """Something that a node noticed, for people."""

    age_s: float
    """Seconds ago."""
    device: str
    """Empty where it concerns no single device."""
    text: str


class DeviceStatus(msgspec.Struct, frozen=True):
    """What the node knows of one device; counters run since the node's start."""

    name: str
    submodel: int
    state: str
    """``absent`` (no link), ``ready``, ``stalled`` (an answer is overdue), ``suspended`` (misses deadline after
    deadline, tried once a second), ``leaving`` (shuts down)."""
    engine: str = ""
    engine_revision: int = 0
    credit: int = 0
    """Frames it may have in flight."""
    in_flight: int = 0
    last_seen_s: float | None = None
    """Seconds since its last message; ``None`` where none ever came."""
    links: int = 0
    """How often it was accepted."""
    asked: int = 0
    """Frames sent to it."""
    answered: int = 0
    late: int = 0
    missing: dict[str, int] = {}
    """Frames that ended without its feature though it was wished for, by cause."""
    rejected: dict[str, int] = {}
    """Messages of it that were not used, by reason."""
    round_trip: Histogram | None = None
    """From dispatch to its feature's arrival."""
    inference: Histogram | None = None
    queue: Histogram | None = None
    """From reading a frame to starting on it."""


class NodeStatus(msgspec.Struct, frozen=True):
    """What the node says of itself and of its devices; counters run since its start."""

    bundle: str
    labels: tuple[str, ...]
    image_shape: tuple[int, int, int]
    preprocess: Preprocess
    """How a picture file becomes an image of that shape."""
    frames: dict[str, int]
    """Frames ended, by state; ``shed`` are those among ``failed`` that the queue had no room for."""
    devices: tuple[DeviceStatus, ...]
    k_min: int
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
    """Connections that ended without a message: no key that is let in, no CURVE, garbage, half a handshake."""
    strangers: int = 0
    """Messages under a name that is not in the fleet, not the sender's, or revoked."""
    refused_requests: dict[str, int] = {}
    """Messages of clients that made no sense, by reason."""
    floods: int = 0
    """Connections shut because their message did not end."""
    events: tuple[Happening, ...] = ()
    """The latest ones, newest first."""


class SamplingCost(msgspec.Struct, frozen=True):
    """What sampling power has cost a device itself, from the first sample to the end."""

    duration_s: float
    sampler_cpu_s: float | None
    """CPU time of the sampler's process; ``None`` where it cannot be told."""
    reader_cpu_s: float
    """CPU time of the agent to read the samples and pass them on."""


class UndividedState(msgspec.Struct, frozen=True):
    """How an agent's undivided model is, and the times of its inferences since the last such message."""

    state: str
    """``nothing``, ``loading``, ``resting``, ``running``, ``freeing``, ``failed``."""
    engine: str
    problem: str
    """Why it failed, with what to run; empty where it did not."""
    inferences: int = 0
    p50_ms: float | None = None
    """Absent where there was no inference."""
    p95_ms: float | None = None
    p99_ms: float | None = None


class ControlReply(msgspec.Struct, frozen=True):
    """CONTROL, the answer: one field is set, or ``error``, or none where there is nothing to tell."""

    error: str = ""
    status: NodeStatus | None = None
    description: Description | None = None
    mark: Mark | None = None
    sampling: SamplingCost | None = None
    """To ``sample-stop``: what the last sampling has cost."""
    undivided: UndividedState | None = None


class PowerLine(msgspec.Struct, frozen=True, array_like=True):
    """One line of the sampler as it came."""

    monotonic_ns: int
    """The device's monotonic clock on arrival, or when the sensor was read where the line tells that."""
    text: str


class Telemetry(msgspec.Struct, frozen=True):
    """TELEMETRY: power samples of one device since the last such message."""

    device: str
    lines: tuple[PowerLine, ...]
    ended: str = ""
    """Why no more will come, empty while sampling goes on."""


class DeviceTiming(msgspec.Struct, frozen=True, array_like=True):
    """What one device cost in one answer, in microseconds."""

    device: int
    network_us: int
    """Round trip less what the agent accounts for."""
    queue_us: int
    decode_us: int
    inference_us: int
    arrival_us: int
    """From the frame's dispatch to its feature's arrival at the node."""
    capture_age_us: int = 0
    """With the device's own source: age of the image when its feature was sent."""


class AnswerBody(msgspec.Struct, frozen=True):
    """ANSWER: logits and what they cost; state and mask stand in the header."""

    logits: bytes
    """float32, little-endian, shape ``(K,)``; empty where the frame failed."""
    devices: tuple[DeviceTiming, ...]
    """Those whose features are in the answer."""
    missing: dict[int, str]
    """Device index to why its feature is not in the answer."""
    wait_us: int
    """From the request's arrival at the node to its dispatch to the devices."""
    collect_us: int
    """From dispatch to the last feature or the deadline."""
    fuse_us: int


def body(value: msgspec.Struct) -> bytes:
    """Encode a struct as a message's payload (dtype ``BODY``)."""
    return msgspec.msgpack.encode(value)


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
