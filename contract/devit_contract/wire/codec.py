"""The bytes of one message between client, fusion node and edge agent.

A message is one ZeroMQ frame: a fixed header, then the payload. All numbers are little-endian.

====== ===== ================= ==============================================================================
offset type  field             meaning
====== ===== ================= ==============================================================================
0      4s    magic             ``DVT1``; another first version number is another protocol
4      u8    minor             3; a higher one may add fields after byte 104, as ``header_bytes`` says
5      u8    kind              see :class:`Kind`
6      u16   header_bytes      where the payload starts: 104; 108 with a policy; more from a newer sender
8      u8    dtype             see :class:`Dtype`
9      u8    ndim              how many of the four dimensions count, 0 to 4
10     u16   device            device index; 65535 where the message concerns none
12     4u32  dims              shape of the payload, unused ones 0
28     u32   engine_revision   engine that made a feature (FEATURE) or is introduced (HELLO), the latter
                               echoed in WELCOME and REFUSED; 0 elsewhere
32     u64   mask              devices: requested (REQUEST, 0 = all), present (ANSWER), to work now (TRIGGER, 0 = all;
                               the others keep the image of this moment)
40     u16   state             see :class:`State` (ANSWER)
42     u16   reason            see :class:`Reason` (SKIP, REFUSED)
44     u64   run_id            random at start of the fusion node (of the client, in REQUEST and ANSWER)
52     u64   frame_id          rises by one a frame in a run; the client's request number in REQUEST and ANSWER
60     u64   boot_id           random at start of the agent
68     u64   dispatch_ns       fusion node's monotonic clock at dispatch, echoed unchanged
76     u32   deadline_us       time left for the work when it was sent; 0 = the receiver's default
80     u32   queue_us          agent: from reading the frame to starting on it
84     u32   decode_us         agent: decoding and resizing
88     u32   inference_us      agent: engine
92     u32   capture_age_us    agent: age of its own source's image when the feature was sent; 0 for images sent to it;
                               node, TRIGGER to a later stage: how long ago the first was sent, whose moment counts
96     u32   payload_bytes     length of the payload
100    u32   crc32             CRC-32 of the payload, then bytes 0 to 99, then those from 104 to the payload
104    u32   policy            see :class:`RequestPolicy` (REQUEST, from minor 2); absent = 0
====== ===== ================= ==============================================================================

Payload by dtype: ``NONE`` has none; ``UINT8``, ``FLOAT16`` and ``FLOAT32`` are C-ordered arrays of shape ``dims``,
never empty;
``ENCODED`` is a picture file (JPEG, PNG) for the agent to decode and fit, or with ``dims`` (from minor 3) an image of
that shape, coded as JPEG or lossless WebP; ``BODY`` is a msgpack struct of
:mod:`devit_contract.wire.messages`. Everything is checked before anything is allocated or copied; nothing is pickled.
"""

from __future__ import annotations

import enum
import math
import struct
import zlib
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from devit_contract.errors import WireError

HEADER = struct.Struct("<4sBBHBBH4IIQHHQQQQIIIIIII")
MAGIC = b"DVT1"
MINOR = 3
NO_DEVICE = 0xFFFF
MAX_DEVICE_MESSAGE_BYTES = 64 * 1024
"""What an agent may send in one message."""
MAX_IMAGE_MESSAGE_BYTES = 4 * 1024 * 1024
"""What a client may send, and what the node sends to an agent."""

_LABEL, _NUMBERS = struct.Struct("<4sBBHBBH4IIQHH"), struct.Struct("<QQQQIIIIIII")
"""The two parts of the header."""
_HEADER_BYTES, _LABEL_BYTES = HEADER.size, _LABEL.size
_CRC = struct.Struct("<I")
_POLICY = struct.Struct("<I")
_POLICY_MINOR, _POLICY_END = 2, HEADER.size + _POLICY.size
_DEVICE = struct.Struct("<H")
_DEVICE_OFFSET = 10
_NO_DIMS = (0, 0, 0, 0)
_CRC_OFFSET = HEADER.size - _CRC.size


