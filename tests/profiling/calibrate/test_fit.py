"""Calibration against an external meter: virtual boards whose true energy is known, a meter on its own clock."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from tests.profiling.simulation.reference_board import ReferenceBoard, recursive_average
from typer.testing import CliRunner

from devit_contract.artefacts.files import write_json
from devit_contract.errors import DevitError, EnergyError, InputError, ManifestError
from devit_contract.wire.messages import PowerLine
from devit_profiling.calibrate.fit import calibrate
from devit_profiling.calibrate.meter_log import read_meter_log
from devit_profiling.cli import app
from devit_profiling.figures.analysis import analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.record.calibration import Calibration, find_calibration
from devit_profiling.record.record import IDLE, WINDOW, Recording
from devit_profiling.record.run_folder import read_recording, write_recording
from devit_profiling.report.report import OUTPUTS, write_report
from devit_profiling.sensor.board_table import BOARDS

if TYPE_CHECKING:
    from conftest import FakeRun
else:
    FakeRun = object

CLOCK_S, LENGTH_S, STEP_S = 1000.0, 48.0, 0.1
METER_CLOCK_S = 12345.678
"""The meter's clock less the device's."""


@dataclass(frozen=True)
class Bench:
    """A board with a meter on it, and the run that was recorded meanwhile."""

    run: Path
    board: ReferenceBoard
    folder: Path

    def true_w(self, start_s: float, end_s: float) -> float:
        """Mean power between two moments since the start."""
        return self.board.true_j(start_s, end_s) / (end_s - start_s)

    def meter(
        self,
        period_s: float = 0.5,
        *,
        start_s: float = 0.0,
        end_s: float = LENGTH_S,
        seen: Callable[[float], float] = lambda power_w: power_w,
        noise_w: float = 0.01,
    ) -> Path:
        """Log means of the true power over each period, as integrating meters do."""
        draw = random.Random("meter")
        path = self.folder / "meter.csv"
        times_s = np.arange(start_s, end_s - period_s, period_s).tolist()
        rows = [
            f"{METER_CLOCK_S + CLOCK_S + time_s + period_s / 2:.3f},12.0,"
            f"{seen(self.true_w(time_s, time_s + period_s)) + draw.gauss(0.0, noise_w):.4f}"
            for time_s in times_s
        ]
        path.write_text("# recorded for a test, SIMULATED\ntime_s,volt,power_w\n" + "\n".join(rows) + "\n")
        return path


def load_of(time_s: float) -> float:
    """Idle, load from the middle of the warm-up on, idle again: where the fake run's phases have it."""
    return 0.8 if 12.5 <= time_s < 35.5 else 0.0


def make_bench(
    recording: Recording, folder: Path, key: str, seed: int, load: Callable[[float], float] = load_of
) -> Bench:
    board = ReferenceBoard(BOARDS[key], seed=seed, sensor=recursive_average(BOARDS[key], seed))
    lines = []
    for step in range(round(LENGTH_S / STEP_S) + 1):
        time_s = step * STEP_S
        lines.append(PowerLine(round((CLOCK_S + time_s) * 1e9), board.line(time_s, load(time_s))))
    device = recording.run.devices[0]
    about = msgspec.structs.replace(device.description, board_model=BOARDS[key].model_prefixes[0])
    run = msgspec.structs.replace(
        recording.run, devices=(msgspec.structs.replace(device, description=about), *recording.run.devices[1:])
    )
    write_recording(folder / "run", Recording(run, {**recording.lines, device.name: tuple(lines)}, recording.answers))
    return Bench(folder / "run", board, folder)


@pytest.fixture
def bench(fake_run: FakeRun, tmp_path: Path) -> Bench:
    """An Orin Nano whose sensor is off by up to 3 % and two steps."""
    return make_bench(fake_run.recording(), tmp_path, "orin-nano", 3)


