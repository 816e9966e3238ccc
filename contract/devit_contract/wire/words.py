"""The closed sets of words on the wire: questions, states of devices, reasons.

A member is its word wherever text is wanted.
"""

from __future__ import annotations

import enum
from typing import Literal


class TextEnum(str, enum.Enum):
    """A closed set of words; a member is its word wherever text is wanted."""

    def __str__(self) -> str:
        return str(self.value)


class Question(TextEnum):
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
    LEASE = "lease"
    """Anyone with several nodes. An agent or another node: grant this node your lease. By a client: say now, and from
    then on unasked, whether you are active. As :class:`Vote`."""


class DeviceState(TextEnum):
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


class MissingReason(TextEnum):
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


class ShedReason(TextEnum):
    """Why a request was not served, though nothing is broken: what happened, then what to do."""

    MAX_IN_FLIGHT = "max_in_flight"
    """More requests of the client are under way than its `max_in_flight`. Send fewer, or raise it in `fleet.toml`."""
    QUEUE = "queue"
    """More requests wait than `queue` in `fleet.toml`, and the client has most. Send fewer, or raise `queue`."""
    BYTES = "bytes"
    """More than 12 MiB of pictures wait, and the client has most. Send fewer at a time, or smaller ones."""
    SHARE = "share"
    """The queue is full, and the client had more than its share in it. Send fewer, or raise its `weight`."""
    DEADLINE = "deadline"
    """No device could answer it in time any more. Send fewer, use another cell, or raise `deadline_ms`."""
    STANDBY = "standby"
    """Another node of the fleet became active while the request waited. Nothing; the client asks that one."""


class Slowdown(TextEnum):
    """Why a device is slower than it could be: what happened, then what to do."""

    ALERT = "throttle alert"
    """Its board reports that it is too hot. Cool it; look at its fan; choose a lower power mode."""
    CLOCK = "clock"
    """Its kernel caps clocks below what the power mode allows. Cool it; look at its fan."""
    OVER_CURRENT = "over-current"
    """Its board counts over-current events. Look at its power supply; choose a lower power mode."""
    LATENCY = "latency"
    """Its inference takes half as long again as before. See what else runs there; read `devit doctor` there."""


NEVER_ASKED = (MissingReason.NOT_ASKED, MissingReason.NOT_NEEDED)
"""Why a feature is missing though nothing went wrong."""


BaselineStep = Literal["load", "run", "rest", "state", "free"]
"""What an agent may be asked to do with the bundle's baseline model; ``state`` only reports."""
BaselinePhase = Literal["nothing", "loading", "resting", "running", "freeing", "failed"]
"""What an agent's baseline model is doing."""
