"""What a node reports of itself, its devices and its clients: counters that run since its start."""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal

import msgspec

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.choices import Policy, Views
from devit_contract.machine import OverCurrentEvents, Throttling
from devit_contract.wire.words import DeviceState, MissingReason, ShedReason, Slowdown

_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of a new histogram, from half a millisecond to a second: what the parts of a cell take."""


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
    image_us: dict[str, int] = {}
    """What its last images took from the node into its engine, the middle one, by what they travelled as."""
    over_current: OverCurrentEvents | None = None
    """Since its agent's start; ``None`` where its board does not count them, or its agent does not tell."""
    lacks_source: bool = False
    """Whether the bundle wants a camera of its own, and its ``agent.toml`` names none."""
    is_spare: bool = False
    """Whether another device serves the same submodel now, and this one would take over."""
    throttling: Throttling | None = None
    """As its agent told last; ``None`` where its board does not say, or its agent does not tell."""
    slowdowns: tuple[Slowdown, ...] = ()
    """Why it is slower than it could be, so that others are asked before it; empty if it is not."""


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
    """What its frames took of the slowest device in them: clients share this time by their weights."""
    shed: dict[ShedReason, int] = {}
    """Requests that were not served, by why; those of the node's ``shed``."""
    weight: int = 1
    max_in_flight: int = 0
    """Requests that it may have under way; 0 is no limit of its own."""


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


class FleetStatus(msgspec.Struct, frozen=True):
    """What a node has taken of its fleet file."""

    sha256: str
    """Of the file as it was read last."""
    problem: str = ""
    """Why that is not used, so that an earlier one still is."""
    needs_restart: tuple[str, ...] = ()
    """Tables of it that have changed since the node's start, and are applied when it starts again."""


NodeState = Literal["active", "standby", "unreachable"]
"""What one of several nodes is, as another one, or itself, sees it."""


class NodeView(msgspec.Struct, frozen=True):
    """What a node knows of itself or of another one of its fleet."""

    name: str
    state: NodeState
    run_id: int = 0
    """Random at its start; 0 if it was never reached."""
    since_s: float | None = None
    """For how long it has been in that state, as far as is known here."""
    granted: tuple[str, ...] = ()
    """Devices and nodes whose leases it holds; known of the node itself alone."""


class NodeStatus(msgspec.Struct, frozen=True):
    """What the node reports of itself and of its devices; counters run since its start."""

    bundle: str
    labels: tuple[str, ...]
    image_shape: tuple[int, int, int]
    preprocess: Preprocess
    """How a picture file becomes an image of that shape."""
    frames: dict[str, int]
    """Frames ended, by state; ``shed`` are those among ``failed`` that were not served, see :class:`ShedReason`."""
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
    images: str = "raw"
    """What clients are to send images as now."""
    image_choice: str = "raw"
    """As the fleet says; ``raw`` where images are too small to code."""
    views: Views = "same"
    """``own``: each device uses its own camera, and requests hold no image."""
    fleet: FleetStatus | None = None
    """``None`` of a node that does not read it while it runs."""
    nodes: tuple[NodeView, ...] = ()
    """All nodes of a fleet with several, in the order of the file; none where there is one."""
