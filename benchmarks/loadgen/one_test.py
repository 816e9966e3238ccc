"""One test of LoadGen in a process of its own.

LoadGen's Python module cannot stop a test: it waits for every answer for ever, and an exception in a callback leaves it
unable to end. A process can be ended from outside.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
from benchmarks.common.measure import tell
from benchmarks.loadgen.system import System
from benchmarks.network.bare import Children

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.keys import KeyPair
from devit_contract.choices import Policy
from devit_contract.errors import DevitError, InputError
from devit_contract.wire.client import Client

Scenario = Literal["SingleStream", "MultiStream", "Offline", "Server"]
Mode = Literal["performance", "accuracy"]
MULTI_STREAM_SAMPLES = 8
_MODES: dict[Mode, str] = {"performance": "PerformanceOnly", "accuracy": "AccuracyOnly"}
_WARM_UP, _RUSH = 20, 200
_SHARE_OFFERED = 0.5
"""Of the rate at saturation, in the scenario Server, unless a rate is given."""
_START_S, _MARGIN_S = 60.0, 20.0


@dataclass(frozen=True)
class Task:
    """What the process needs to know."""

    scenario: Scenario
    mode: Mode
    duration_s: float
    policy: Policy
    in_flight: int
    offered_per_s: float
    """In Server; 0 for half of what the cell was just found to answer."""
    bound_ms: float
    """Latency that 99 % of Server's queries have to keep."""
    timeout_s: float
    """For one answer."""
    folder: Path
    """Where LoadGen writes its logs."""
    endpoint: str
    keys: KeyPair
    node_key: bytes
    images: UInt8Array


@dataclass(frozen=True)
class Done:
    """What the system under test counted; the figures are in LoadGen's logs."""

    issued: int
    answered: int
    states: dict[str, int]
    offered_per_s: float
    """In Server."""


def run(task: Task) -> Done:
    """Run the test, and end its process whatever becomes of it.

    Raises:
        DevitError: A sample was not answered, or the process ended or said nothing for too long.
    """
    with Children() as children:
        connection = children.start(_serve, task)
        patience_s = _START_S
        while connection.poll(patience_s):
            try:
                found = connection.recv()
            except EOFError:
                raise InputError(f"{task.scenario}: the process of LoadGen ended: see its output above") from None
            if isinstance(found, Done):
                tell(f"{task.scenario}, {task.mode}: done\n")
                return found
            if isinstance(found, str):
                raise InputError(f"{task.scenario}: {found}")
            tell(f"{task.scenario}, {task.mode}: {found:,} samples answered")
            patience_s = task.timeout_s + _MARGIN_S
    raise InputError(f"{task.scenario}: expected answers, found none for {patience_s:g} s: see {task.folder}")


def require_loadgen() -> Any:  # noqa: ANN401 - it has no types
    """Import LoadGen.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module("mlperf_loadgen")
    except ImportError as err:
        raise InputError(f"LoadGen is not installed ({err}): pip install -r benchmarks/requirements.txt") from err


def _serve(parent: Connection, task: Task) -> None:
    loadgen = require_loadgen()

    def complete(answers: Sequence[tuple[int, bytes]]) -> None:
        # Arrays keep the bytes where LoadGen reads them until it has.
        kept = [np.frombuffer(data, np.uint8) for _, data in answers]
        responses = [
            loadgen.QuerySampleResponse(sample, array.ctypes.data, array.nbytes)
            for (sample, _), array in zip(answers, kept, strict=True)
        ]
        loadgen.QuerySamplesComplete(responses)

    try:
        client = Client(task.endpoint, keys=task.keys, node_key=task.node_key, timeout_s=task.timeout_s)
        latency_s, rate = _found_out(client, task)
    except DevitError as err:
        parent.send(str(err))
        return
    offered_per_s = task.offered_per_s or _SHARE_OFFERED * rate
    settings = _settings(loadgen, task, latency_s, rate, offered_per_s)
    count = len(task.images)
    library = loadgen.ConstructQSL(count, count, _keep, _keep)  # all images are in memory
    with (
        client,
        System(client, task.images, complete, parent.send, policy=task.policy, in_flight=task.in_flight) as system,
    ):
        under_test = loadgen.ConstructSUT(system.issue, _nothing)
        loadgen.StartTestWithLogSettings(under_test, library, settings, _log_settings(loadgen, task.folder))
        loadgen.DestroySUT(under_test)
        loadgen.DestroyQSL(library)
    parent.send(Done(system.issued, system.answered, dict(system.states), offered_per_s))


def _found_out(client: Client, task: Task) -> tuple[float, float]:
    """Warm the cell up, and find the latency and the rate that LoadGen wants to be told beforehand."""
    latencies_s = [client.classify(image, policy=task.policy).latency_s for image in task.images[:_WARM_UP]]
    rush = task.images[:_RUSH]
    start_s = time.perf_counter()
    answers = sum(1 for _ in client.stream(rush, in_flight=task.in_flight, policy=task.policy))
    return float(np.median(latencies_s)), answers / (time.perf_counter() - start_s)


def _settings(loadgen: Any, task: Task, latency_s: float, rate: float, offered_per_s: float) -> Any:  # noqa: ANN401
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, task.scenario)
    settings.mode = getattr(loadgen.TestMode, _MODES[task.mode])
    settings.min_duration_ms = round(1000 * task.duration_s)
    settings.min_query_count = 1  # its rule of early stopping judges whether there are enough
    settings.single_stream_expected_latency_ns = round(1e9 * latency_s)
    settings.multi_stream_samples_per_query = MULTI_STREAM_SAMPLES
    settings.multi_stream_expected_latency_ns = round(1e9 * MULTI_STREAM_SAMPLES / rate)
    settings.offline_expected_qps = rate
    settings.server_target_qps = offered_per_s
    settings.server_target_latency_ns = round(1e6 * task.bound_ms)
    return settings


def _log_settings(loadgen: Any, folder: Path) -> Any:  # noqa: ANN401
    settings = loadgen.LogSettings()
    settings.enable_trace = False
    settings.log_output.outdir = str(folder)
    settings.log_output.copy_summary_to_stdout = False
    return settings


def _keep(_samples: list[int]) -> None:
    """Load or unload nothing."""


def _nothing() -> None:
    """Flush nothing: no sample is held back."""
