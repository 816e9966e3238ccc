"""SIMULATED ``systemctl``: what Ansible's ``systemd_service`` asks of systemd, on a machine where systemd does not run.

It reads the real units in ``/etc/systemd/system``, runs their ``ExecStart`` with a real ``NOTIFY_SOCKET``, and waits
for READY=1 as ``Type=notify`` does; stopping is SIGTERM, then SIGKILL. What it leaves out: sandbox, users, credentials,
watchdog, automatic restarts, and everything that starts at boot but ``boot`` itself, which starts what is enabled.

Python's standard library alone; it is run by a shell script of that name on the PATH of a test host.
"""

from __future__ import annotations

import configparser
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path("/etc/systemd/system")
STATE = Path("/run/simulated-systemd")
READY_DEADLINE_S = 60.0
STOP_DEADLINE_S = 10.0


def unit_file(unit: str) -> Path | None:
    name = unit.removesuffix(".service")
    template, at, _ = name.partition("@")
    path = UNITS / f"{template}{at}.service"
    return path if path.exists() else None


def main_pid(unit: str) -> int:
    """Process id of a unit that runs; 0 where it does not."""
    path = STATE / f"{unit}.pid"
    pid = int(path.read_text()) if path.exists() else 0
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return 0
    return 0 if state == "Z" else pid


def start(unit: str) -> int:
    """Start a unit and wait until it says READY=1."""
    path = unit_file(unit)
    if path is None:
        return fail(f"Unit {unit} not found.")
    if main_pid(unit):
        return 0
    config = configparser.RawConfigParser(strict=False)
    config.optionxform = str  # type: ignore[assignment,method-assign]
    config.read(path)
    instance = unit.removesuffix(".service").partition("@")[2]
    command = shlex.split(config["Service"]["ExecStart"].replace("%i", instance))
    STATE.mkdir(parents=True, exist_ok=True)
    address = STATE / f"{unit}.notify"
    address.unlink(missing_ok=True)
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/root", "NOTIFY_SOCKET": str(address), "OMP_NUM_THREADS": "1"}
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
        (STATE / f"{unit}.log").open("ab") as log,
    ):
        notified.bind(str(address))
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        (STATE / f"{unit}.pid").write_text(f"{child.pid}")
        record("start", unit)
        return wait_ready(unit, notified, child)


def wait_ready(unit: str, notified: socket.socket, child: subprocess.Popen[bytes]) -> int:
    notified.settimeout(0.1)
    end_s = time.monotonic() + READY_DEADLINE_S
    while time.monotonic() < end_s:
        try:
            if "READY=1" in notified.recv(4096).decode().splitlines():
                return 0
        except TimeoutError:
            if child.poll() is not None:
                return fail(f"Job for {unit} failed because the process exited with status {child.returncode}.")
    stop(unit)
    return fail(f"Job for {unit} failed because a timeout was exceeded.")


def stop(unit: str) -> int:
    record("stop", unit)
    for signum in (signal.SIGTERM, signal.SIGKILL):
        end_s = time.monotonic() + STOP_DEADLINE_S
        if pid := main_pid(unit):
            os.kill(pid, signum)
        while main_pid(unit) and time.monotonic() < end_s:
            time.sleep(0.01)  # it is nobody's child: there is nothing to wait for
    return 0


def show(unit: str) -> int:
    state = "active" if main_pid(unit) else "inactive"
    say(f"LoadState={'loaded' if unit_file(unit) else 'not-found'}\nActiveState={state}\nDescription=SIMULATED")
    return 0


def is_enabled(unit: str) -> int:
    enabled = (STATE / f"{unit}.enabled").exists()
    say("enabled" if enabled else "disabled")
    return 0 if enabled else 1


def enable(unit: str) -> int:
    STATE.mkdir(parents=True, exist_ok=True)
    (STATE / f"{unit}.enabled").touch()
    return 0


def boot() -> int:
    """Start what is enabled, as a device does that gets its power back."""
    return max((start(path.name.removesuffix(".enabled")) for path in STATE.glob("*.enabled")), default=0)


def record(action: str, unit: str) -> None:
    with (STATE / "actions").open("a") as actions:
        actions.write(f"{action} {unit}\n")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def fail(text: str) -> int:
    sys.stderr.write(f"SIMULATED systemctl: {text}\n")
    return 1


def main(words: list[str]) -> int:
    action, *units = [word for word in words if not word.startswith("-")]
    if action == "daemon-reload":
        return 0
    if action == "boot":
        return boot()
    if action == "restart":
        return stop(units[0]) or start(units[0])
    actions = {"start": start, "stop": stop, "show": show, "is-enabled": is_enabled, "enable": enable}
    if action not in actions:
        return fail(f"{action}: not simulated")
    return actions[action](units[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