class Kind(enum.IntEnum):
    """What a message is."""

    HELLO = 1
    """Agent to node, first on every connection: its name and its engine."""
    WELCOME = 2
    """Node to agent: accepted, with run id and credit."""
    REFUSED = 3
    """Node to agent or client: not accepted, with the reason."""
    FRAME = 4
    """Node to agent: an image to work on."""
    TRIGGER = 5
    """Node to agent: work on the next image of your own source."""
    FEATURE = 6
    """Agent to node: the feature of a frame."""
    SKIP = 7
    """Agent to node: no feature will come for this frame, with the reason."""
    CONTROL = 8
    """Either way: a question or its answer, as the body says."""
    TELEMETRY = 9
    """Agent to node to client: power samples."""
    REQUEST = 10
    """Client to node: classify an image."""
    ANSWER = 11
    """Node to client: the answer."""
    LEAVE = 12
    """Agent to node: send no more frames, pending ones will be answered; node to agent: there will be none."""
    WITHDRAW = 13
    """Node to agent, if its HELLO says that it can: this frame is not needed any more, skip it unless it has begun."""


class Dtype(enum.IntEnum):
    """What the payload is made of."""

    NONE = 0
    UINT8 = 1
    FLOAT16 = 2
    FLOAT32 = 3
    ENCODED = 4
    BODY = 5


class State(enum.IntEnum):
    """How a frame ended."""

    NONE = 0
    FULL = 1
    """All devices' features."""
    CERTAIN = 2
    """Fewer than all, and certain: as good as all, within the promise."""
    PARTIAL = 3
    """Fewer than all, at least ``min_devices``."""
    FAILED = 4
    """Fewer than ``min_devices``: no logits."""


class Reason(enum.IntEnum):
    """Why there is no feature, or no acceptance."""

    NONE = 0
    EXPIRED = 1
    """The deadline had passed before work began."""
    OVERLOAD = 2
    """No room in the queue."""
    DECODE = 3
    """The image could not be decoded, or has the wrong size."""
    ENGINE = 4
    """The engine failed on this frame."""
    NO_SOURCE = 5
    """A trigger came, but the agent has no source of its own, or no picture from it yet."""
    STOPPING = 6
    """The agent is shutting down."""
    NAME = 7
    """The fleet file has no such device, or the key belongs to another name."""
    BUNDLE = 8
    """The peer runs another bundle."""
    SHAPE = 9
    """The image does not have the shape of the bundle's input."""
    REQUEST = 10
    """The message is invalid here."""
    WITHDRAWN = 11
    """The node had withdrawn the frame before work on it began."""
    OTHER_NODE = 12
    """Another node, or none, holds the agent's lease."""


class RequestPolicy(enum.IntEnum):
    """Which devices a request wants to be asked."""

    DEFAULT = 0
    """As the fleet says."""
    ALL = 1
    """All."""
    CERTAIN = 2
    """Some, then others until the answer is certain."""
    SINGLE = 3
    """The best one."""
    REPLICA = 4
    """The idlest one."""


AGENT_SKIPS = (Reason.EXPIRED, Reason.OVERLOAD, Reason.DECODE, Reason.ENGINE, Reason.NO_SOURCE, Reason.STOPPING)
"""Why an agent may skip a frame that was not withdrawn."""
_NUMPY_TYPES: dict[Dtype, np.dtype[Any]] = {
    Dtype.UINT8: np.dtype("u1"),
    Dtype.FLOAT16: np.dtype("<f2"),
    Dtype.FLOAT32: np.dtype("<f4"),
}
_KINDS = {int(kind): kind for kind in Kind}
_DTYPES = {int(dtype): dtype for dtype in Dtype}
_STATES = {int(state): state for state in State}
_REASONS = {int(reason): reason for reason in Reason}