def calibrated_run(bench: Bench, calibration: Calibration) -> Path:
    """The same raw data as if the calibration had stood when the run was measured."""
    recording = read_recording(bench.run)
    device = msgspec.structs.replace(recording.run.devices[0], calibration=calibration)
    run = msgspec.structs.replace(recording.run, devices=(device, *recording.run.devices[1:]))
    write_recording(bench.folder / "calibrated", Recording(run, recording.lines, recording.answers))
    return bench.folder / "calibrated"


@pytest.mark.parametrize("key", ["orin-nano", "agx-orin", "agx-thor"])
def test_calibrated_joules_are_the_true_ones_within_what_is_stated(fake_run: FakeRun, tmp_path: Path, key: str) -> None:
    """Uncalibrated ones are off by the sensor's own gain and offset, up to 3 % and two steps a rail."""
    for seed in range(3):
        folder = tmp_path / str(seed)
        bench = make_bench(fake_run.recording(), folder, key, seed)
        found = calibrate(bench.run, "jetson1", bench.meter(), "WT310, DC input")
        assert found.is_simulated
        report = analyse(Evidence.read(calibrated_run(bench, found)))
        (energy,) = report.scenarios[0].energies
        phases = [phase for phase in read_recording(bench.run).run.phases if phase.kind in (IDLE, WINDOW)]
        boundaries_s = [
            (boundary.snapshots["jetson1"].monotonic_ns / 1e9 - CLOCK_S for boundary in (phase.start, phase.end))
            for phase in phases
        ]
        idle_w, *true_w = [bench.true_w(*ends_s) for ends_s in boundaries_s]
        mean_true_w = sum(true_w) / len(true_w)
        assert energy.mean_w is not None
        assert energy.idle_w is not None
        assert energy.steps_w is not None
        # Two in twenty may lie outside of a true 95 %: half as wide again lets one in three hundred through.
        assert abs(energy.mean_w - mean_true_w) <= 1.5 * np.hypot(found.half_95_w(mean_true_w), 2 * energy.steps_w)
        assert energy.mean_w == pytest.approx(mean_true_w, rel=0.02)
        assert energy.idle_w == pytest.approx(idle_w, rel=0.06)


def test_clocks_are_laid_on_each_other_by_the_steps_of_the_load(bench: Bench) -> None:
    found = calibrate(bench.run, "jetson1", bench.meter(), "a meter")
    assert found.alignment.offset_s == pytest.approx(METER_CLOCK_S, abs=0.3)
    assert found.alignment.explained > 0.97
    assert found.alignment.overlap_s == pytest.approx(LENGTH_S, abs=2.0)


def test_meter_that_covers_hours_around_the_run_is_found_in(bench: Bench) -> None:
    path = bench.meter()
    header, names, *rows = path.read_text().splitlines()
    times_s = [float(row.split(",")[0]) for row in rows]
    around = [f"{times_s[0] - 3600 + step * 0.5:.3f},12.0,9.5" for step in range(7000)]
    path.write_text("\n".join([header, names, *around, *rows]) + "\n")
    assert calibrate(bench.run, "jetson1", path, "a meter").alignment.offset_s == pytest.approx(METER_CLOCK_S, abs=0.3)


def test_meter_of_another_scope_gives_its_own_line(bench: Bench) -> None:
    """A meter at the supply sees losses and the carrier board: 1.12 W a watt, and 3 W besides."""
    plain = calibrate(bench.run, "jetson1", bench.meter(), "a meter")
    supply = calibrate(bench.run, "jetson1", bench.meter(seen=lambda power_w: 3.0 + 1.12 * power_w), "supply")
    assert supply.gain == pytest.approx(1.12 * plain.gain, rel=0.005)
    assert supply.offset_w == pytest.approx(3.0 + 1.12 * plain.offset_w, abs=0.05)


