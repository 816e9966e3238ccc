"""``devit classify`` and ``status`` as a user types them: data on stdout, one line per failure on stderr."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tests.support.cell import TINY, MakeCell, tiny_devices

from devit_contract.artefacts.keys import new_keys
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.cli import _device_row, _images_line, _over_current_line, _promise_line, _shed_line, _slow_line
from devit_contract.machine import OverCurrentEvents, Throttling
from devit_contract.wire.status import ClientStatus, DeviceStatus, NodeStatus, PromiseStatus
from devit_contract.wire.words import DeviceState, ShedReason, Slowdown
from devit_pipeline.local_cell import LocalCell

DEVIT = [sys.executable, "-c", "from devit_pipeline.cli import main; main()"]


def devit(*arguments: str | Path, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [*DEVIT, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """Check that a command failed as it should, and give its one line."""
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two pictures, and one file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((6, 8), np.uint8)).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def cut_jpeg() -> bytes:
    """The first half of a picture, as a full disk or a broken copy leaves it."""
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole, "jpeg")
    return whole.getvalue()[: len(whole.getvalue()) // 2]


@pytest.fixture
def options(cell: LocalCell) -> list[str | Path]:
    return ["--fleet", cell.fleet_path, "--key", cell.client_key_path]


@pytest.fixture(scope="module", autouse=True)
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A question to a node that is not there; it takes its ten seconds while the other tests run."""
    command = [*DEVIT, "status", "--to", "tcp://127.0.0.1:1"]
    folder = tmp_path_factory.mktemp("nobody")
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        yield asking
        asking.kill()


def test_pictures_of_a_folder_are_classified_as_json(
    cell: LocalCell, options: list[str | Path], pictures: Path
) -> None:
    done = devit("classify", pictures, *options, "--json", cwd=pictures)
    assert (done.returncode, done.stderr) == (0, "")
    answers = json.loads(done.stdout)
    assert [answer["image"] for answer in answers] == [str(pictures / "a.png"), str(pictures / "b.png")]
    for answer in answers:
        assert (answer["state"], answer["mask"]) == ("full", 3)
        assert answer["label"] in ("up", "down", "left", "right")
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert set(answer["devices"]) == {"0", "1"}


def test_names_of_pictures_come_from_standard_input(options: list[str | Path], pictures: Path) -> None:
    done = devit("classify", "-", *options, cwd=pictures, stdin="a.png\n\nb.png\n")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if ".png" in line] == ["a.png", "b.png"]


def test_standard_input_without_a_name_is_said_in_one_line(options: list[str | Path], tmp_path: Path) -> None:
    for stdin in ("", "\n \n"):
        said = failure(devit("classify", "-", *options, cwd=tmp_path, stdin=stdin))
        assert "-: no names of pictures on standard input: write one a line" in said


def test_a_pattern_that_no_shell_has_opened_names_pictures(options: list[str | Path], pictures: Path) -> None:
    done = devit("classify", "[a-z].png", *options, "--json", cwd=pictures)
    assert [row["image"] for row in json.loads(done.stdout)] == ["a.png", "b.png"]
    assert "no*.png: no pictures match this pattern" in failure(devit("classify", "no*.png", *options, cwd=pictures))


def test_images_without_an_answer_are_shown_and_end_with_exit_code_1(options: list[str | Path], tmp_path: Path) -> None:
    """These devices have no cameras of their own."""
    done = devit("classify", "--own", "3", *options, "--json", cwd=tmp_path)
    assert done.returncode == 1
    rows = json.loads(done.stdout)
    assert [(row["state"], row["label"]) for row in rows] == [("failed", None)] * 3
    assert "3 of 3 images have no answer (jetson1: no_source, jetson2: no_source)" in done.stderr
    assert "give either pictures or --own COUNT" in failure(devit("classify", *options, cwd=tmp_path))


def test_a_policy_says_which_devices_are_asked(options: list[str | Path], pictures: Path) -> None:
    """This bundle does not say when an answer is certain."""
    done = devit("classify", "a.png", "--policy", "replica", *options, "--json", cwd=pictures)
    (row,) = json.loads(done.stdout)
    assert (row["state"], row["policy"], row["devices_asked"], row["score"]) == ("partial", "replica", 1, None)
    for policy, state in (("all", "full"), ("replica", "partial, 1")):
        table = devit("classify", "a.png", "--policy", policy, *options, cwd=pictures).stdout.splitlines()
        (shown,) = (line.split("%")[1].rsplit(maxsplit=1)[0].strip() for line in table if "a.png" in line)
        assert shown == state
    said = failure(devit("classify", "a.png", "--policy", "certain", *options, cwd=pictures))
    assert "policy certain: the bundle does not say when an answer is certain: make it again with devit export" in said
    assert "frames by devices asked: " in devit("status", *options, cwd=pictures).stdout


def test_the_node_and_the_keys_may_be_given_one_by_one(cell: LocalCell, pictures: Path) -> None:
    node = cell.fleet.node
    by_hand = ["--to", node.client_endpoint, "--node-key", node.public_key, "--key", str(cell.client_key_path)]
    assert devit("classify", "a.png", *by_hand, cwd=pictures).returncode == 0
    assert "give --key and --node-key together" in failure(devit("status", *by_hand[:4], cwd=pictures))


