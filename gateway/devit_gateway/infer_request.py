"""The body of an inference request: images, devices and wanted outputs.

Open Inference Protocol (KServe V2), REST, with the binary tensor data extension: JSON, then, if
``Inference-Header-Content-Length`` gives the length of the JSON, the bytes of the tensor.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import msgspec
import numpy as np

from devit_contract.arrays import UInt8Array
from devit_contract.errors import InputError

INPUT = "image"
OUTPUTS = ("logits", "state", "mask")
MAX_BATCH = 64
MAX_HEADER_BYTES = 64 * 1024
"""JSON in front of binary data: it holds no pixels."""
_JSON_BYTES_PER_PIXEL = 6
"""``255,`` and some white space."""

Scalar = str | int | float | bool
Shape = tuple[int, int, int]


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
    outputs: tuple[WantedOutput, ...]


class _Input(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Scalar] = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Scalar] = {}


class _Request(msgspec.Struct, frozen=True):
    inputs: tuple[_Input, ...]
    id: str | None = None
    parameters: dict[str, Scalar] = {}
    outputs: tuple[_Output, ...] = ()


def max_body_bytes(image_shape: Shape) -> int:
    """Longest allowed body: the largest batch, written as JSON."""
    return MAX_HEADER_BYTES + MAX_BATCH * math.prod(image_shape) * _JSON_BYTES_PER_PIXEL


def parse_request(content: bytes, header_length: str | None, image_shape: Shape) -> InferRequest:
    """Read a request, a decompressed body, for a bundle that takes images of ``image_shape``, ``(H, W, C)``.

    Without ``header_length``, the header ``Inference-Header-Content-Length``, all of it is JSON.

    Raises:
        InputError: Anything does not fit; nothing else is raised, whatever the bytes.
    """
    json_bytes = len(content) if header_length is None else _json_bytes(header_length, len(content))
    try:
        request = msgspec.json.decode(memoryview(content)[:json_bytes], type=_Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise InputError(f"body: expected an inference request as JSON, found: {_short(err)}") from err
    is_binary = _flag(request.parameters, "binary_data_output", "parameters")
    wanted = request.outputs or tuple(_Output(name) for name in OUTPUTS)
    return InferRequest(
        request_id=request.id,
        images=_images(request.inputs, memoryview(content)[json_bytes:], image_shape),
        device_mask=_count(request.parameters, "devices", "parameters", (1 << 64) - 1),
        outputs=_outputs(wanted, is_binary_default=is_binary),
    )


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
    has_size, has_data = "binary_data_size" in tensor.parameters, tensor.data is not msgspec.UNSET
    if has_size == has_data:
        found = "both" if has_size else "neither"
        raise InputError(f"{INPUT}: expected either data or the parameter binary_data_size, found {found}")
    found_bytes = _count(tensor.parameters, "binary_data_size", INPUT, (1 << 63) - 1)
    if found_bytes != len(binary):
        raise InputError(f"{INPUT}: expected {found_bytes} bytes of binary data, found {len(binary)} after the JSON")
    if isinstance(tensor.data, msgspec.Raw):
        return _json_pixels(tensor.data, tensor.shape)
    if found_bytes != size:
        raise InputError(f"{INPUT}: expected {size} bytes for its shape, found a binary_data_size of {found_bytes}")
    return np.frombuffer(binary, np.uint8).reshape(tensor.shape)


def _json_pixels(raw: msgspec.Raw, shape: tuple[int, ...]) -> UInt8Array:
    """Read numbers, nested as the shape is or in one row."""
    try:
        values = np.array(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as err:
        raise InputError(f"{INPUT}: expected data as an even array of numbers, found: {_short(err)}") from err
    if values.dtype.kind not in "iu" or values.shape not in (shape, (math.prod(shape),)):
        raise InputError(
            f"{INPUT}: expected {math.prod(shape)} whole numbers, flat or nested as the shape, "
            f"found {values.dtype} of shape {_short(list(values.shape))}"
        )
    if values.min() < 0 or values.max() > 255:
        raise InputError(f"{INPUT}: expected numbers from 0 to 255, found {values.min()} to {values.max()}")
    return values.astype(np.uint8).reshape(shape)


def _outputs(wanted: tuple[_Output, ...], *, is_binary_default: bool) -> tuple[WantedOutput, ...]:
    names = [output.name for output in wanted]
    if len(set(names)) != len(names) or not set(names) <= set(OUTPUTS):
        known = ", ".join(OUTPUTS)
        raise InputError(f"outputs: expected any of {known}, each once, found {_short(', '.join(names[:4]))}")
    outputs = []
    for output in wanted:
        classes = _count(output.parameters, "classification", output.name, 1_000_000)
        if classes and output.name != "logits":
            raise InputError(f"{output.name}: expected the parameter classification for logits only, found it here")
        is_binary = _flag(output.parameters, "binary_data", output.name, default=is_binary_default)
        outputs.append(WantedOutput(output.name, is_binary, classes))
    return tuple(outputs)


def _flag(parameters: dict[str, Scalar], name: str, where: str, *, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{where}: parameter {name}: expected true or false, found {_short(value)}")
    return value


def _count(parameters: dict[str, Scalar], name: str, where: str, most: int) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InputError(f"{where}: parameter {name}: expected a whole number up to {most}, found {_short(value)}")
    return value


def _short(value: object) -> str:
    """Show what a client sent, in one line of bounded length."""
    text = " ".join(str(value).split()).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 120 else text[:117] + "..."
