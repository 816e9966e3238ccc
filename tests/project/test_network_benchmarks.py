"""The benchmarks of the network run and give their figures. How fast anything was is never judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from benchmarks.common import measure
from benchmarks.network.devices import Feature

from devit_contract.wire.codec import Dtype, Kind, Message, array_payload, pack, unpack

ROOT = Path(__file__).parents[2]
FIGURE = {"name", "unit", "devit", "other", "compared", "wanted", "holds", "samples", "spread"}


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.network.{script}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(script: str, *arguments: str) -> Any:  # noqa: ANN401 - parsed JSON
    found = json.loads(run(script, "--json", *arguments))
    assert found["benchmark"] == script
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert sum(found["machine"]["cpu_share"].values()) == pytest.approx(1.0, abs=0.01)
    assert len(found["machine"]["load_before"]) == len(found["machine"]["load_after"]) == 3
    for figure in found["figures"]:
        assert figure.keys() == FIGURE
        assert figure["samples"] > 0
        assert figure["spread"][0] <= figure["spread"][1]
    return found


@pytest.mark.nightly(part="endurance")
def test_the_round_trip_is_held_against_an_echo() -> None:
    figures = report("round_trip", "--duration", "0.2")["figures"]
    assert [(each["name"], each["wanted"]) for each in figures] == [
        ("round trip p50", "<= 3 x"),
        ("round trip p99", "<= 5 x"),
    ]
    for each in figures:
        assert each["compared"] == pytest.approx(each["devit"] / each["other"], abs=0.002)
        assert each["holds"] is (each["compared"] <= float(each["wanted"].split()[1]))


@pytest.mark.nightly(part="endurance")
def test_paced_engines_are_held_against_a_bare_cell() -> None:
    figures = report("paced", "--duration", "0.2", "--paces", "0.5")["figures"]
    assert [(each["name"], each["wanted"]) for each in figures] == [
        ("pace 0.5 ms, p50", "<= 450 us more"),
        ("pace 0.5 ms, p99", "<= 1000 us more"),
    ]
    for each in figures:
        assert each["compared"] == pytest.approx(each["devit"] - each["other"], abs=0.02)
        assert each["other"] > 0  # an answer takes longer than the engines' pace


@pytest.mark.nightly(part="endurance")
def test_the_throughput_counts_whole_frames_and_both_cores() -> None:
    found = report("throughput", "--duration", "0.4", "--devices", "3")
    rate, cost, *shares = found["figures"]
    assert found["settings"]["devices"] == 3
    assert rate["samples"] % 3 == 0
    assert rate["holds"] is (rate["devit"] >= 20_000)
    assert cost["unit"] == "us"
    assert [each["unit"] for each in shares] == ["%", "%"]
    assert all(each["holds"] is None and each["other"] is None for each in (cost, *shares))


def test_fusion_with_a_device_missing_is_held_against_fusion_with_all() -> None:
    (figure,) = report("fusion", "--duration", "0.1", "--heads", "3x8x5")["figures"]
    assert (figure["name"], figure["wanted"]) == ("3x8x5, p50", "<= 1.05 x")


def test_people_get_a_table_with_what_else_the_machine_did() -> None:
    lines = run("fusion", "--duration", "0.1", "--heads", "2x8x5").splitlines()
    assert lines[0].startswith("fusion: ")
    assert lines[3].split() == ["what", "devit", "all", "devices", "compared", "blocks", "wanted", "holds", "samples"]
    assert lines[-1].startswith("load average before / after: ")


@pytest.mark.nightly(part="endurance")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="exporting needs onnxsim, which has no wheel below Python 3.11")
def test_submodels_of_deit_tinys_size_are_exported_once_and_measured(tmp_path: Path) -> None:
    for _ in range(2):
        (figure,) = report("tiny", "--duration", "1", "--cache", str(tmp_path))["figures"]
        assert figure["wanted"] == "<= 1.05 x"
    assert (tmp_path / "tiny-bundle" / "manifest.json").exists()


def test_the_sides_take_turns_and_the_first_turn_only_warms_up() -> None:
    turns: list[str] = []

    def side(name: str) -> Callable[[float], npt.NDArray[np.float64]]:
        def measured(_duration_s: float) -> npt.NDArray[np.float64]:
            turns.append(name)
            return np.full(2, len(turns), np.float64)

        return measured

    ours, theirs = measure.alternate("test", (side("a"), side("b")), 3.0)
    assert "".join(turns) == "ab" * 4
    assert [block[0] for block in ours] == [3, 5, 7]
    assert [block[0] for block in theirs] == [4, 6, 8]


def test_figures_compare_all_samples_and_show_how_far_blocks_differ() -> None:
    ours = [np.array([10.0, 20.0, 30.0]), np.array([40.0, 50.0, 60.0])]
    theirs = [np.array([10.0, 10.0, 10.0]), np.array([10.0, 10.0, 10.0])]
    ratio = measure.ratio("ratio", measure.p50, ours, theirs, 3.4)
    assert (ratio.devit, ratio.other, ratio.compared, ratio.holds) == (35.0, 10.0, 3.5, False)
    assert (ratio.spread, ratio.samples) == ((2.0, 5.0), 6)
    more = measure.difference("difference", measure.p50, ours, theirs, 25.0)
    assert (more.compared, more.holds, more.spread) == (25.0, True, (10.0, 40.0))


def test_a_simulated_devices_answer_is_a_whole_message_of_that_frame() -> None:
    simulated = Feature(submodel=5, dim=192, run_id=77)
    dtype, dims, payload = array_payload(np.zeros((2, 2, 3), np.uint8))
    for frame_id, dispatch_ns in ((1, 2), (2**63, 2**62)):
        frame = Message(Kind.FRAME, dtype, dims, payload, device=5, frame_id=frame_id, dispatch_ns=dispatch_ns)
        found = unpack(simulated.answer(pack(frame)))
        assert (found.kind, found.dtype, found.dims) == (Kind.FEATURE, Dtype.FLOAT32, (192,))
        assert (found.device, found.run_id, found.boot_id) == (5, 77, 1)
        assert (found.frame_id, found.dispatch_ns) == (frame_id, dispatch_ns)
        assert np.isfinite(found.array()).all()
