"""LoadGen drives a real cell: every sample is answered and counted once, and a lost answer ends it in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.loadgen import one_test
from benchmarks.loadgen.logs import read_answers, read_performance
from benchmarks.loadgen.one_test import Mode, Scenario, Task
from benchmarks.loadgen.run import SCENARIOS
from tests.support.cell import MakeCell

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import InputError
from devit_pipeline.local_cell import LocalCell

ROOT = Path(__file__).parents[2]
LOGITS = np.array([[0.5, -1.0], [2.0, 3.5], [-4.0, 0.25]], "<f4")
MakeTask = Callable[[Scenario, Mode, float], tuple[LocalCell, Task]]
needs_loadgen = pytest.mark.skipif(
    not (3, 11) <= sys.version_info < (3, 14), reason="LoadGen has wheels for Python 3.11 to 3.13 alone"
)


@pytest.fixture
def make_task(make_cell: MakeCell, bundle: Bundle, tmp_path: Path) -> MakeTask:
    """Describe a test of LoadGen on a cell of two null engines."""

    def make(scenario: Scenario, mode: Mode, duration_s: float) -> tuple[LocalCell, Task]:
        cell = make_cell(engine="null", deadline_ms=2000)
        images: UInt8Array = np.random.default_rng(1).integers(
            0, 256, (30, *bundle.manifest.preprocess.shape), np.uint8
        )
        task = Task(
            scenario=scenario,
            mode=mode,
            duration_s=duration_s,
            policy="all",
            in_flight=8,
            offered_per_s=100.0,
            bound_ms=100.0,
            timeout_s=3.0,
            folder=tmp_path,
            endpoint=cell.fleet.node.client_endpoint,
            keys=cell.client_keys,
            node_key=cell.fleet.node.public_key.encode(),
            images=images,
        )
        return cell, task

    return make


def accuracy_log(folder: Path, places: Sequence[int], answers: Sequence[bytes]) -> None:
    entries = [
        {"seq_id": number, "qsl_idx": place, "data": answer.hex().upper()}
        for number, (place, answer) in enumerate(zip(places, answers, strict=True))
    ]
    (folder / "mlperf_log_accuracy.json").write_text(json.dumps(entries))


def test_answers_are_read_by_their_samples_places(tmp_path: Path) -> None:
    accuracy_log(tmp_path, (2, 0, 1), [LOGITS[place].tobytes() for place in (2, 0, 1)])
    np.testing.assert_array_equal(read_answers(tmp_path, 3, 2), LOGITS)


@pytest.mark.parametrize(
    ("places", "numbers", "told"),
    [
        ((0, 1), 2, "each of 3 samples once, found 2 of 2"),
        ((0, 1, 1), 2, "each of 3 samples once, found 3 of 2"),
        ((0, 1, 3), 2, "each of 3 samples once"),
        ((0, 1, 2), 1, "expected 2 logits, found 1"),
    ],
)
def test_a_sample_that_lacks_its_answer_is_an_error(
    places: Sequence[int], numbers: int, told: str, tmp_path: Path
) -> None:
    accuracy_log(tmp_path, places, [LOGITS[place % 3, :numbers].tobytes() for place in places])
    with pytest.raises(InputError, match=told):
        read_answers(tmp_path, 3, 2)


def test_a_log_without_a_result_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlperf_log_detail.txt").write_text(':::MLLOG {"key": "sut_name", "value": "PySUT"}\n')
    with pytest.raises(InputError, match="expected LoadGen's result, found none"):
        read_performance(tmp_path)


@needs_loadgen
@pytest.mark.nightly(part="endurance")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_sample_is_answered_and_counted_once(scenario: Scenario, make_task: MakeTask) -> None:
    _, task = make_task(scenario, "performance", 0.3)
    done, found = one_test.run(task), read_performance(task.folder)
    assert done.issued == done.answered == found.samples == done.states["full"] > 0
    assert found.queries == {"MultiStream": done.issued / 8, "Offline": 1}.get(scenario, done.issued)
    assert 0 < found.p50_us <= found.p90_us <= found.p99_us
    assert found.rate > 0


@needs_loadgen
@pytest.mark.nightly(part="endurance")
@pytest.mark.parametrize("stopped", [("node",), ("jetson1", "jetson2")])
def test_a_lost_answer_ends_the_test_in_one_line(
    stopped: tuple[str, ...], make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, task = make_task("SingleStream", "performance", 60.0)
    is_stopped = threading.Event()

    def stop_once(text: str) -> None:
        if "samples answered" in text and not is_stopped.is_set():  # LoadGen's test has begun
            is_stopped.set()
            for name in stopped:
                os.kill(cell.pid(name), signal.SIGSTOP)

    monkeypatch.setattr(one_test, "tell", stop_once)
    told = "no answer within 3 s" if stopped == ("node",) else "too few devices answered"
    try:
        with pytest.raises(InputError, match=rf"^SingleStream: sample \d+ of \d+ issued has no answer: .*{told}.*$"):
            one_test.run(task)
    finally:
        for name in stopped:
            cell.kill(name)
    assert is_stopped.is_set()


def command(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.loadgen.run", "--small", "--logs", str(place / "logs"), *arguments],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(place)},  # the cell's processes have it in their command lines
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_loadgen
@pytest.mark.nightly(part="endurance")
def test_the_accuracy_log_gives_the_known_accuracy(tmp_path: Path) -> None:
    with command(tmp_path, "--mode", "accuracy", "--scenario", "Offline", "--duration", "0.1", "--json") as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    found: Any = json.loads(out)
    (row,) = found["rows"]
    assert row["holds"] is True
    assert row["samples"] == found["settings"]["images"]
    assert "unofficial" in found["about"]


@needs_loadgen
@pytest.mark.nightly(part="endurance")
def test_ctrl_c_leaves_no_process_and_no_traceback(tmp_path: Path) -> None:
    with command(tmp_path, "--scenario", "Offline", "SingleStream", "--duration", "0.1") as process:
        assert process.stderr is not None
        assert "Offline, performance: done" in process.stderr.readline()  # so the next one has begun
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if _has(path, str(tmp_path))]


def _has(path: Path, text: str) -> bool:
    try:
        return text in path.read_text("utf-8", "replace")
    except OSError:  # it ended meanwhile
        return False
