"""What the bodies of messages hold: typed structs, decoded strictly, as msgpack.

A new kind of question is a new field value or a new optional field here, never a new wire format.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from devit_contract.choices import FeatureDtype, Policy
from devit_contract.errors import WireError
from devit_contract.machine import OverCurrentEvents, Throttling
from devit_contract.printable import fit_to_store, in_all_texts, printable
from devit_contract.wire.codec import Dtype, Message
from devit_contract.wire.status import NodeStatus
from devit_contract.wire.words import BaselinePhase, BaselineStep, MissingReason, Question

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
    can_withdraw: bool = False
    """Whether it knows WITHDRAW; absent from older agents."""
    image_codings: tuple[str, ...] = ()
    """Coded images that it reads: ``jpeg``, ``lossless``; none from older agents."""
    lacks_source: bool = False
    """Whether its bundle wants a camera of its own, and ``agent.toml`` names none."""


class Welcome(msgspec.Struct, frozen=True):
    """WELCOME: the node accepts an agent."""

    credit: int
    """Frames in flight at the same time."""
    feature_dtype: FeatureDtype


class Refused(msgspec.Struct, frozen=True):
    """REFUSED: why, in one line for people; the reason in the header is for programs."""

    text: str
    is_standby: bool = False
    """Whether the node is not the active one of several: the same request may be sent to another."""


class Control(msgspec.Struct, frozen=True):
    """CONTROL, the question: client to node, and node to agent where ``device`` is set."""

    question: Question
    device: str = ""
    interval_ms: int = 0
    """``sample-start``: sampling period."""
    step: BaselineStep = "state"
    """``baseline``: what to do."""
    lease_ms: int = 0
    """``lease``: for how long; 0 grants nothing, and ends the lease that this node holds."""


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
    gpu_instance: str = ""
    """``MIG 2g.0gb`` where the engine has that part of a divided GPU; empty if it has all, and from older agents."""


class Mark(msgspec.Struct, frozen=True):
    """A moment on an agent's clock, and its counters at that moment."""

    monotonic_ns: int
    inferences: int
    busy_ns: int
    """Time spent in the engine since start."""
    baseline_inferences: int = 0
    """Of the baseline model, run for the profiler."""
    baseline_busy_ns: int = 0
    over_current: OverCurrentEvents | None = None
    """Since the boot; absent where the board does not count them, and from older agents."""


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


class Vote(msgspec.Struct, frozen=True):
    """Who holds a lease, or of a node, whether it is active."""

    holder: int
    """Run of the node that holds the lease of who says this; 0 for none."""
    is_active: bool = False
    """Of a node: whether it was active when it said this."""
    run_id: int = 0
    """Of a node: its own run."""


class ControlReply(msgspec.Struct, frozen=True):
    """CONTROL, the answer: one field is set, or ``error``, or none if there is nothing to report."""

    error: str = ""
    status: NodeStatus | None = None
    description: Description | None = None
    mark: Mark | None = None
    sampling: SamplingCost | None = None
    """To ``sample-stop``: what the last sampling cost."""
    baseline: BaselineState | None = None
    over_current: OverCurrentEvents | None = None
    """To ``ping``: events since the agent's start; absent where the board does not count them."""
    throttling: Throttling | None = None
    """To ``ping``; absent where the board's files do not say, and from older agents."""
    vote: Vote | None = None
    """To ``lease``."""


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
    images: str = "raw"
    """What the client is to send its next images as, an ``ImageCoding``, or a word of a newer node."""
    shed: str = ""
    """Why the request was not served, a ``ShedReason`` or a word of a newer node; empty if it was sent to devices."""


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
