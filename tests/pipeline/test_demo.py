"""The demo, run for real: its figures are held against the manifest's, and no process outlives it."""

from __future__ import annotations

import json
import math
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from devit_contract.artefacts.files import exclusive_lock
from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import InputError
from devit_contract.service.progress import no_progress
from devit_pipeline import demo, demo_cli

DEVIT = [sys.executable, "-c", "from devit_pipeline.cli import main; main()"]
EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def figures(tmp_path_factory: pytest.TempPathFactory, store: Path) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("demo")
    command = [*DEVIT, "demo", "--json", "--out", str(out), "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=230, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def three_standard_errors(share: float, count: int) -> float:
    return 3 * math.sqrt(share * (1 - share) / count)


def test_the_accuracies_measured_live_are_those_of_the_manifest(figures: dict[str, Any]) -> None:
    manifest = Bundle(demo.SHIPPED / "bundle").manifest
    stored = {subset.mask: subset.test_accuracy for subset in manifest.subsets}
    assert manifest.baseline_accuracy is not None
    pairs = [
        (figures["teacher_accuracy"], manifest.baseline_accuracy.test_accuracy),
        (figures["full_accuracy"], stored[0b1111]),
        (figures["partial_accuracy"], stored[figures["partial_mask"]]),
    ]
    for live, expected in pairs:
        assert abs(live - expected) <= three_standard_errors(expected, figures["images"] * 0.9)


def test_every_frame_is_answered_though_an_agent_is_killed(figures: dict[str, Any]) -> None:
    assert figures["images"] == 1000
    assert sum(figures["answers"].values()) == 2000
    assert set(figures["answers"]) == {"full", "partial"}
    assert figures["answers"]["partial"] >= 900
    assert figures["partial_mask"] == 0b1011


def test_the_cell_goes_on_at_full_rate_without_the_killed_agent(figures: dict[str, Any]) -> None:
    """A quarter is enough, as other programs come and go; frames that wait for their deadline would be a hundredth."""
    assert figures["partial_frames_per_s"] >= 0.25 * figures["frames_per_s"]


def test_energy_is_measured_and_says_that_it_is_simulated(figures: dict[str, Any]) -> None:
    assert figures["energy_note"] == "SIMULATED"
    assert set(figures["joules_per_answer"]) == {"jetson1", "jetson2"}
    assert all(0.001 < joules < 10 for joules in figures["joules_per_answer"].values())
    page = Path(figures["report"]).read_text()
    assert "SIMULATED" in page
    assert "quick look" in page.lower()


def test_bytes_per_answer_are_those_of_the_messages(figures: dict[str, Any]) -> None:
    """Four times a header of 104 bytes with 784 pixels down, and one with 64 float32 up."""
    assert figures["wire_bytes_per_answer"] == pytest.approx(4 * (104 + 784 + 104 + 4 * 64), rel=0.01)


def wait_for_end(pidfd: int, deadline_s: float = 30) -> None:
    """Wait until a process, child or not, has ended."""
    ended, _, _ = select.select([pidfd], [], [], deadline_s)
    os.close(pidfd)
    assert ended, f"still running after {deadline_s} s"


def serve(store: Path, out: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    child = subprocess.Popen(
        [*DEVIT, "demo", "--serve", "--http", "127.0.0.1:0", "--port", "0", "--store", str(store), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    line = child.stdout.readline()
    assert line, child.stderr.read()
    addresses: dict[str, Any] = json.loads(line)
    addresses["pidfds"] = [os.pidfd_open(pid) for pid in addresses["pids"].values()]
    return child, addresses


def finish(child: subprocess.Popen[str], addresses: dict[str, Any]) -> None:
    """Wait until the demo and every process of its cell have ended."""
    try:
        child.communicate(timeout=30)
        for pidfd in addresses["pidfds"]:
            wait_for_end(pidfd)
    finally:
        child.kill()


@pytest.fixture(scope="module")
def killed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo that was killed outright; its processes ended all the same."""
    out = tmp_path_factory.mktemp("killed")
    child, addresses = serve(store, out)
    child.kill()
    finish(child, addresses)
    return out


def answer(*words: str, addresses: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    options = ["--fleet", addresses["fleet"], "--key", addresses["client_key"], "--json"]
    done = subprocess.run([*DEVIT, *words, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_cell_served_where_one_was_killed_answers_and_leaves_nothing(store: Path, killed: Path) -> None:
    child, addresses = serve(store, killed)
    try:
        results = answer("classify", str(EXAMPLES / "images"), addresses=addresses)
        assert [result["state"] for result in results] == ["full"] * 10
        names = ["".join(word for word in Path(result["image"]).stem.split("-")[:-1]) for result in results]
        right = [
            name[:4] == "".join(filter(str.isalpha, result["label"])).lower()[:4]
            for name, result in zip(names, results, strict=True)
        ]
        assert sum(right) >= 8, results
        devices = answer("status", addresses=addresses)["devices"]
        assert [(device["name"], device["state"]) for device in devices] == [
            (f"jetson{number}", "ready") for number in (1, 2, 3, 4)
        ]
        assert load_fleet(Path(addresses["fleet"])).has_keys
        with urllib.request.urlopen(addresses["http"] + "/readyz", timeout=30) as ready:
            assert ready.status == 200
        with urllib.request.urlopen(addresses["http"] + "/metrics", timeout=30) as metrics:
            assert b'devit_frames_total{outcome="full"} 10.0' in metrics.read()
    finally:
        child.send_signal(signal.SIGTERM)
        finish(child, addresses)
    assert not Path(addresses["fleet"]).exists()
    assert {path.name for path in (killed / "cell").iterdir()} == {".devit-demo", "logs"}
    assert len(list((killed / "cell/logs").iterdir())) == 6


def read_until(terminal: int, text: str) -> str:
    """What a terminal shows until then."""
    shown = ""
    while text not in shown:
        assert select.select([terminal], [], [], 60)[0], shown
        shown += os.read(terminal, 4096).decode()
    return shown


def test_at_a_terminal_the_bars_end_and_commands_to_paste_follow(store: Path, tmp_path: Path) -> None:
    terminal, other_side = pty.openpty()
    options = ["--port", "0", "--store", str(store), "--out", str(tmp_path)]
    child = subprocess.Popen([*DEVIT, "demo", "--serve", *options], stdout=other_side, stderr=other_side)
    os.close(other_side)
    try:
        shown = read_until(terminal, "add --http\r\n")
        assert '"endpoint"' not in shown  # that is for programs
        assert not select.select([terminal], [], [], 0.5)[0], "the bars still move"
        (pasted,) = (line for line in shown.splitlines() if " status --fleet " in line)
        done = subprocess.run(pasted, shell=True, cwd="/", capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert "jetson4" in done.stdout
        child.send_signal(signal.SIGINT)
        assert f"the logs stay in {tmp_path}/cell/logs" in read_until(terminal, "logs\r\n")
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()
        os.close(terminal)
    assert (tmp_path / "cell/logs/jetson1.log").exists()


def test_a_start_that_fails_shows_the_end_of_the_log_which_stays(store: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [*DEVIT, "demo", "--serve", "--port", port, "--store", str(store), "--out", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: node: ended with exit code 1 before it was ready; its log ends: ")
    assert f"tcp://127.0.0.1:{port}: expected a free address" in said
    assert f"({tmp_path}/cell/logs/node.log)" in said
    assert (tmp_path / "cell/logs/node.log").exists()


def test_http_without_an_address_has_the_usual_one() -> None:
    import typer.main

    command = typer.main.get_command(demo_cli.app)
    for words, address in (
        (["--serve", "--http"], "127.0.0.1:8080"),
        (["--http", "--serve"], "127.0.0.1:8080"),
        (["--http", "127.0.0.1:0", "--serve"], "127.0.0.1:0"),
        (["--serve"], ""),
    ):
        assert command.make_context("demo", words).params["http"] == address


def test_two_demos_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is built or started here: the folder is locked first."""
    monkeypatch.setattr(demo, "_build", lambda *_: [])
    monkeypatch.setattr(demo, "_cell", lambda *_: nullcontext())
    folder = tmp_path / "cell"
    with demo.demo_cell(demo.SHIPPED / "bundle", folder, no_progress):
        with (
            pytest.raises(InputError, match="another demo is running there"),
            demo.demo_cell(demo.SHIPPED / "bundle", folder, no_progress),
        ):
            pass
        assert folder.exists()
        with exclusive_lock(folder, busy=InputError("devit keys revoke would wait as long as the demo runs")):
            pass
    assert not folder.exists()


def test_ctrl_c_in_the_middle_of_the_demo_leaves_no_process_behind(store: Path, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [*DEVIT, "demo", "--out", str(tmp_path / "out"), "--store", str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert child.stderr is not None
    assert any(line.startswith("start: done") for line in child.stderr)
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    pidfds = [os.pidfd_open(int(pid)) for pid in children]
    child.send_signal(signal.SIGINT)
    try:
        _, said = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 130, said
    assert len(pidfds) == 5
    for pidfd in pidfds:
        wait_for_end(pidfd, deadline_s=10)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("devit-demo")] == []


def test_a_bundle_for_other_images_is_refused_in_one_line(tmp_path: Path) -> None:
    tiny = Path(__file__).parents[1] / "data" / "tiny-bundle"
    done = subprocess.run(
        [*DEVIT, "demo", "--bundle", str(tiny), "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "expected a bundle for the demo's images (28, 28, 1), found one for (6, 8, 1)" in done.stderr
    assert list(tmp_path.iterdir()) == []
