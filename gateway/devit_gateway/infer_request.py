"""The body of an inference request: images, devices and wanted outputs.

Open Inference Protocol (KServe V2), REST, with the binary tensor data extension: JSON, then, if
``Inference-Header-Content-Length`` gives the length of the JSON, the bytes of the tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, cast, get_args

import msgspec
import numpy as np

from devit_contract.arrays import UInt8Array
from devit_contract.choices import Policy
from devit_contract.errors import InputError
from devit_contract.printable import printable_line

INPUT = "image"
OUTPUTS = ("logits", "state", "mask")
MAX_BATCH = 64
MAX_HEADER_BYTES = 64 * 1024
"""JSON without its pixels."""
_JSON_BYTES_PER_PIXEL = 6
"""``255,`` and some white space."""
_NESTED_BYTES_PER_PIXEL = 8
"""``[255], `` for a grey one."""

Parameters = dict[str, str | int | float | bool | None] | None
"""``None`` and null stand for what is not given, here and in every optional field."""
Shape = tuple[int, int, int]
_Pixel = Annotated[int, msgspec.Meta(ge=0, le=255)]
_PIECE_BYTES = 256 * 1024
"""Of JSON that are read at once: the list of their numbers stays short, and other threads get their turns."""
_ROW = msgspec.json.Decoder(Annotated[list[_Pixel], msgspec.Meta(min_length=1)])


@dataclass(frozen=True)
class WantedOutput:
    """An output for the response."""

    name: str
    is_binary: bool
    classes: int = 0
    """Classification extension: how many of the best classes by name in place of numbers; 0 for numbers."""


@dataclass(frozen=True)
class InferRequest:
    """What a client wants."""

    request_id: str | None
    images: UInt8Array
    """Shape ``(B, H, W, C)``."""
    device_mask: int
    """Devices to ask, bit i for device i; 0 asks all."""
    policy: Policy | None
    """Which of them to ask; ``None``: as the fleet says."""
    outputs: tuple[WantedOutput, ...]


class _Input(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: Parameters = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: Parameters = None


class _Request(msgspec.Struct, frozen=True):
    inputs: tuple[_Input, ...]
    id: str | None = None
    parameters: Parameters = None
    outputs: tuple[_Output, ...] | None = None


class _Pixels(msgspec.Struct, frozen=True):
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Outline(msgspec.Struct, frozen=True):
    """A request with hardly more than its pixels; the rest is skipped."""

    inputs: tuple[_Pixels]


def max_body_bytes(image_shape: Shape) -> int:
    """Longest allowed body: the largest batch, written as JSON."""
    return MAX_HEADER_BYTES + MAX_BATCH * math.prod(image_shape) * _JSON_BYTES_PER_PIXEL


def parse_request(content: bytes | bytearray, header_length: str | None, image_shape: Shape) -> InferRequest:
    """Read a request, a decompressed body, for a bundle that takes images of ``image_shape``, ``(H, W, C)``.

    Without ``header_length``, the header ``Inference-Header-Content-Length``, all of it is JSON.

    Raises:
        InputError: Anything does not fit; nothing else is raised, whatever the bytes.
    """
    json_bytes = len(content) if header_length is None else _json_bytes(header_length, len(content))
    text = memoryview(content)[:json_bytes]
    try:
        if json_bytes > MAX_HEADER_BYTES:
            _check_outline(text)
        request = msgspec.json.decode(text, type=_Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise InputError(f"body: expected an inference request as JSON, found: {_short(err)}") from err
    is_binary = _flag(request.parameters, "binary_data_output", "parameters")
    wanted = request.outputs or tuple(_Output(name) for name in OUTPUTS)
    return InferRequest(
        request_id=request.id,
        images=_images(request.inputs, memoryview(content)[json_bytes:], image_shape),
        device_mask=_count(request.parameters, "devices", "parameters", (1 << 64) - 1) or 0,
        policy=_policy(request.parameters),
        outputs=_outputs(wanted, is_binary_default=is_binary),
    )


def _check_outline(text: memoryview) -> None:
    """Check that a long request is long for its pixels: any other field would take many times its text."""
    (tensor,) = msgspec.json.decode(text, type=_Outline).inputs
    if len(text) - len(memoryview(tensor.data)) > MAX_HEADER_BYTES:
        raise InputError(f"body: expected at most {MAX_HEADER_BYTES} bytes beside the data, found more")


def _json_bytes(header_length: str, body_bytes: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", header_length) or int(header_length) > min(body_bytes, MAX_HEADER_BYTES):
        most = min(body_bytes, MAX_HEADER_BYTES)
        raise InputError(
            f"Inference-Header-Content-Length: expected 0 to {most} (the body has {body_bytes} bytes), "
            f"found {_short(header_length)}"
        )
    return int(header_length)


def _images(inputs: tuple[_Input, ...], binary: memoryview, image_shape: Shape) -> UInt8Array:
    """Read the only input, ``(B, H, W, C)``."""
    names = [tensor.name for tensor in inputs]
    if names != [INPUT]:
        raise InputError(f"inputs: expected one, {INPUT!r}, found {len(names)}: {_short(', '.join(names[:4]))}")
    tensor = inputs[0]
    if tensor.datatype != "UINT8":
        raise InputError(f"{INPUT}: expected datatype UINT8, found {_short(tensor.datatype)}")
    if len(tensor.shape) != 4 or tensor.shape[1:] != image_shape or not 1 <= tensor.shape[0] <= MAX_BATCH:
        expected = f"[1 to {MAX_BATCH}, {', '.join(map(str, image_shape))}]"
        raise InputError(f"{INPUT}: expected shape {expected}, found {_short(list(tensor.shape))}")
    size = math.prod(tensor.shape)
    binary_bytes = _count(tensor.parameters, "binary_data_size", INPUT, (1 << 63) - 1)
    data = memoryview(tensor.data)
    has_data = bytes(data[:5]) != b"null"
    if has_data == (binary_bytes is not None):
        found = "both" if has_data else "neither"
        raise InputError(f"{INPUT}: expected either data or the parameter binary_data_size, found {found}")
    if (binary_bytes or 0) != len(binary):
        found = f"{len(binary)} after the JSON"
        raise InputError(f"{INPUT}: expected {binary_bytes or 0} bytes of binary data, found {found}")
    if has_data:
        return _json_pixels(data, tensor.shape)
    if len(binary) != size:
        raise InputError(f"{INPUT}: expected {size} bytes for its shape, found a binary_data_size of {len(binary)}")
    return np.frombuffer(binary, np.uint8).reshape(tensor.shape)


def _json_pixels(data: memoryview, shape: tuple[int, ...]) -> UInt8Array:
    """Read numbers, nested as the shape is or in one row; their types are checked before any array is made."""
    is_nested = re.match(rb"\[\s*\[", data) is not None
    size = math.prod(shape)
    pixels = bytearray()
    try:
        for part in _nested(data, shape) if is_nested else _pieces(data):
            pixels += part
            if len(pixels) > size:
                raise ValueError(f"more than {size} numbers")
        if len(pixels) != size:
            raise ValueError(f"{len(pixels)} numbers")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as err:
        expected = f"{size} whole numbers from 0 to 255, flat or nested as the shape"
        raise InputError(f"{INPUT}: expected {expected}, found: {_short(err)}") from err
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def _pieces(data: memoryview) -> Iterator[bytes]:
    """Read one row of numbers piece by piece, each up to a comma; the whole has been read as JSON before."""
    if bytes(data[:1]) != b"[":
        raise ValueError("no array")
    start, end = 1, len(data) - 1
    while start < end:
        piece = bytes(data[start : min(start + _PIECE_BYTES, end)])
        if start + len(piece) < end:
            piece = piece[: max(0, piece.rfind(b","))]
        yield bytes(_ROW.decode(b"[" + piece + b"]"))
        start += len(piece) + 1


def _nested(data: memoryview, shape: tuple[int, ...]) -> Iterator[bytes]:
    """Read nested numbers image by image; an image of much more text than its numbers need is not read at all."""
    rows: object = _Pixel
    for length in reversed(shape[1:]):
        rows = Annotated[list[rows], msgspec.Meta(min_length=length, max_length=length)]  # type: ignore[valid-type]
    decoder = msgspec.json.Decoder(rows)
    most_bytes = math.prod(shape[1:]) * _NESTED_BYTES_PER_PIXEL + MAX_HEADER_BYTES
    images = tuple[(msgspec.Raw,) * shape[0]]  # type: ignore[valid-type, misc]
    for image in msgspec.json.decode(data, type=images):
        if len(memoryview(image)) > most_bytes:
            raise ValueError(f"an image of more than {most_bytes} characters")
        yield bytes(chain.from_iterable(chain.from_iterable(decoder.decode(image))))


def _outputs(wanted: tuple[_Output, ...], *, is_binary_default: bool) -> tuple[WantedOutput, ...]:
    names = [output.name for output in wanted]
    if len(set(names)) != len(names) or not set(names) <= set(OUTPUTS):
        known = ", ".join(OUTPUTS)
        raise InputError(f"outputs: expected any of {known}, each once, found {_short(', '.join(names[:4]))}")
    outputs = []
    for output in wanted:
        classes = _count(output.parameters, "classification", output.name, 1_000_000) or 0
        if classes and output.name != "logits":
            raise InputError(f"{output.name}: expected the parameter classification for logits only, found it here")
        is_binary = _flag(output.parameters, "binary_data", output.name, default=is_binary_default)
        outputs.append(WantedOutput(output.name, is_binary, classes))
    return tuple(outputs)


def _flag(parameters: Parameters, name: str, where: str, *, default: bool = False) -> bool:
    value = (parameters or {}).get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InputError(f"{where}: parameter {name}: expected true or false, found {_short(value)}")
    return value


def _count(parameters: Parameters, name: str, where: str, most: int) -> int | None:
    value = (parameters or {}).get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InputError(f"{where}: parameter {name}: expected a whole number up to {most}, found {_short(value)}")
    return value


def _policy(parameters: Parameters) -> Policy | None:
    value = (parameters or {}).get("policy")
    if value is None:
        return None
    for policy in get_args(Policy):
        if value == policy:
            return cast(Policy, policy)
    known = ", ".join(get_args(Policy))
    raise InputError(f"parameters: parameter policy: expected one of {known}, found {_short(value)}")


def _short(value: object) -> str:
    """Show what a client sent, in one line of bounded length."""
    text = printable_line(str(value)).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 120 else text[:117] + "..."