class Message(msgspec.Struct, frozen=True):
    """A message in memory; fields as in the table above, those after ``device`` in its order."""

    kind: Kind
    dtype: Dtype = Dtype.NONE
    dims: tuple[int, ...] = ()
    payload: bytes | memoryview = b""
    device: int = NO_DEVICE
    engine_revision: int = 0
    mask: int = 0
    state: State = State.NONE
    reason: Reason = Reason.NONE
    run_id: int = 0
    frame_id: int = 0
    boot_id: int = 0
    dispatch_ns: int = 0
    deadline_us: int = 0
    queue_us: int = 0
    decode_us: int = 0
    inference_us: int = 0
    capture_age_us: int = 0
    policy: int = 0
    """Of a REQUEST, a :class:`RequestPolicy`, or one of a newer version."""
    minor: int = MINOR
    """Of its sender: what a newer peer may say that an older one does not understand."""

    @property
    def is_file(self) -> bool:
        """Whether it holds a picture file of any size, rather than an image of the model's shape, coded or not."""
        return self.dtype is Dtype.ENCODED and not self.dims

    def array(self) -> npt.NDArray[Any]:
        """View the payload as an array of shape ``dims``, read-only, without a copy.

        Raises:
            WireError: The payload is no array.
        """
        numpy_type = _NUMPY_TYPES.get(self.dtype)
        if numpy_type is None:
            raise WireError("dtype", f"{self.kind.name}: expected an array, found {self.dtype.name}")
        flat = np.frombuffer(self.payload, numpy_type)
        return flat if len(self.dims) == 1 else flat.reshape(self.dims)


def array_payload(array: npt.NDArray[Any]) -> tuple[Dtype, tuple[int, ...], memoryview]:
    """Describe an array for :class:`Message`: dtype, dims, payload (copied only if it is not contiguous).

    Raises:
        WireError: The array's type or number of dimensions cannot be sent.
    """
    for dtype, numpy_type in _NUMPY_TYPES.items():
        if array.dtype == numpy_type and 1 <= array.ndim <= 4:
            return dtype, array.shape, np.ascontiguousarray(array).data.cast("B")
    raise WireError(
        "dtype", f"expected uint8, float16 or float32 with 1 to 4 dimensions, found {array.dtype} {array.ndim}d"
    )


def pack(message: Message) -> bytes:
    """Write a message."""
    if message.policy:
        return _pack_longer(message, _POLICY.pack(message.policy))
    head = _head(message)
    crc32 = zlib.crc32(head, zlib.crc32(message.payload))
    return b"".join((head, _CRC.pack(crc32), message.payload))


class Copies:
    """One message for several devices: packed once, addressed to each."""

    def __init__(self, message: Message) -> None:
        """Pack it."""
        self._head = bytearray(_head(message))
        self._payload = message.payload
        self._payload_crc32 = zlib.crc32(message.payload)

    def to(self, device: int) -> bytes:
        """Write the copy of one device."""
        _DEVICE.pack_into(self._head, _DEVICE_OFFSET, device)
        crc32 = zlib.crc32(self._head, self._payload_crc32)
        return b"".join((self._head, _CRC.pack(crc32), self._payload))


def unpack(data: bytes | memoryview) -> Message:
    """Read a message; its payload is a view into ``data``.

    Raises:
        WireError: The bytes break the table above; ``reason`` is a fixed word to count by: ``size``, ``magic``,
            ``kind``, ``dtype``, ``dims``, ``state``, ``crc``.
    """
    # No starred name and no loop in here: the node does this for every feature.
    view = memoryview(data)
    size_bytes = len(view)
    if size_bytes < _HEADER_BYTES:
        raise WireError("size", f"expected at least {_HEADER_BYTES} bytes, found {size_bytes}")
    label = _label(view[:_LABEL_BYTES].tobytes())
    kind, dtype, dims, header_bytes, array_bytes, device, revision, mask, state, reason, minor = label
    numbers = _NUMBERS.unpack_from(view, _LABEL_BYTES)
    run_id, frame_id, boot_id, dispatch_ns, deadline, queue, decode, inference, age, payload_bytes, crc32 = numbers
    if header_bytes + payload_bytes != size_bytes:
        raise WireError(
            "size", f"expected {header_bytes} header and {payload_bytes} payload bytes, found {size_bytes} in all"
        )
    if array_bytes is not None and array_bytes != payload_bytes:
        raise WireError("dims", f"{kind.name}: {dtype.name} {dims} takes {array_bytes} bytes, found {payload_bytes}")
    payload = view[header_bytes:]
    found = zlib.crc32(view[:_CRC_OFFSET], zlib.crc32(payload))
    policy = 0
    if header_bytes > _HEADER_BYTES:
        found = zlib.crc32(view[_HEADER_BYTES:header_bytes], found)
        if header_bytes >= _POLICY_END and kind is Kind.REQUEST and minor >= _POLICY_MINOR:
            (policy,) = _POLICY.unpack_from(view, _HEADER_BYTES)
    if found != crc32:
        raise WireError("crc", f"{kind.name}: expected checksum {crc32:08x}, found {found:08x}")
    return Message(
        kind, dtype, dims, payload, device, revision, mask, state, reason,
        run_id, frame_id, boot_id, dispatch_ns, deadline, queue, decode, inference, age, policy, minor,
    )  # fmt: skip