def test_status_is_a_table_for_people_and_json_for_programs(options: list[str | Path], tmp_path: Path) -> None:
    done = devit("status", *options, cwd=tmp_path)
    assert done.returncode == 0
    assert "tiny 1: deadline 1000 ms" in done.stdout
    assert [line.split()[:3] for line in done.stdout.splitlines() if " of 2 " in line] == [
        ["jetson1", "0", "ready"],
        ["jetson2", "1", "ready"],
    ]
    found = json.loads(devit("status", *options, "--json", cwd=tmp_path).stdout)
    assert [device["name"] for device in found["devices"]] == ["jetson1", "jetson2"]
    assert found["image_shape"] == [6, 8, 1]


def test_status_says_whether_the_promise_holds() -> None:
    kept = _promise_line(PromiseStatus(0.01, 0.95, audited=200, flipped=1, flip_rate_bound=0.0123))
    assert kept == "promise of 1.00% flips: kept; 1 of 200 audited answers flipped, 1.23% at most"
    assert "1.00% flips: BROKEN, so that all" in _promise_line(PromiseStatus(0.01, 0.95, is_broken=True))


def test_status_says_what_images_travel_as_and_what_that_takes() -> None:
    devices = (
        DeviceStatus("jetson1", 0, DeviceState.READY, image_us={"raw": 21_340, "jpeg": 4_100}),
        DeviceStatus("jetson2", 1, DeviceState.ABSENT),
    )
    status = NodeStatus("b 1", (), (1, 1, 1), Preprocess(1, 1, "gray"), {}, devices, 1, 50.0, {}, images="jpeg")
    chosen = msgspec.structs.replace(status, image_choice="auto")
    times = "ms from the node to the engine: jetson1 raw 21.3, jetson1 jpeg 4.1"
    assert _images_line(chosen) == f"images: jpeg now, as auto in fleet.toml; {times}"
    assert _images_line(msgspec.structs.replace(chosen, devices=())).endswith(": none yet")


def test_status_says_which_boards_slowed_themselves_down() -> None:
    devices = [
        DeviceStatus("jetson1", 0, DeviceState.READY, over_current=OverCurrentEvents(2, 0, 37)),
        DeviceStatus("jetson2", 1, DeviceState.READY, over_current=OverCurrentEvents()),
        DeviceStatus("jetson3", 2, DeviceState.ABSENT),
    ]
    told = "jetson1 2 under-voltage, 37 instantaneous over-current"
    assert _over_current_line(devices) == (
        f"over-current events since the agent's start: {told}: see devit doctor there"
    )
    assert _over_current_line(devices[1:]) == ""


def test_status_names_spares_and_what_they_are_if_they_are_not_ready() -> None:
    ready = DeviceStatus("jetson3", 1, DeviceState.READY, is_spare=True)
    absent = DeviceStatus("jetson3", 1, DeviceState.ABSENT, is_spare=True)
    assert [_device_row(device)[2] for device in (ready, absent)] == ["spare", "absent"]


def test_status_says_why_requests_were_not_served_and_devices_are_slow() -> None:
    counts = {ShedReason.QUEUE: 7, ShedReason.DEADLINE: 2}
    bulk = ClientStatus("bulk", shed=counts, weight=3, max_in_flight=64)
    told = "bulk was not served: 2 deadline, 7 queue; it has weight 3, 64 in flight in fleet.toml"
    assert _shed_line(bulk) == told
    assert _shed_line(ClientStatus("desk")) == ""
    slow = DeviceStatus("jetson1", 0, DeviceState.READY, slowdowns=(Slowdown.ALERT, Slowdown.LATENCY))
    begin = "jetson1 slows down, others are asked before it: throttle alert, latency"
    assert _slow_line(slow) == begin
    board = msgspec.structs.replace(slow, throttling=Throttling(2, 0.61, is_simulated=True))
    figures = "2 throttle alerts, clocks at 61% of the power mode's, SIMULATED"
    assert _slow_line(board) == f"{begin} ({figures})"


def test_status_shows_devices_whose_key_is_revoked_and_submodels_without_a_device(tmp_path: Path) -> None:
    with LocalCell(TINY, tmp_path / "cell", tiny_devices("null")[:1]) as cell:
        access = ["--fleet", str(cell.fleet_path), "--key", str(cell.client_key_path)]
        assert devit("keys", "revoke", "jetson1", "--fleet", cell.fleet_path, cwd=tmp_path).returncode == 0
        with cell.client() as client:
            end_s = time.monotonic() + 30
            while not client.status().devices[0].is_revoked:
                assert time.monotonic() < end_s
            assert client.status().without_device == (1,)
        lines = devit("status", *access, cwd=tmp_path).stdout.splitlines()
    assert [line.split()[:3] for line in lines if "jetson1 " in line and " of " in line] == [
        ["jetson1", "0", "revoked"]
    ]
    assert [line.split()[:4] for line in lines if "no device" in line] == [["-", "1", "no", "device"]]


