"""One version's programs, started one by one on request: runs in that version's Python, and imports nothing of ours.

Standard input has a program's name a line, ``agent``, or ``imports agent``; each is answered by a line of JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from devit_pipeline.local_cell import LocalCell, LocalDevice

SCRIPTS = Path(sys.executable).parent
MEASURED, HELPER = "device0", "device1"
FRAMES = 20
"""That an agent answers before its memory is read."""
SERVICES = ("agent", "node", "gateway")
_IMPORT = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s*([\w]+)", re.MULTILINE)


def main(bundle: Path, place: Path) -> None:
    """Serve requests until standard input ends."""
    place.mkdir()
    store = place / "store"
    build = [SCRIPTS / "devit", "build", bundle, "--submodels", "0,1", "--store", store]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with LocalCell(bundle, place / "cell", [LocalDevice(MEASURED, 0), LocalDevice(HELPER, 1)], store=store) as cell:
        cell.kill(MEASURED)  # which is started anew each time; the other one answers clients
        picture = place / "black.png"
        _write_picture(picture)
        commands = _commands(cell, bundle, store, picture)
        print("ready", flush=True)  # noqa: T201 - the protocol
        for line in sys.stdin:
            *mode, program = line.split()
            found = _imports(commands[program], program) if mode else _measured(commands[program], program, cell)
            print(json.dumps(found), flush=True)  # noqa: T201 - the protocol


def _commands(cell: LocalCell, bundle: Path, store: Path, picture: Path) -> dict[str, list[str]]:
    """Give each program's script and arguments."""
    free = cell.folder / "free.toml"
    free.write_text(re.sub(r"(tcp://127\.0\.0\.1:)\d+", r"\g<1>0", cell.fleet_path.read_text()))
    keys = cell.folder / "keys"
    client = ["--fleet", cell.fleet_path, "--key", cell.client_key_path]
    commands = {
        "agent": ["edge-agent", "--config", cell.folder / f"{MEASURED}.toml"],
        "node": ["fusion-node", "--bundle", bundle, "--fleet", free, "--key", keys / "node.key_secret"],
        "gateway": ["devit", "gateway", *client, "--http", "127.0.0.1:0"],
        "client": ["devit", "classify", picture, *client, "--json"],
        "build": ["devit", "build", bundle, "--submodels", "0", "--store", store],
    }
    return {name: [str(SCRIPTS / words[0]), *map(str, words[1:])] for name, words in commands.items()}


def _measured(command: list[str], program: str, cell: LocalCell) -> dict[str, float]:
    """Start a program; a service is stopped once it is ready and its memory is read."""
    start_s = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    found: dict[str, float] = {}
    if program in SERVICES:
        if not child.stdout.readline():
            raise SystemExit(f"{' '.join(command)} ended before it was ready: run it by hand")
        found = {"start_s": time.monotonic() - start_s, "cpu_s": _cpu_s(child.pid)}
        if program == "agent":
            _ask(cell)
        found |= _memory_mb(child.pid)
        child.terminate()
    child.stdout.read()
    _, _, used = os.wait4(child.pid, 0)
    child.returncode = 0
    if program not in SERVICES:
        found = {"start_s": time.monotonic() - start_s, "cpu_s": used.ru_utime + used.ru_stime}
        found["rss_mb"] = used.ru_maxrss * 1024 / 1e6
    return found


def _imports(command: list[str], program: str) -> dict[str, float]:
    """Give the milliseconds that each package's modules took to import, without those that they import."""
    child = subprocess.Popen(
        [sys.executable, "-X", "importtime", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    if program in SERVICES:
        child.stdout.readline()
        child.terminate()
    _, said = child.communicate()
    taken_us: Counter[str] = Counter()
    for own_us, package in _IMPORT.findall(said):
        taken_us[package] += int(own_us)
    return {package: own_us / 1e3 for package, own_us in taken_us.most_common(10)}


def _ask(cell: LocalCell) -> None:
    with cell.client() as client:
        for _ in range(FRAMES):
            client.classify(np.zeros((28, 28, 1), np.uint8))


def _cpu_s(pid: int) -> float:
    """Time of all threads so far; sched_schedstats of the kernel counts nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _memory_mb(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return {f"{name.lower()}_mb": kib[name] * 1024 / 1e6 for name in ("Rss", "Pss", "Anonymous")}


def _write_picture(path: Path) -> None:
    from PIL import Image

    Image.new("L", (28, 28)).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
