"""Reads and sets a Jetson's power mode by ``nvpmodel``, and restores it however the program ends.

The mode is written to a file before it is changed, in a folder that outlives a reboot, as the mode does. The file is
removed when the mode is restored; after a kill, the next start finds the file.

``nvpmodel`` asks before modes that only a reboot can bring, "DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm".
It is always told no.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import exclusive_lock, make_folder, read_json, remove_file, write_json
from devit_contract.errors import DevitError, EnergyError
from devit_contract.machine import PowerMode

STATE_FILE = "power-mode.json"
STATE_FOLDER = Path("/var/lib/devit")
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end a sweep, after the mode is restored."""
_BUSY = "another program sweeps power modes: wait for its end"
# Of L4T 32 to 38: "NV Power Mode: MAXN", then the number on a line of its own; warnings and the fan's mode may stand
# around them.
_MODE = re.compile(r"NV Power Mode\s*:\s*(?P<name>\S+)\s*\n\s*(?P<number>\d+)\s*$", re.MULTILINE)
_REBOOT = re.compile(r"reboot required|want to reboot", re.IGNORECASE)
_TIMEOUT_S = 60.0


class RebootError(EnergyError):
    """A mode that only a reboot can bring."""


class ModeState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state file: what to restore."""

    schema: int
    number: int
    """Number of the mode before the sweep."""


class NvpModel:
    """The program; a stand-in is found on the PATH like the real one."""

    def __init__(self, command: Sequence[str] = ("nvpmodel",)) -> None:
        """Keep what to run."""
        self._command = tuple(command)

    def query(self) -> PowerMode:
        """Ask for the present mode.

        Raises:
            EnergyError: The program is missing, or tells none.
        """
        text = self._run("-q")
        match = _MODE.search(text)
        if match is None:
            raise EnergyError(f"nvpmodel -q: expected a power mode and its number, found {_last(text)}: run it by hand")
        return PowerMode(int(match["number"]), match["name"])

    def set(self, number: int) -> PowerMode:
        """Set a mode, and make sure that it is set.

        Raises:
            RebootError: It needs a reboot, which was declined.
            EnergyError: It is not set.
        """
        text = self._run("-m", str(number))
        found = self.query()
        if found.number == number:
            return found
        if _REBOOT.search(text):
            raise RebootError(
                f"power mode {number} needs a reboot, which is declined: set it by hand with nvpmodel -m {number}, "
                "reboot, and sweep it alone"
            )
        raise EnergyError(
            f"nvpmodel -m {number}: expected mode {number}, found {found}, it said {_last(text)}: run as root, with "
            "numbers of /etc/nvpmodel.conf"
        )

    def _run(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                input=b"NO\n",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_TIMEOUT_S,
                start_new_session=True,  # Ctrl-C reaches this process, which then restores the mode
                check=False,
            )
        except OSError as err:
            raise EnergyError(
                f"{self._command[0]}: expected a Jetson's nvpmodel, cannot be started ({err.strerror}): sweep on the "
                "device itself"
            ) from err
        except subprocess.TimeoutExpired as err:
            raise EnergyError(
                f"nvpmodel {' '.join(arguments)}: expected an end within {_TIMEOUT_S:.0f} s, found none: run it by hand"
            ) from err
        return done.stdout.decode("utf-8", "replace")


@contextmanager
def mode_kept(nvpmodel: NvpModel, folder: Path) -> Iterator[PowerMode]:
    """Let the block change the mode; restore it at the end.

    Yields:
        The mode before the block.

    Raises:
        EnergyError: The mode is not told, cannot be restored, or another sweep is running.
        InputError: The state cannot be written.
    """
    make_folder(folder)
    with exclusive_lock(folder, busy=EnergyError(f"{folder}: {_BUSY}")):
        _restore(nvpmodel, folder)
        found = nvpmodel.query()
        write_json(folder / STATE_FILE, ModeState(1, found.number))
        try:
            yield found
        finally:
            # Blocked, they wait: none ends the process before the mode is restored.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
            try:
                _restore(nvpmodel, folder)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def restore_stale(nvpmodel: NvpModel, folder: Path) -> str:
    """Restore the mode that a killed program has left.

    Returns:
        What was done, in one sentence; empty where there was nothing to do.

    Raises:
        DevitError: It cannot be restored; the state file stays.
    """
    if not (folder / STATE_FILE).exists():
        return ""
    with exclusive_lock(folder, busy=EnergyError(f"{folder}: {_BUSY}")):
        found = _restore(nvpmodel, folder)
    return f"{found}, which a killed sweep had changed, is set again" if found is not None else ""


def _restore(nvpmodel: NvpModel, folder: Path) -> PowerMode | None:
    """Set what the state file says, and remove it; ``None`` where there is no file."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    number = read_json(
        path, ModeState, schema=1, hint=f"set the mode by hand with nvpmodel -m, and remove {path}"
    ).number
    try:
        # Even where it is the present mode: a mode that was declined may be written down for the next start.
        found = nvpmodel.set(number)
    except DevitError as err:
        raise type(err)(f"power mode {number}, in which the sweep found the board, is not set again: {err}") from err
    remove_file(path)
    return found


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return repr(lines[-1][:200]) if lines else "nothing"