def test_one_second_meter_calibrates_too(bench: Bench) -> None:
    slow, fast = (calibrate(bench.run, "jetson1", bench.meter(period_s), "a meter") for period_s in (1.0, 0.1))
    assert slow.watts(9.0) == pytest.approx(fast.watts(9.0), rel=0.005)


def test_run_without_steps_of_the_load_is_refused(fake_run: FakeRun, tmp_path: Path) -> None:
    bench = make_bench(fake_run.recording(), tmp_path, "orin-nano", 3, lambda _: 0.5)
    with pytest.raises(EnergyError, match=r"^jetson1: expected steps of the load in its power, found .*: calibrate"):
        calibrate(bench.run, "jetson1", bench.meter(), "a meter")


def test_meter_on_something_else_is_refused(bench: Bench) -> None:
    draw = random.Random(1)
    path = bench.meter(seen=lambda _: draw.uniform(5.0, 9.0))
    with pytest.raises(EnergyError, match=r"^expected a meter's log that shows the steps of the board's, found \d+%"):
        calibrate(bench.run, "jetson1", path, "a meter")


def test_meter_that_saw_only_the_end_of_the_run_is_refused(bench: Bench) -> None:
    with pytest.raises(EnergyError, match=r"^(jetson1: )?expected "):
        calibrate(bench.run, "jetson1", bench.meter(start_s=37.0), "a meter")


