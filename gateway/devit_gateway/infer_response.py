"""Answers as the body of an inference response: JSON, followed by binary data if the client wants some."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from devit_contract.wire.answer import Answer
from devit_gateway.infer_request import InferRequest, WantedOutput

MODEL = "devit"
VERSION = "1"


@dataclass(frozen=True)
class Tensor:
    """An output before it is written."""

    datatype: str
    shape: tuple[int, ...]
    values: npt.NDArray[Any] | tuple[str, ...]
    """Numbers of that shape, or as many texts (``BYTES``)."""

    def as_json(self) -> list[Any]:
        """The values in one row."""
        return list(self.values) if isinstance(self.values, tuple) else self.values.ravel().tolist()

    def as_bytes(self) -> bytes:
        """The values little-endian; each text after its length in four bytes."""
        if isinstance(self.values, tuple):
            texts = [text.encode() for text in self.values]
            return b"".join(struct.pack("<I", len(text)) + text for text in texts)
        return self.values.astype(self.values.dtype.newbyteorder("<")).tobytes()


def mask_datatype(devices: int) -> str:
    """Type of the output ``mask`` for that many devices."""
    return "UINT32" if devices <= 32 else "UINT64"


def write_response(
    request: InferRequest, answers: Sequence[Answer], labels: tuple[str, ...], devices: int
) -> tuple[bytes, int | None]:
    """Write a response for a cell of so many devices; none of the answers, one for each image, may be a failed one.

    The second value is the length of the JSON if binary data follows.
    """
    outputs: list[dict[str, Any]] = []
    binary = []
    for wanted in request.outputs:
        tensor = _tensor(wanted, answers, labels, devices)
        output: dict[str, Any] = {"name": wanted.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if wanted.is_binary:
            binary.append(tensor.as_bytes())
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = tensor.as_json()
        outputs.append(output)
    head: dict[str, Any] = {"model_name": MODEL, "model_version": VERSION, "outputs": outputs}
    if request.request_id is not None:
        head["id"] = request.request_id
    header = msgspec.json.encode(head)
    return b"".join([header, *binary]), len(header) if binary else None


def _tensor(wanted: WantedOutput, answers: Sequence[Answer], labels: tuple[str, ...], devices: int) -> Tensor:
    batch = len(answers)
    if wanted.name == "state":
        return Tensor("BYTES", (batch,), tuple(answer.state.name.lower() for answer in answers))
    if wanted.name == "mask":
        datatype = mask_datatype(devices)
        numpy_type = np.uint32 if datatype == "UINT32" else np.uint64
        return Tensor(datatype, (batch,), np.array([answer.mask for answer in answers], numpy_type))
    logits = np.array([answer.logits for answer in answers], np.float32)  # (B, K)
    if not wanted.classes:
        return Tensor("FP32", logits.shape, logits)
    count = min(wanted.classes, logits.shape[1])
    best = np.argsort(-logits, axis=1, kind="stable")[:, :count]  # (B, count)
    texts = tuple(f"{logits[row, k]:f}:{k}:{labels[k]}" for row in range(batch) for k in best[row])
    return Tensor("BYTES", (batch, count), texts)