def test_pictures_that_cannot_be_read_are_shown_among_the_others(options: list[str | Path], pictures: Path) -> None:
    (pictures / "ab.jpg").write_bytes(cut_jpeg())
    done = devit("classify", ".", "absent.png", "notes.txt", *options, "--json", cwd=pictures)
    rows = json.loads(done.stdout)
    assert [row["image"] for row in rows] == ["a.png", "ab.jpg", "b.png", "absent.png", "notes.txt"]
    states = [row["state"] for row in rows]
    assert [states[0], states[2]] == ["full", "full"]
    assert re.fullmatch(r"not read: expected a picture such as PNG or JPEG, found .*truncated.*", states[1])
    assert states[3] == "not read: cannot be read: No such file or directory"
    assert "no picture format that is known" in states[4]
    assert done.returncode == 1
    assert done.stderr.startswith("error: 3 of 5 pictures were not read (ab.jpg: expected a picture such as PNG")
    assert done.stderr.count("\n") == 1


def test_a_picture_that_cannot_be_read_is_a_row_that_says_why(options: list[str | Path], pictures: Path) -> None:
    (pictures / "b.png").write_bytes(cut_jpeg())
    done = devit("classify", pictures, *options, cwd=pictures)
    assert done.returncode == 1
    assert "a.png" in done.stdout
    words = " ".join(done.stdout.split())
    assert "full" in words
    assert "not read:" in words
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.system
def test_what_was_answered_before_the_node_was_lost_is_shown(make_cell: MakeCell, pictures: Path) -> None:
    """The ten seconds that the last request waits for its answer pass."""
    cell = make_cell(engine="paced:200")
    access = ["--fleet", str(cell.fleet_path), "--key", str(cell.client_key_path)]
    command = [*DEVIT, "classify", *["a.png"] * 100, *access, "--in-flight", "1", "--json"]
    with (
        subprocess.Popen(command, cwd=pictures, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking,
        cell.client() as client,
    ):
        end_s = time.monotonic() + 60
        while client.status().frames.get("full", 0) < 2:
            assert time.monotonic() < end_s
        cell.kill("node")
        out, said = asking.communicate(timeout=60)
    assert asking.returncode == 1
    assert {row["state"] for row in json.loads(out)} == {"full"}
    assert 2 <= len(json.loads(out)) < 100
    assert said.splitlines()[-1].startswith("error: ")


def test_a_picture_whose_name_is_not_utf_8_is_answered_under_its_escaped_name(
    options: list[str | Path], pictures: Path
) -> None:
    (pictures / "a.png").rename(Path(str(pictures) + "/M\udcfcller.png"))
    done = devit("classify", pictures, "--json", *options, cwd=pictures)
    assert [Path(each["image"]).name for each in json.loads(done.stdout)] == [r"M\xfcller.png", "b.png"]
    shown = devit("classify", ".", *options, cwd=pictures)
    assert shown.returncode == 0
    assert [line.split()[0] for line in shown.stdout.splitlines() if ".png" in line] == [r"M\xfcller.png", "b.png"]


def test_a_folder_without_pictures_is_named(options: list[str | Path], tmp_path: Path) -> None:
    assert f"{tmp_path}: no pictures (.png" in failure(devit("classify", tmp_path, *options, cwd=tmp_path))


@pytest.mark.system
def test_keys_that_do_not_open_are_said_in_one_line(cell: LocalCell, pictures: Path) -> None:
    new_keys(pictures, "stranger")
    stranger = pictures / "stranger.key_secret"
    fleet = ["--fleet", str(cell.fleet_path)]
    assert "the handshake failed" in failure(devit("status", *fleet, "--key", stranger, cwd=pictures))
    assert "expected a client key, found none" in failure(devit("status", *fleet, cwd=pictures))
    assert "absent: cannot be read" in failure(devit("status", *fleet, "--key", "absent", cwd=pictures))
    stranger.chmod(0o644)
    said = failure(devit("status", *fleet, "--key", stranger, cwd=pictures))
    assert f"expected mode 0600, found 0644: chmod 600 {stranger}" in said


def test_a_node_that_is_not_named_rightly_is_said_in_one_line(tmp_path: Path) -> None:
    assert "no node is given: give --to or --fleet" in failure(devit("status", cwd=tmp_path))
    assert "--to: expected an endpoint like tcp://10.0.0.2:7711" in failure(
        devit("status", "--to", "localhost", cwd=tmp_path)
    )
    assert "absent.toml: cannot be read" in failure(devit("status", "--fleet", "absent.toml", cwd=tmp_path))


def test_a_node_that_is_not_there_is_said_in_one_line(nobody: subprocess.Popen[str]) -> None:
    out, said = nobody.communicate(timeout=60)
    assert (nobody.returncode, out) == (1, "")
    why = "connection refused"
    assert said.splitlines() == [
        f"tcp://127.0.0.1:1: no link to the node, {why}: check that fusion-node runs there; trying again",
        f"error: tcp://127.0.0.1:1: no answer within 10 s ({why}): check that fusion-node runs there",
    ]
