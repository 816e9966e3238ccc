"""The protocol's pages about server and model: metadata, configuration, statistics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from devit_contract.wire.answer import Answer
from devit_contract.wire.status import NodeStatus
from devit_contract.wire.words import DeviceState
from devit_gateway.infer_request import INPUT, MAX_BATCH
from devit_gateway.infer_response import MODEL, VERSION, mask_datatype

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")

Page = dict[str, Any]


@dataclass
class _Duration:
    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns


@dataclass
class Statistics:
    """Counts what this gateway has served since its start."""

    inferences: int = 0
    """Images of successful requests."""
    last_inference_ms: int = 0
    """Since the epoch."""
    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    compute_input: _Duration = field(default_factory=_Duration)
    compute_infer: _Duration = field(default_factory=_Duration)
    compute_output: _Duration = field(default_factory=_Duration)

    def note_success(self, answers: Sequence[Answer], *, start_ns: int, parsed_ns: int) -> None:
        """Count a successful request; times are of ``time.monotonic_ns``."""
        self.inferences += len(answers)
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.success.add(time.monotonic_ns() - start_ns)
        self.compute_input.add(parsed_ns - start_ns)
        for answer in answers:
            self.queue.add(answer.wait_us * 1000)
            self.compute_infer.add(answer.collect_us * 1000)
            self.compute_output.add(answer.fuse_us * 1000)

    def note_failure(self, *, start_ns: int) -> None:
        """Count a failed request."""
        self.fail.add(time.monotonic_ns() - start_ns)


def server_page(version: str) -> Page:
    """Describe the server."""
    return {"name": "devit-gateway", "version": version, "extensions": EXTENSIONS}


def metadata_page(status: NodeStatus) -> Page:
    """Describe the model's input and outputs."""
    return {
        "name": MODEL,
        "versions": [VERSION],
        "platform": "devit",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *status.image_shape]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, len(status.labels)]},
            {"name": "state", "datatype": "BYTES", "shape": [-1]},
            {"name": "mask", "datatype": mask_datatype(device_count(status)), "shape": [-1]},
        ],
    }


def config_page(status: NodeStatus) -> Page:
    """Describe the same in the form of a Triton server."""
    mask_type = f"TYPE_{mask_datatype(device_count(status))}"
    return {
        "name": MODEL,
        "platform": "devit",
        "backend": "devit",
        "max_batch_size": MAX_BATCH,
        "input": [
            {"name": INPUT, "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": list(status.image_shape)}
        ],
        "output": [
            {"name": "logits", "data_type": "TYPE_FP32", "dims": [len(status.labels)]},
            {"name": "state", "data_type": "TYPE_STRING", "dims": []},
            {"name": "mask", "data_type": mask_type, "dims": []},
        ],
        "parameters": {"bundle": {"string_value": status.bundle}},
    }


def statistics_page(statistics: Statistics) -> Page:
    """Show what has been served."""
    names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "model_stats": [
            {
                "name": MODEL,
                "version": VERSION,
                "last_inference": statistics.last_inference_ms,
                "inference_count": statistics.inferences,
                "execution_count": statistics.inferences,
                "inference_stats": {name: getattr(statistics, name) for name in names},
                "batch_stats": [],
            }
        ]
    }


def device_count(status: NodeStatus) -> int:
    """Count the bits of a mask that stand for a device."""
    return max(*(device.submodel for device in status.devices), *status.without_device, 0) + 1


def why_not_ready(status: NodeStatus) -> str:
    """Why the cell gives no answers now; empty if it does."""
    ready = sum(device.state is DeviceState.READY and not device.is_spare for device in status.devices)
    if ready >= status.min_devices:
        return ""
    states = ", ".join(f"{device.name} {device.state}" for device in status.devices)
    return f"expected at least {status.min_devices} ready devices, found {ready} ({states}): see devit status"