def test_meter_that_fits_in_two_places_is_refused(fake_run: FakeRun, tmp_path: Path) -> None:
    """Equal bursts at equal distances: a log of half of them fits everywhere."""
    bursts = make_bench(
        fake_run.recording(),
        tmp_path,
        "orin-nano",
        3,
        lambda time_s: 0.8 if time_s % 12.0 >= 6.0 else 0.0,
    )
    with pytest.raises(EnergyError, match="expected one shift of the meter's clock that fits, found two"):
        calibrate(bursts.run, "jetson1", bursts.meter(end_s=30.0), "a meter")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected the columns time_s and power_w, found none"),
        ("t,w\n1,2\n", "expected the columns time_s and power_w, found t, w"),
        ("time_s,power_w\n1,2\n1,3\n", "line 3: expected a time after 1.0 s, found 1.0 s"),
        ("time_s,power_w\n1,2\n2,NaN\n", "line 3: expected finite numbers"),
        ("time_s,power_w\n1,2\n2\n", "line 3: expected two numbers, found '2'"),
        ("time_s,power_w\n1,2,5\n2,3,5 W\n", ""),
        ("time_s,power_w\n1;2\n", "line 2: expected two numbers"),
    ],
)
def test_log_of_a_meter_is_read_or_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "meter.csv"
    path.write_text(content)
    if not message:
        assert read_meter_log(path).power_w.tolist() == [2.0, 3.0]
        return
    with pytest.raises(InputError, match=message) as caught:
        read_meter_log(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_log_of_a_meter_may_come_from_windows(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "meter.csv"
    path.write_bytes("time_s,power_w,note\r\n1,2,5 \u00b0C\r\n2,3,\r\n".encode(encoding))
    assert read_meter_log(path).power_w.tolist() == [2.0, 3.0]


def test_few_samples_of_a_meter_are_refused(bench: Bench) -> None:
    path = bench.folder / "meter.csv"
    path.write_text("time_s,power_w\n" + "".join(f"{second},{second}\n" for second in range(5)))
    with pytest.raises(EnergyError, match="expected at least 20 samples of the meter, found 5"):
        calibrate(bench.run, "jetson1", path, "a meter")


def test_device_that_the_run_has_not_is_named(bench: Bench) -> None:
    with pytest.raises(InputError, match=r"expected a device 'jetson7', found jetson1: choose one of these"):
        calibrate(bench.run, "jetson7", bench.meter(), "a meter")


def test_calibration_of_another_board_is_refused(bench: Bench) -> None:
    found = calibrate(bench.run, "jetson1", bench.meter(), "a meter")
    write_json(bench.folder / "jetson1.json", found)
    assert find_calibration(bench.folder, "jetson1", found.board_model) == found
    assert find_calibration(bench.folder, "jetson2", found.board_model) is None
    assert find_calibration(None, "jetson1", found.board_model) is None
    with pytest.raises(ManifestError, match="expected a calibration of jetson1, NVIDIA Jetson TX2, found one of"):
        find_calibration(bench.folder, "jetson1", "NVIDIA Jetson TX2")


def test_damaged_calibration_is_refused_with_its_field(bench: Bench) -> None:
    found = calibrate(bench.run, "jetson1", bench.meter(), "a meter")
    path = bench.folder / "jetson1.json"
    for field, value in (("gain", -1.0), ("gain", "x"), ("schema", 3), ("residual_w", None)):
        write_json(path, found)
        path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
        with pytest.raises(DevitError, match=field) as caught:
            find_calibration(bench.folder, "jetson1", found.board_model)
        assert "\n" not in str(caught.value)


def test_report_says_of_every_joule_whether_it_is_calibrated_and_again_bit_by_bit(bench: Bench) -> None:
    found = calibrate(bench.run, "jetson1", bench.meter(), "WT310, DC input", 0.2)
    folder = calibrated_run(bench, found)
    before, after = write_report(bench.run), write_report(folder)
    assert (before.devices[0].calibration, after.devices[0].calibration) == (None, found)
    assert [report.scenarios[0].energies[0].is_calibrated for report in (before, after)] == [False, True]
    assert after.scenarios[0].energies[0].scope == "module input (VDD_IN), calibrated against WT310, DC input"
    plain, corrected = ((run / "report.html").read_text() for run in (bench.run, folder))
    assert "jetson1: not calibrated, gain error about 5 %" in plain
    assert "against WT310, DC input (SIMULATED), whose own error is 0.2" in corrected
    cells = [line.split(",") for line in (folder / "power.csv").read_text().splitlines()[1:5]]
    readings = {row[2]: int(row[3]) for row in cells}
    assert readings["total"] == pytest.approx(1000 * found.watts(readings["VDD_IN"] / 1000), abs=0.51)
    # What the run was corrected by is in the run: the folder of calibrations may change or go.
    outputs = {name: (folder / name).read_bytes() for name in OUTPUTS}
    for name in OUTPUTS:
        (folder / name).unlink()
    write_report(folder)
    assert {name: (folder / name).read_bytes() for name in OUTPUTS} == outputs


def test_window_outside_of_what_was_calibrated_is_flagged(bench: Bench) -> None:
    found = calibrate(bench.run, "jetson1", bench.meter(), "a meter")
    narrow = msgspec.structs.replace(found, high_w=(found.low_w + found.high_w) / 2)
    (energy,) = analyse(Evidence.read(calibrated_run(bench, narrow))).scenarios[0].energies
    assert any("outside the calibrated range of this device" in text for text in energy.warnings)
    (energy,) = analyse(Evidence.read(calibrated_run(bench, found))).scenarios[0].energies
    assert not any("calibrated" in text for text in energy.warnings)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder of the test's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def test_command_writes_the_file_that_later_runs_look_for(bench: Bench, home: Path) -> None:
    arguments = ["calibrate", "--meter", str(bench.meter()), "--run", str(bench.run), "--device", "jetson1"]
    done = CliRunner().invoke(app, [*arguments, "--meter-name", "WT310, DC input"])
    assert done.exit_code == 0, done.output
    path = home / "devit" / "calibrations" / "jetson1.json"
    assert "SIMULATED" in done.output
    assert "meter's clock less the device's" in done.output
    found = msgspec.json.decode(path.read_bytes(), type=Calibration)
    done = CliRunner().invoke(app, [*arguments, "--meter-name", "b", "--out", str(home / "x.json"), "--json"])
    assert json.loads(done.output)["gain"] == found.gain
    assert (home / "x.json").exists()
