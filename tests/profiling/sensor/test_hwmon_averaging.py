"""The chips' averaging: how far it is shortened, and that it is set back, on files and on a double of the driver."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.profiling.sysfs_tree import hwmon_chip, iio_chip, orin_nano

from devit_contract.errors import DevitError, EnergyError, ManifestError
from devit_profiling.sensor import hwmon_averaging
from devit_profiling.sensor.hwmon_averaging import SAMPLES, STATE_FILE, fast_averaging, restore, restore_stale
from devit_profiling.sensor.hwmon_rails import Chip, find_rails

CONVERSION_US = (140, 204, 332, 588, 1100, 2116, 4156, 8244)


def samples_of(folder: Path) -> int:
    return int((folder / "samples").read_text())


def test_as_many_conversions_are_averaged_as_fit_into_a_period(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path, samples=512, update_interval=1)
    for period_ms, fitting in ((20, 16), (100, 64), (300, 256), (1000, 512)):
        with fast_averaging(find_rails(tmp_path).chips, period_ms, tmp_path / "state") as notes:
            assert samples_of(folder) == fitting
            assert notes == [f"1-0040 averages {fitting} conversions instead of 512, as --fast-sensor asks"]
        assert samples_of(folder) == 512


def test_a_conversion_that_takes_longer_than_a_period_is_shortened_too(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path, samples=4, update_interval=49)
    with fast_averaging(find_rails(tmp_path).chips, 20, tmp_path / "state"):
        assert (samples_of(folder), (folder / "update_interval").read_text()) == (1, "20\n")
    assert (samples_of(folder), (folder / "update_interval").read_text()) == (4, "49\n")


def test_a_driver_that_tells_no_interval_is_set_to_one_conversion(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path, samples=512)
    with fast_averaging(find_rails(tmp_path).chips, 1000, tmp_path / "state"):
        assert samples_of(folder) == 1
    assert samples_of(folder) == 512


def test_what_was_found_is_in_the_state_file_and_the_file_goes_when_all_is_as_before(tmp_path: Path) -> None:
    orin_nano(tmp_path, samples=512, update_interval=1)
    rails = (("VDDQ_VDD2_1V8AO", 1800, 335),)
    second = hwmon_chip(tmp_path, "1-0041", rails, number=4, samples=64, update_interval=1)
    with fast_averaging(find_rails(tmp_path).chips, 20, tmp_path / "state"):
        state = json.loads((tmp_path / "state" / STATE_FILE).read_bytes())
        assert [(chip["device"], chip["samples"]) for chip in state["chips"]] == [("1-0040", 512), ("1-0041", 64)]
        assert samples_of(second) == 16
    assert not (tmp_path / "state" / STATE_FILE).exists()
    assert samples_of(second) == 64


def test_an_error_in_the_block_sets_back_too(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path, samples=512, update_interval=1)
    with pytest.raises(KeyError), fast_averaging(find_rails(tmp_path).chips, 20, tmp_path / "state"):
        raise KeyError
    assert samples_of(folder) == 512


def test_a_second_chip_that_refuses_leaves_the_first_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = orin_nano(tmp_path, samples=512, update_interval=1)
    hwmon_chip(tmp_path, "1-0041", (("VDDQ", 1800, 335),), number=4, samples=512, update_interval=1)
    write = hwmon_averaging._write

    def refuse(chip: Chip, attribute: str, value: int) -> None:
        if chip.device == "1-0041" and value < 512:
            raise EnergyError("Remote I/O error")
        write(chip, attribute, value)

    monkeypatch.setattr(hwmon_averaging, "_write", refuse)
    chips = find_rails(tmp_path).chips
    with pytest.raises(EnergyError, match="Remote"):
        fast_averaging(chips, 20, tmp_path / "state").__enter__()
    assert samples_of(folder) == 512
    assert not (tmp_path / "state" / STATE_FILE).exists()


def test_chips_whose_averaging_cannot_be_set_are_refused(tmp_path: Path) -> None:
    iio_chip(tmp_path, "6-0040", [("POM_5V_IN", 2082)])
    with pytest.raises(EnergyError, match=r"expected a chip whose averaging can be set.*L4T 34 or newer"):
        fast_averaging(find_rails(tmp_path).chips, 20, tmp_path / "state").__enter__()
    assert not (tmp_path / "state").exists()


def test_a_chip_that_does_not_keep_what_it_is_told_is_named_and_the_state_stays(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path, samples=512, update_interval=1)

    def replace_chip() -> None:
        with fast_averaging(find_rails(tmp_path).chips, 20, tmp_path / "state"):
            (folder / "samples").unlink()
            (folder / "samples").symlink_to("/dev/null")

    with pytest.raises(EnergyError, match="samples: expected a number, found none"):
        replace_chip()
    assert (tmp_path / "state" / STATE_FILE).exists()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def test_only_one_program_may_set_the_sensor(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path, samples=512, update_interval=1)
    state = tmp_path / "state"
    chips = find_rails(tmp_path).chips
    with fast_averaging(chips, 20, state):
        with pytest.raises(EnergyError, match="another program samples with --fast-sensor"):
            fast_averaging(chips, 1000, state).__enter__()
        assert samples_of(folder) == 16
        assert "another program" in restore_stale(chips, state)
        assert samples_of(folder) == 16
    assert samples_of(folder) == 512


def test_what_a_killed_program_left_is_set_back_once(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path, samples=16, update_interval=1)
    state = tmp_path / "state"
    state.mkdir()
    chip = {"device": "1-0040", "samples": 512, "update_interval_ms": 1, "once_ms": None}
    gone = {"device": "9-0040", "samples": 64, "update_interval_ms": 1, "once_ms": None}
    (state / STATE_FILE).write_text(json.dumps({"schema": 1, "chips": [chip, gone]}))
    chips = find_rails(tmp_path).chips
    assert restore_stale(chips, state) == "the averaging that a killed program had left is restored"
    assert samples_of(folder) == 512
    assert restore_stale(chips, state) == ""


def test_a_broken_state_file_is_told_and_changes_nothing(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path, samples=16, update_interval=1)
    (tmp_path / STATE_FILE).write_text('{"schema": 1, "chips": [{"device": 3}]}')
    with pytest.raises(ManifestError, match=r"chips\[0\]"):
        restore(find_rails(tmp_path).chips, tmp_path)
    assert "chips[0]" in restore_stale(find_rails(tmp_path).chips, tmp_path)
    assert samples_of(folder) == 16


class DriverDouble:
    """The configuration register of an INA3221 behind the two attributes, after Linux' drivers/hwmon/ina3221.c.

    Kernels up to 2023 read the interval times the samples, later ones without; both divide by them when it is written.
    """

    def __init__(self, channels: int, samples: int, conversion_us: int, *, reads_times_samples: bool) -> None:
        self.channels = channels
        self.samples = samples
        self.conversion_us = conversion_us
        self.reads_times_samples = reads_times_samples

    @property
    def register(self) -> tuple[int, int]:
        return self.samples, self.conversion_us

    @property
    def round_ms(self) -> float:
        return self.channels * 2 * self.conversion_us / 1000

    def read(self, _chip: Chip, attribute: str) -> int:
        if attribute == "samples":
            return self.samples
        return int(self.round_ms * (self.samples if self.reads_times_samples else 1) + 0.5)

    def write(self, _chip: Chip, attribute: str, value: int) -> None:
        if attribute == "samples":
            self.samples = min(SAMPLES, key=lambda known: abs(known - value))
        else:
            wanted_us = int(value * 1000 // 2 / (self.channels * self.samples) + 0.5)
            self.conversion_us = min(CONVERSION_US, key=lambda known: abs(known - wanted_us))


@given(
    channels=st.integers(1, 3),
    samples=st.sampled_from(SAMPLES),
    conversion_us=st.sampled_from(CONVERSION_US),
    period_ms=st.integers(20, 1000),
    reads_times_samples=st.booleans(),
)
def test_on_either_kernel_the_chip_gets_fast_and_its_register_comes_back(
    channels: int, samples: int, conversion_us: int, period_ms: int, reads_times_samples: bool
) -> None:
    driver = DriverDouble(channels, samples, conversion_us, reads_times_samples=reads_times_samples)
    before, round_ms = driver.register, driver.round_ms
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        chips = (Chip("1-0040", orin_nano(Path(name), samples=0, update_interval=0)),)
        patch.setattr(hwmon_averaging, "_read", driver.read)
        patch.setattr(hwmon_averaging, "_write", driver.write)
        with fast_averaging(chips, period_ms, Path(name) / "state"):
            fast_ms = driver.samples * driver.round_ms
            assert driver.samples <= samples
            # The interval is told in whole milliseconds, so a period may be missed by half of one for each sample.
            assert fast_ms <= max(period_ms, driver.round_ms) + 0.5 * driver.samples
            assert driver.round_ms <= max(period_ms + 10, 1) or driver.round_ms == round_ms
            # No more is given up than needed: the next larger count would not have fitted, or there were no more.
            larger = [count for count in SAMPLES if driver.samples < count <= samples]
            assert not larger or larger[0] * max(1, driver.round_ms + 0.5) > period_ms
        assert driver.register == before


def test_errors_of_the_state_folder_are_named(tmp_path: Path) -> None:
    orin_nano(tmp_path, samples=512, update_interval=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DevitError, match="choose another folder"):
        fast_averaging(find_rails(tmp_path).chips, 20, tmp_path / "file").__enter__()
    state = tmp_path / "state"
    state.mkdir()
    with locked(state), pytest.raises(EnergyError, match="wait for its end"):
        fast_averaging(find_rails(tmp_path).chips, 20, state).__enter__()
