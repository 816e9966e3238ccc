"""Power modes: what is read, what is refused, and that the mode that was found comes back whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.profiling.power_modes import ModeBoard, mode_board

from devit_contract.errors import DevitError, EnergyError
from devit_contract.machine import PowerMode
from devit_profiling.sweep.nvpmodel import STATE_FILE, NvpModel, RebootError, mode_kept, restore_stale

# As boards print it: with a warning about the fan, with the fan's mode, plain.
PRINTED = {
    "NVPM WARN: fan mode is not set to cool\nNV Power Mode: MAXN\n0\n": PowerMode(0, "MAXN"),
    "NV Fan Mode:quiet\nNV Power Mode: MODE_30W\n2\n": PowerMode(2, "MODE_30W"),
    "NV Power Mode: 15W\n0": PowerMode(0, "15W"),
}


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModeBoard:
    """In mode 2."""
    board = mode_board(tmp_path, 2)
    monkeypatch.setenv("PATH", f"{board.path}:{os.environ['PATH']}")
    return board


def printing(folder: Path, text: str) -> NvpModel:
    """A program that prints a text, whatever it is asked."""
    (folder / "said").write_text(text)
    return NvpModel(("sh", "-c", f"cat {folder}/said"))


@pytest.mark.parametrize("text", PRINTED)
def test_mode_is_read_from_what_boards_print(tmp_path: Path, text: str) -> None:
    assert printing(tmp_path, text).query() == PRINTED[text]


def test_answer_without_a_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnergyError, match=r"^nvpmodel -q: expected a power mode and its number, found 'NVPM ERROR"):
        printing(tmp_path, "NVPM ERROR: no config file\n").query()


def test_machine_without_nvpmodel_says_where_to_sweep() -> None:
    with pytest.raises(EnergyError, match=r"^no-nvpmodel: expected a Jetson's nvpmodel, cannot be started .*itself$"):
        NvpModel(("no-nvpmodel",)).query()


def test_mode_is_set_and_set_back(board: ModeBoard) -> None:
    state = board.folder / "state"
    with mode_kept(NvpModel(), state) as found:
        assert found == PowerMode(2, "SIMULATED_2")
        assert NvpModel().set(0) == PowerMode(0, "SIMULATED_0")
        assert json.loads((state / STATE_FILE).read_text())["number"] == 2
    assert board.mode == 2
    assert not (state / STATE_FILE).exists()


def test_mode_that_needs_a_reboot_is_declined_and_named(board: ModeBoard) -> None:
    with pytest.raises(RebootError, match=r"^power mode 3 needs a reboot, which is declined: "):
        NvpModel().set(3)
    assert not board.has_rebooted
    assert board.mode == 2


def test_mode_that_is_not_set_tells_what_nvpmodel_said(board: ModeBoard) -> None:
    with pytest.raises(EnergyError, match=r"expected mode 9, found SIMULATED_2 \(mode 2\), it said 'NVPM ERROR"):
        NvpModel().set(9)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, EnergyError, SystemExit])
def test_mode_comes_back_however_the_sweep_ends(board: ModeBoard, ending: type[BaseException]) -> None:

    def sweep() -> None:
        with mode_kept(NvpModel(), board.folder / "state"):
            NvpModel().set(1)
            raise ending("ended")

    with pytest.raises(ending):
        sweep()
    assert board.mode == 2


def test_mode_is_set_again_even_if_it_is_the_mode_of_now(board: ModeBoard) -> None:
    """A mode that was declined may be written down for the next start."""
    with mode_kept(NvpModel(), board.folder / "state"), pytest.raises(RebootError):
        NvpModel().set(3)
    assert board.calls[-2:] == ["-m 2", "-q"]


def test_two_sweeps_do_not_run_at_once(board: ModeBoard) -> None:
    with (
        mode_kept(NvpModel(), board.folder / "state"),
        pytest.raises(EnergyError, match="another program sweeps power modes"),
        mode_kept(NvpModel(), board.folder / "state"),
    ):
        pass
    assert board.mode == 2


def test_mode_that_cannot_be_set_back_keeps_its_state_and_says_so(board: ModeBoard) -> None:
    state = board.folder / "state"

    def sweep() -> None:
        with mode_kept(NvpModel(), state):
            NvpModel().set(1)
            (board.path / "nvpmodel").write_text("#!/bin/sh\necho NVPM ERROR: broken\n")

    with pytest.raises(EnergyError, match="power mode 2, in which the sweep found the board, is not set again: "):
        sweep()
    assert (state / STATE_FILE).exists()


def end_by(board: ModeBoard, number: signal.Signals) -> int:
    """Have a process change the mode, and end it by a signal while it does."""
    code = (
        "import signal, time; from pathlib import Path\n"
        "from devit_profiling.sweep.nvpmodel import NvpModel, mode_kept\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        f"with mode_kept(NvpModel(), Path({str(board.folder / 'state')!r})):\n"
        "    NvpModel().set(0); print('set', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"set\n"
        assert board.mode == 0
        child.send_signal(number)
        return child.wait(30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_mode_comes_back_after_a_signal(board: ModeBoard, number: signal.Signals) -> None:
    assert end_by(board, number) != 0
    assert board.mode == 2


def test_mode_comes_back_at_the_start_after_a_kill(board: ModeBoard) -> None:
    state = board.folder / "state"
    assert end_by(board, signal.SIGKILL) == -signal.SIGKILL
    assert board.mode == 0
    note = restore_stale(NvpModel(), state)
    assert note == "SIMULATED_2 (mode 2), which a killed sweep had changed, is set again"
    assert board.mode == 2
    assert restore_stale(NvpModel(), state) == ""


def test_next_sweep_after_a_kill_keeps_the_mode_that_the_first_one_found(board: ModeBoard) -> None:
    end_by(board, signal.SIGKILL)
    with mode_kept(NvpModel(), board.folder / "state") as found:
        assert found.number == 2
    assert board.mode == 2


def test_damaged_state_says_what_to_do(board: ModeBoard) -> None:
    state = board.folder / "state"
    state.mkdir()
    (state / STATE_FILE).write_text("{}")
    with pytest.raises(DevitError, match="set the mode by hand with nvpmodel -m, and remove"):
        restore_stale(NvpModel(), state)
