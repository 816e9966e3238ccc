"""What a recording holds: one struct for each channel, as msgpack between node and recorder, as JSON in the file.

``at_ns`` is the node's monotonic clock when it handled the message. Records of one ``turn`` were handled in one turn of
the node's loop; waiting requests are dispatched at its end.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from devit_contract.artefacts.fleet import Fleet
from devit_contract.choices import ImageCoding, Policy
from devit_contract.wire.messages import DeviceTiming, Hello, PowerLine
from devit_contract.wire.words import MissingReason

Change = Literal["connected", "restarted", "engine", "leaving", "lost"]
"""What has happened to a device's link; ``restarted`` is ``connected`` by another process than before."""


class _Record(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag=str.lower, omit_defaults=True, gc=False
):
    at_ns: int


class Start(_Record, frozen=True, kw_only=True):
    """``start``: what the node serves, and under which rules; first in every file."""

    software: str
    run_id: int
    bundle: str
    """Name and serial."""
    bundle_folder: str
    """Where the node has it."""
    digests: dict[str, str]
    """SHA-256 of the bundle's graphs, fusion head and calibration, by file."""
    fleet: Fleet
    """Without keys, hosts and addresses."""
    utc_offset_ns: int
    """From the node's monotonic clock to UTC, which is the log time in the file."""


class FlightState(msgspec.Struct, frozen=True, array_like=True):
    """A frame that a device has not answered yet."""

    frame_id: int
    sent_ns: int
    deadline_ns: int
    is_withdrawn: bool
    coding: ImageCoding | None


class LinkState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the node knows of one device."""

    device: int
    name: str
    hello: Hello | None
    """``None`` while it is absent."""
    boot_id: int
    engine_revision: int
    links: int
    is_leaving: bool
    is_revoked: bool
    is_excluded: bool
    overdue: int
    probe_id: int
    probed_ns: int
    in_flight: tuple[FlightState, ...]
    pace: tuple[int | float, ...]
    """How fast it is, as the node has learned it."""


class Snapshot(_Record, frozen=True, kw_only=True):
    """``snapshot``: the state of the node, every second or two, so that a replay can begin there."""

    turn: int
    seed: int
    """Of the node's chance from here on."""
    next_frame_id: int
    grace_end_ns: int
    links: tuple[LinkState, ...]
    asked: dict[int, int]
    """By device, when it was asked last, as a rising number."""
    promise: tuple[int | float, ...]
    """What it has counted of its certain answers."""
    under_way: int = 0
    """Requests and frames that are not in this state; a replay is exact from a snapshot without any."""
    lost: int = 0
    """Records before this one that the recorder was too slow for."""


class RequestCame(_Record, frozen=True, kw_only=True):
    """``request``: a client's request."""

    turn: int
    client: str
    """The client's, by its key; empty without encryption."""
    route: bytes
    """Its connection."""
    run_id: int
    number: int
    mask: int
    """Devices requested; 0 = all."""
    dtype: int
    dims: tuple[int, ...]
    policy: Policy
    pixels: int = 0
    coding: ImageCoding | None = None
    minor: int = 0
    image: bytes = b""
    """Empty where digests alone are kept."""
    image_bytes: int = 0
    image_sha256: str = ""
    """Where digests alone are kept."""


class FeatureCame(_Record, frozen=True, kw_only=True):
    """``feature``: a device's feature."""

    turn: int
    device: int
    frame_id: int
    timing: DeviceTiming
    feature: bytes
    """float32, little-endian, shape ``(dim,)``."""


class SkipCame(_Record, frozen=True, kw_only=True):
    """``skip``: a feature will not come, or came unusable (``is_counted``)."""

    turn: int
    device: int
    frame_id: int
    why: MissingReason
    is_counted: bool = False


class LinkChanged(_Record, frozen=True, kw_only=True):
    """``link``: a device came, went, or runs another engine."""

    turn: int
    device: int
    change: Change
    hello: Hello | None = None
    boot_id: int = 0
    engine_revision: int = 0
    why: str = ""


class Tended(_Record, frozen=True, kw_only=True):
    """``tend``: the node did what was due by time."""

    turn: int


class Dispatched(_Record, frozen=True, kw_only=True):
    """``dispatch``: a frame was sent to these devices."""

    turn: int
    frame_id: int
    client: str
    run_id: int
    number: int
    devices: tuple[int, ...]
    deadline_ns: int


class NotSent(_Record, frozen=True, kw_only=True):
    """``not-sent``: a device could not be sent a frame."""

    frame_id: int
    device: int
    sent: str


class Answered(_Record, frozen=True, kw_only=True):
    """``answer``: what the client was told."""

    client: str
    run_id: int
    number: int
    frame_id: int
    state: str
    mask: int
    asked: int
    logits: bytes
    """float32, little-endian, shape ``(K,)``; empty if the frame failed."""
    missing: dict[int, MissingReason]
    wait_us: int
    collect_us: int
    fuse_us: int
    spent_ns: int
    """What fusing it took the node, which the client's turns pay."""
    score: float | None = None
    threshold: float | None = None
    novelty: float | None = None


class EventNoted(_Record, frozen=True, kw_only=True):
    """``event``: what the node told in its log."""

    device: str
    text: str
    priority: int


class PowerSampled(_Record, frozen=True, kw_only=True):
    """``power``: a device's power samples on their way to a client."""

    device: str
    lines: tuple[PowerLine, ...] = ()
    body: bytes = b""
    """As they came; the recorder reads them."""


Record = (
    Start
    | Snapshot
    | RequestCame
    | FeatureCame
    | SkipCame
    | LinkChanged
    | Tended
    | Dispatched
    | NotSent
    | Answered
    | EventNoted
    | PowerSampled
)
CHANNELS: dict[str, type[Record]] = {
    "start": Start,
    "snapshot": Snapshot,
    "request": RequestCame,
    "feature": FeatureCame,
    "skip": SkipCame,
    "link": LinkChanged,
    "tend": Tended,
    "dispatch": Dispatched,
    "not-sent": NotSent,
    "answer": Answered,
    "event": EventNoted,
    "power": PowerSampled,
}
"""By topic, without ``/devit/``."""
TOPICS = {kind: f"/devit/{name}" for name, kind in CHANNELS.items()}
assert set(CHANNELS.values()) == set(get_args(Record))