def _pack_longer(message: Message, more: bytes) -> bytes:
    head = _head(message, HEADER.size + len(more))
    crc32 = zlib.crc32(more, zlib.crc32(head, zlib.crc32(message.payload)))
    return b"".join((head, _CRC.pack(crc32), more, message.payload))


def _head(message: Message, header_bytes: int = HEADER.size) -> bytes:
    (
        kind, dtype, dims, payload, device, revision, mask, state, reason,
        run_id, frame_id, boot_id, dispatch_ns, deadline, queue, decode, inference, age, _, minor,
    ) = msgspec.structs.astuple(message)  # fmt: skip
    ndim = len(dims)
    first, second, third, fourth = dims if ndim == 4 else (*dims, *_NO_DIMS[ndim:])
    return HEADER.pack(
        MAGIC, minor, kind, header_bytes, dtype, ndim, device, first, second, third, fourth, revision, mask, state,
        reason, run_id, frame_id, boot_id, dispatch_ns, deadline, queue, decode, inference, age, len(payload), 0,
    )[:_CRC_OFFSET]  # fmt: skip


class _Label(NamedTuple):
    """What the first 44 bytes of a header say, checked."""

    kind: Kind
    dtype: Dtype
    dims: tuple[int, ...]
    header_bytes: int
    array_bytes: int | None
    """What the payload must have; ``None``: any number."""
    device: int
    engine_revision: int
    mask: int
    state: State
    reason: Reason
    minor: int


@lru_cache(maxsize=512)
def _label(data: bytes) -> _Label:
    """Read the part of a header that is the same in nearly all messages of one kind and peer."""
    magic, minor, kind_number, header_bytes, dtype_number, ndim, device, *dims, revision, mask, state_number, why = (
        _LABEL.unpack(data)
    )
    if magic != MAGIC:
        raise WireError("magic", f"expected magic {MAGIC!r}, found {magic!r}")
    if header_bytes < HEADER.size:
        raise WireError("size", f"expected at least {HEADER.size} header bytes, found {header_bytes}")
    kind, dtype = _KINDS.get(kind_number), _DTYPES.get(dtype_number)
    if kind is None:
        raise WireError("kind", f"expected a kind from 1 to {len(_KINDS)}, found {kind_number}")
    if dtype is None:
        raise WireError("dtype", f"{kind.name}: expected a dtype from 0 to {len(_DTYPES) - 1}, found {dtype_number}")
    array_bytes = _array_bytes(kind, dtype, ndim, dims)
    state, reason = _STATES.get(state_number), _REASONS.get(why)
    if state is None or reason is None:
        raise WireError("state", f"{kind.name}: expected a known state and reason, found {state_number} and {why}")
    shape = tuple(dims[:ndim])
    return _Label(kind, dtype, shape, header_bytes, array_bytes, device, revision, mask, state, reason, minor)


def _array_bytes(kind: Kind, dtype: Dtype, ndim: int, dims: list[int]) -> int | None:
    """Check a shape, and tell how many bytes it takes; ``None``: the shape does not say."""
    if ndim > 4 or any(dims[ndim:]):
        raise WireError("dims", f"{kind.name}: expected unused dims to be 0, found ndim {ndim}, dims {dims}")
    numpy_type = _NUMPY_TYPES.get(dtype)
    if numpy_type is None:
        is_coded = dtype is Dtype.ENCODED and ndim == 3 and all(dims[:3])
        if ndim != 0 and not is_coded:
            raise WireError("dims", f"{kind.name}: {dtype.name} takes no shape, found {ndim} dims")
        return 0 if dtype is Dtype.NONE else None
    array_bytes = math.prod(dims[:ndim]) * numpy_type.itemsize  # Python integers: four u32 cannot overflow
    if ndim == 0 or array_bytes == 0:
        raise WireError("dims", f"{kind.name}: expected a shape of {dtype.name}, found {dims[:ndim]}")
    return array_bytes
