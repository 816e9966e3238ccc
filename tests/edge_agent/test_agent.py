"""The agent as a process of its own, against a node that the test speaks by hand, or against a real one."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tests.edge_agent.hand_made_node import RUN, RUN_ID, TINY, HandMadeNode
from tests.engines.changes import plant
from tests.engines.int8 import with_int8
from tests.profiling.sysfs_tree import orin_nano
from tests.support.gone import assert_gone
from tests.support.starvation import within

from devit_contract.artefacts.manifest import Bundle
from devit_contract.artefacts.preprocess import encode_image
from devit_contract.artefacts.signing import MEMORY_NAME, accept_serial, sign_manifest, signer_line
from devit_contract.choices import ImageCoding
from devit_contract.wire.codec import Dtype, Kind, Message, Reason, array_payload
from devit_contract.wire.messages import Control, ControlReply, Hello, PowerLine, Refused, Telemetry, body, read_body
from devit_contract.wire.words import Question
from devit_engines.building import prefer
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store

LOST = """
from devit_contract.errors import DeviceLostError
from devit_engines.null import NullEngine
answer, runs = NullEngine._run, []
def lose(self, images):
    runs.append(1)
    if len(runs) > 5:  # three to warm up, two frames
        raise DeviceLostError("cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS (700): start the program again")
    return answer(self, images)
NullEngine._run = lose
"""
WRONG = """
from devit_engines.ort import OrtEngine
answer = OrtEngine._run
OrtEngine._run = lambda self, images: answer(self, 255 - images)
"""
HANGING = """
import sys, threading
from devit_engines.null import NullEngine
answer, runs = NullEngine._run, []
def hang(self, images):
    runs.append(1)
    if len(runs) > 5:  # three to warm up, two frames
        print("the engine hangs", file=sys.stderr, flush=True)
        threading.Event().wait()
    return answer(self, images)
NullEngine._run = hang
"""
FAILING = LOST.replace("DeviceLostError(", "EngineError(").replace("DeviceLostError", "EngineError")
STRANGE = """
import numpy as np
from devit_engines.null import NullEngine
answer = NullEngine._run
def bend(self, images):
    numbers = answer(self, images)
    numbers[:, -1] = {255: np.nan, 128: np.inf, 64: 1e5}.get(int(images.max()), 1.0)
    return numbers
NullEngine._run = bend
"""

MEAN = """
from devit_engines.null import NullEngine
answer = NullEngine._run
NullEngine._run = lambda self, images: answer(self, images) + images.mean(dtype="f4")
"""


def test_an_agent_runs_the_variant_that_was_chosen_by_measure_after_a_plain_build_too(
    node: HandMadeNode, tmp_path: Path
) -> None:
    """Without the choice it would run fp32."""
    bundle = with_int8(Bundle(Path(shutil.copytree(TINY, tmp_path / "bundle"))), [0])
    store = Store(tmp_path / "store")
    choose_int8(bundle, store)
    build_engines(bundle, store, submodels=[0])
    node.store = store.folder
    node.start(bundle=bundle.folder)
    hello = read_body(node.welcome(), Hello)
    assert hello.engine.endswith(", int8")
    assert hello.model_sha256 == bundle.manifest.file("submodel", device=0, variant="int8").sha256


def test_an_agent_says_that_the_chosen_engine_is_gone_and_serves_another(node: HandMadeNode, tmp_path: Path) -> None:
    bundle = with_int8(Bundle(Path(shutil.copytree(TINY, tmp_path / "bundle"))), [0])
    store = Store(tmp_path / "store")
    store.remove(choose_int8(bundle, store))
    node.store = store.folder
    child = node.start(bundle=bundle.folder)
    assert read_body(node.welcome(), Hello).engine.endswith(", fp32")
    assert child.stderr is not None
    assert (
        "int8 was chosen for latency, but its engine is missing, damaged or not validated: run devit build"
        in child.stderr.readline()
    )


def choose_int8(bundle: Bundle, store: Store) -> str:
    """Build both variants of submodel 0, and let int8 win whatever this machine says; gives its digest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefer, "best_of", lambda _prefer, passed: (passed[0], {}))
        (built,) = build_engines(bundle, store, submodels=[0], prefer="latency")
    assert built.record.key.variant == "int8"
    return built.digest


def test_an_agent_that_cannot_reach_its_node_says_why(node: HandMadeNode) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        node.endpoint = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        child = node.start("--engine", "null")
        assert child.stderr is not None
        said = child.stderr.readline()
    why = "no link to the node, connection refused: check that fusion-node runs there; trying again"
    assert said == f"edge-agent: {node.endpoint}: {why}\n"


def test_an_agent_lives_though_no_picture_of_its_folder_can_be_read_or_named_in_utf_8(
    node: HandMadeNode, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    Path(f"{tmp_path}/bad/M\udcfcller.png").write_bytes(b"no picture")
    child = node.start("--engine", "null", config='source = "folder:bad"\ntegrastats = []')
    node.welcome()
    node.send(Message(Kind.TRIGGER, run_id=RUN_ID, frame_id=1))
    assert node.receive(Kind.SKIP).reason is Reason.NO_SOURCE
    node.send(Message(Kind.TRIGGER, run_id=RUN_ID, frame_id=2))
    assert node.receive(Kind.SKIP).frame_id == 2
    assert child.stderr is not None
    said = child.stderr.readline() + child.stderr.readline()
    assert r"/bad/M\xfcller.png: expected a picture" in said


def test_an_agent_introduces_itself_and_says_ready_only_when_it_is_accepted(node: HandMadeNode, bundle: Bundle) -> None:
    child = node.start()
    assert child.stdout is not None
    hello = node.receive(Kind.HELLO)
    assert select.select([child.stdout], [], [], 0)[0] == []
    content = read_body(hello, Hello)
    assert (content.name, content.submodel, content.feature_dim) == ("jetson1", 0, 6)
    assert content.model_sha256 == bundle.manifest.file("submodel", device=0, variant="fp32").sha256
    assert hello.boot_id != 0
    assert hello.engine_revision != 0
    node.accept(hello)
    assert json.loads(child.stdout.readline())["ready"] is True


def test_a_feature_is_the_golden_one_and_tells_what_it_cost(node: HandMadeNode, bundle: Bundle) -> None:
    golden = bundle.golden()
    node.start()
    hello = node.welcome()
    node.send(node.frame(golden["images"][3], number=42))
    feature = node.receive(Kind.FEATURE)
    np.testing.assert_allclose(feature.array(), golden["features.0"][3], atol=1e-5)
    assert (feature.frame_id, feature.run_id, feature.dispatch_ns) == (42, RUN_ID, 5)
    assert (feature.boot_id, feature.engine_revision) == (hello.boot_id, hello.engine_revision)
    assert feature.inference_us > 0


def test_work_whose_deadline_has_passed_is_skipped_before_the_engine(node: HandMadeNode, bundle: Bundle) -> None:
    """Three frames come at once for an engine of 100 ms, each with 50 ms: the first is worked on, the others not."""
    image = bundle.golden()["images"][0]
    node.start("--engine", "paced:100")
    node.welcome()
    for number in (1, 2, 3):
        node.send(node.frame(image, number, deadline_us=50_000))
    found = [node.receive(Kind.FEATURE, Kind.SKIP) for _ in range(3)]
    ran = [message.frame_id for message in found if message.kind is Kind.FEATURE]
    late = [message for message in found if message.kind is Kind.SKIP]
    assert ran[0] == 1
    assert late
    assert {message.reason for message in late} == {Reason.EXPIRED}
    assert node.ask(Control(Question.MARK)).mark.inferences == len(ran)  # type: ignore[union-attr]


def test_a_withdrawn_frame_that_has_not_begun_is_skipped_in_its_turn(node: HandMadeNode, bundle: Bundle) -> None:
    image = bundle.golden()["images"][0]
    node.start("--engine", "paced:100")
    assert read_body(node.welcome(), Hello).can_withdraw
    for number in (1, 2, 3):
        node.send(node.frame(image, number))
    for number in (2, 9):  # it has never had the latter
        node.send(Message(Kind.WITHDRAW, run_id=RUN_ID, frame_id=number))
    found = [node.receive(Kind.FEATURE, Kind.SKIP) for _ in range(3)]
    assert [(message.kind, message.frame_id) for message in found] == [
        (Kind.FEATURE, 1),
        (Kind.SKIP, 2),
        (Kind.FEATURE, 3),
    ]
    assert found[1].reason is Reason.WITHDRAWN
    node.send(Message(Kind.WITHDRAW, run_id=RUN_ID, frame_id=3))  # too late: it is answered already
    node.send(node.frame(image, 3))
    assert node.receive(Kind.FEATURE, Kind.SKIP).kind is Kind.FEATURE
    assert node.ask(Control(Question.MARK)).mark.inferences == 3  # type: ignore[union-attr]


def test_what_cannot_be_worked_on_is_skipped_with_the_reason(node: HandMadeNode) -> None:
    node.start("--engine", "null")
    node.welcome()
    node.send(node.frame(b"no picture"))
    assert node.receive(Kind.SKIP).reason is Reason.DECODE
    node.send(node.frame(np.zeros((5, 5, 1), np.uint8)))
    assert node.receive(Kind.SKIP).reason is Reason.DECODE
    node.send(Message(Kind.TRIGGER, run_id=RUN_ID, frame_id=3))
    assert node.receive(Kind.SKIP).reason is Reason.NO_SOURCE


def test_a_coded_image_is_decoded_and_a_damaged_one_is_skipped_as_a_damaged_file_is(node: HandMadeNode) -> None:
    node.start("--engine", "null", before=MEAN)
    assert read_body(node.welcome(), Hello).image_codings == ("jpeg", "lossless")
    spec = Bundle(TINY).manifest.preprocess
    image = np.random.default_rng(1).integers(0, 256, spec.shape, np.uint8)
    node.send(node.frame(image))
    expected = bytes(node.receive(Kind.FEATURE).payload)
    codings: tuple[ImageCoding, ...] = ("lossless", "jpeg")
    for coding in codings:
        content = encode_image(image, coding)
        assert content is not None
        coded = msgspec.structs.replace(node.frame(content), dims=spec.shape)
        node.send(coded)
        found = node.receive(Kind.FEATURE, Kind.SKIP)
        assert found.kind is Kind.FEATURE
        assert (bytes(found.payload) == expected) is (coding == "lossless")
        node.send(msgspec.structs.replace(coded, payload=content[:-20]))
        assert node.receive(Kind.FEATURE, Kind.SKIP).reason is Reason.DECODE
        larger = encode_image(np.zeros((spec.height + 1, spec.width, 1), np.uint8), coding)
        node.send(msgspec.structs.replace(coded, payload=larger))
        assert node.receive(Kind.FEATURE, Kind.SKIP).reason is Reason.DECODE


def test_frames_of_another_run_are_not_worked_on(node: HandMadeNode) -> None:
    """A restarted node has a new run: what an old one had sent is nobody's any more."""
    node.start("--engine", "null")
    node.welcome()
    image = np.zeros((6, 8, 1), np.uint8)
    old = Message(Kind.FRAME, *array_payload(image), run_id=RUN_ID - 1, frame_id=1)
    node.send(old)
    node.send(node.frame(image, number=2))
    assert node.receive(Kind.FEATURE, Kind.SKIP).frame_id == 2


def test_a_refused_agent_ends_with_the_nodes_words(node: HandMadeNode) -> None:
    child = node.start("--engine", "null")
    node.receive(Kind.HELLO)
    node.send(Message(Kind.REFUSED, Dtype.BODY, payload=body(Refused("jetson1: expected another bundle"))))
    _, words = child.communicate(timeout=20)
    assert child.returncode == 1
    assert words.splitlines()[-1].startswith("error: ")
    assert "expected another bundle" in words.splitlines()[-1]


def test_an_agent_that_has_served_tries_again_when_it_is_refused(node: HandMadeNode) -> None:
    """The cause may be another's: a second agent under its name, or a node that got its new bundle first."""
    soon = "import devit_edge_agent.uplink as uplink; uplink._REFUSED_NS = 100_000_000\n"
    node.start("--engine", "null", before=soon)
    hello = node.welcome()
    for _ in range(2):
        node.send(Message(Kind.REFUSED, Dtype.BODY, payload=body(Refused("jetson1: another agent is alive"))))
        again = node.receive(Kind.HELLO)
        assert again.boot_id == hello.boot_id
    node.accept(again)
    node.send(node.frame(np.zeros((6, 8, 1), np.uint8)))
    assert node.receive(Kind.FEATURE).frame_id == 1


def test_an_engine_that_was_not_built_is_one_line_that_names_the_command(tmp_path: Path, store: Path) -> None:
    made = HandMadeNode(tmp_path, tmp_path / "empty-store")
    try:
        _, words = made.start().communicate(timeout=30)
        assert made.child is not None
        assert made.child.returncode == 78
        assert words.count("\n") == 1
        assert "devit build" in words
    finally:
        made.close()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ('name = "Jetson 1"', "found 'Jetson 1'"),
        ("schema = 2", "field schema: expected 1, found 2"),
        ('sensor = "x"', "sensor"),
        ('node = "tcp://10.0.0.2:7711"', "needs node_public_key and secret_key"),
        ('bundle = "nowhere"', "nowhere/manifest.json"),
        ('backend = "abacus"', "expected auto, ort or tensorrt, found 'abacus'"),
    ],
)
def test_a_bad_configuration_is_one_line_and_exit_code_78(tmp_path: Path, change: str, complaint: str) -> None:
    fields = {"schema": "1", "name": '"jetson1"', "submodel": "0", "node": '"tcp://127.0.0.1:1"', "bundle": f'"{TINY}"'}
    key, _, value = change.partition(" = ")
    path = tmp_path / "agent.toml"
    path.write_text("\n".join(f"{name} = {text}" for name, text in (fields | {key: value}).items()))
    command = [sys.executable, "-c", RUN, "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr


def test_sigterm_ends_an_agent_cleanly_and_soon(node: HandMadeNode) -> None:
    child = node.start("--engine", "null")
    node.welcome()
    start_s = time.monotonic()
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=10)
    assert child.returncode == 0
    assert time.monotonic() - start_s < 5


def test_a_lost_gpu_ends_the_agent_with_exit_code_70_after_it_gave_its_frame_up(node: HandMadeNode) -> None:
    """Nothing inside the process helps: systemd has to start it anew."""
    child = node.start("--engine", "null", before=LOST)
    node.welcome()
    for number in (1, 2, 3):
        node.send(node.frame(np.zeros((6, 8, 1), np.uint8), number))
    found = [node.receive(Kind.FEATURE, Kind.SKIP) for _ in range(3)]
    assert [message.frame_id for message in found] == [1, 2, 3]
    assert found[-1].reason is Reason.ENGINE
    _, said = child.communicate(timeout=10)
    assert child.returncode == 70
    assert "error: cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS" in said


def test_an_agent_whose_csi_camera_stays_silent_ends_with_exit_code_70(
    node: HandMadeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new process gets the socket that the camera service has by then: systemd has to start it."""
    program = tmp_path / "bin" / "gst-launch-1.0"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n# SIMULATED\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    soon = "import devit_edge_agent.sources.gstreamer as gstreamer; gstreamer.CSI_SILENCE_NS //= 100\n"
    child = node.start("--engine", "null", config='tegrastats = []\nsource = "gst:csi"', before=soon)
    node.welcome()
    _, said = child.communicate(timeout=30)
    assert child.returncode == 70
    assert "error: source: the CSI camera is silent (no frame): systemd starts the agent again" in said


def test_an_agent_that_is_stopped_takes_leave_and_works_off_what_it_has(node: HandMadeNode) -> None:
    patient = "import devit_edge_agent.agent as agent; agent._SHUTDOWN_NS *= 30\n"
    child = node.start("--engine", "paced:100", before=patient)
    node.welcome()
    image = np.zeros((6, 8, 1), np.uint8)
    for number in (1, 2, 3):
        node.send(node.frame(image, number))
    assert node.receive(Kind.FEATURE).frame_id == 1
    child.send_signal(signal.SIGTERM)
    found = [node.receive(Kind.FEATURE, Kind.SKIP, Kind.LEAVE) for _ in range(3)]
    assert [message.frame_id for message in found if message.kind is Kind.FEATURE] == [2, 3]
    assert Kind.LEAVE in {message.kind for message in found}
    node.send(Message(Kind.LEAVE, run_id=RUN_ID))
    child.communicate(timeout=30)  # without the node's word it would wait for a minute
    assert child.returncode == 0


@pytest.mark.system
def test_frames_that_an_agent_cannot_work_off_while_it_stops_are_given_up_by_name(node: HandMadeNode) -> None:
    child = node.start("--engine", "paced:1500")
    node.welcome()
    image = np.zeros((6, 8, 1), np.uint8)
    for number in range(1, 6):
        node.send(node.frame(image, number))
    assert node.receive(Kind.FEATURE).frame_id == 1
    child.send_signal(signal.SIGTERM)
    rest = [node.receive(Kind.FEATURE, Kind.SKIP) for _ in range(4)]
    assert [message.frame_id for message in rest] == [2, 3, 4, 5]
    assert rest[-1].reason is Reason.STOPPING
    child.communicate(timeout=10)
    assert child.returncode == 0


def test_systemd_hears_ready_after_the_welcome_and_the_watchdog_from_the_loop(
    node: HandMadeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        child = node.start("--engine", "null")
        hello = node.receive(Kind.HELLO)
        steps = ("checking the bundle", "loading the engine", "warming the engine up", "waiting for the node")
        for step in steps:  # each has three minutes, whatever the others took
            assert systemd.recv(4096).decode() == f"EXTEND_TIMEOUT_USEC=180000000\nSTATUS={step}"
        while (said := systemd.recv(4096)) != b"WATCHDOG=1":
            assert not said.startswith(b"READY")
        node.accept(hello)
        while (said := systemd.recv(4096)) == b"WATCHDOG=1":
            pass
        assert said == b"READY=1\nSTATUS=ready, null engine"
        child.send_signal(signal.SIGTERM)
        while (said := systemd.recv(4096)) == b"WATCHDOG=1":
            pass
        assert said == b"STOPPING=1"


def test_an_engine_that_hangs_starves_the_watchdog(
    node: HandMadeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process lives, and its ZeroMQ threads answer heartbeats; only the loop that infers stands still."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        child = node.start("--engine", "null", before=HANGING)
        node.welcome()
        for number in (1, 2, 3):
            node.send(node.frame(np.zeros((6, 8, 1), np.uint8), number))
        assert [node.receive(Kind.FEATURE).frame_id for _ in range(2)] == [1, 2]
        assert child.stderr is not None
        assert child.stderr.readline() == "edge-agent: ready, null engine\n"
        assert child.stderr.readline() == "the engine hangs\n"
        while select.select([systemd], [], [], 0)[0]:  # what was sent before
            systemd.recv(4096)
        assert select.select([systemd], [], [], 1.2)[0] == []  # systemd's patience twice over
        assert child.poll() is None


@pytest.mark.system
def test_an_agent_that_hears_nothing_connects_again(node: HandMadeNode) -> None:
    """Its route may be somebody else's: only its own end can find that out."""
    node.start("--engine", "null")
    hello = node.welcome()
    again = node.receive(Kind.HELLO)
    assert again.boot_id == hello.boot_id


def test_a_ping_is_answered_from_the_loop(node: HandMadeNode) -> None:
    node.start("--engine", "null")
    node.welcome()
    assert node.ask(Control(Question.PING)) == ControlReply()


def test_a_trigger_is_answered_with_the_devices_own_next_picture(
    node: HandMadeNode, bundle: Bundle, tmp_path: Path
) -> None:
    golden = bundle.golden()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.fromarray(golden["images"][number][:, :, 0]).save(pictures / f"{number}.png")
    node.start(config=f'tegrastats = []\nsource = "folder:{pictures}"')
    node.welcome()
    for number in range(4):
        node.send(Message(Kind.TRIGGER, run_id=RUN_ID, frame_id=number + 1, dispatch_ns=5))
        feature = node.receive(Kind.FEATURE, Kind.SKIP)
        np.testing.assert_allclose(feature.array(), golden["features.0"][number % 3], atol=1e-5)
        assert 0 < feature.capture_age_us < 10_000_000


def test_a_free_running_device_answers_a_trigger_with_its_newest_feature(
    node: HandMadeNode, bundle: Bundle, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(bundle.golden()["images"][0][:, :, 0]).save(pictures / "0.png")
    config = f'tegrastats = []\nsource = "folder:{pictures}"\nfree_running = true'
    node.start("--engine", "paced:100", config=config)
    node.welcome()
    while (first := node.ask(Control(Question.MARK)).mark) is not None and first.inferences < 1:
        pass
    for number in range(1, 4):
        node.send(Message(Kind.TRIGGER, run_id=RUN_ID, frame_id=number))
        feature = node.receive(Kind.FEATURE, Kind.SKIP)
        assert (feature.kind, feature.frame_id) == (Kind.FEATURE, number)
        assert feature.capture_age_us >= 100_000
        assert (feature.decode_us, feature.inference_us) == (0, 0)  # nobody who triggered has waited for it


def test_an_engine_that_fails_on_an_own_image_ends_nothing_and_gives_no_old_feature(
    node: HandMadeNode, bundle: Bundle, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(bundle.golden()["images"][0][:, :, 0]).save(pictures / "0.png")
    fails = FAILING.replace("if len(runs) > 5", "if len(runs) > 20")
    config = f'tegrastats = []\nsource = "folder:{pictures}"\nfree_running = true'
    child = node.start("--engine", "null", config=config, before=fails)
    node.welcome()
    number, kinds = 0, [Kind.SKIP]
    while kinds[-1] is not Kind.FEATURE:  # the first image is on its way
        number += 1
        node.send(Message(Kind.TRIGGER, run_id=RUN_ID, frame_id=number))
        kinds.append(node.receive(Kind.FEATURE, Kind.SKIP).kind)
    while kinds[-1] is not Kind.SKIP:
        number += 1
        node.send(Message(Kind.TRIGGER, run_id=RUN_ID, frame_id=number))
        kinds.append(node.receive(Kind.FEATURE, Kind.SKIP).kind)
    assert node.ask(Control(Question.PING)) == ControlReply()
    assert child.poll() is None


def test_features_are_sent_as_float16_where_the_node_wants_them_so(node: HandMadeNode, bundle: Bundle) -> None:
    golden = bundle.golden()
    node.start()
    hello = node.receive(Kind.HELLO)
    assert read_body(hello, Hello).feature_dtypes == ("float32", "float16")
    node.accept(hello, "float16")
    node.send(node.frame(golden["images"][3]))
    feature = node.receive(Kind.FEATURE)
    assert feature.dtype is Dtype.FLOAT16
    np.testing.assert_allclose(feature.array(), golden["features.0"][3], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "wrong", "why"),
    [
        ("float32", 255, "expected finite outputs, found 1 of 6 numbers that are not: if it stays, run devit build"),
        ("float16", 128, "expected finite outputs, found 1 of 6 numbers that are not: if it stays, run devit build"),
        ("float16", 64, "expected a feature that float16 holds, found a number of 1e+05: set feature_dtype ="),
    ],
)
def test_a_feature_that_is_not_finite_is_never_sent(node: HandMadeNode, dtype: str, wrong: int, why: str) -> None:
    """Each frame is checked: what the accuracy check saw were the golden images alone."""
    child = node.start("--engine", "null", before=STRANGE)
    node.accept(node.receive(Kind.HELLO), dtype)
    node.send(node.frame(np.full((6, 8, 1), wrong, np.uint8), number=1))
    skipped = node.receive(Kind.FEATURE, Kind.SKIP)
    assert (skipped.kind, skipped.reason) == (Kind.SKIP, Reason.ENGINE)
    node.send(node.frame(np.full((6, 8, 1), 3, np.uint8), number=2))
    assert node.receive(Kind.FEATURE, Kind.SKIP).kind is Kind.FEATURE
    child.terminate()
    _, told = child.communicate(timeout=20)
    assert sum(why in line for line in told.splitlines()) == 1, told
    assert "RuntimeWarning" not in told


def test_too_little_memory_for_the_engine_is_one_line_and_nothing_is_loaded(node: HandMadeNode, tmp_path: Path) -> None:
    """A SIMULATED board with 20 MiB free."""
    (tmp_path / "board/proc").mkdir(parents=True)
    (tmp_path / "board/proc/meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable: 20480 kB\n")
    child = node.start(config='tegrastats = []\nroot = "board"')
    _, said = child.communicate(timeout=30)
    assert child.returncode == 1
    assert "found 20 MiB: close other programs, or add swap" in said
    assert said.count("\n") == 1


def test_a_device_and_its_builds_remember_the_same_serials(node: HandMadeNode, store: Path, tmp_path: Path) -> None:
    """What devit build has accepted holds for the agent: it runs nothing older."""
    node.store = tmp_path / "own-store"
    shutil.copytree(store, node.store)
    signed = tmp_path / "signed"
    shutil.copytree(TINY, signed)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "desk"], check=True, timeout=60)
    signature = sign_manifest(signed, tmp_path / "desk", "desk")
    (tmp_path / "signers").write_text(signer_line(signature, "desk") + "\n")
    config = 'tegrastats = []\nallowed_signers = "signers"'
    child = node.start("--engine", "null", config=config, bundle=signed)
    node.welcome()
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=10)
    accept_serial(node.store / MEMORY_NAME, "tiny", 2)
    _, said = node.start("--engine", "null", config=config, bundle=signed).communicate(timeout=30)
    assert "--allow-older" in said
    assert said.count("\n") == 1


def test_an_agent_does_not_serve_an_engine_that_somebody_put_into_the_store(
    node: HandMadeNode, bundle: Bundle, store: Path, tmp_path: Path
) -> None:
    """The store belongs to a group; the engine under the right key is a graph that the bundle does not mean by it."""
    node.store = Path(shutil.copytree(store, tmp_path / "own-store"))
    own = Store(node.store)
    for record in own.records():
        if record.title == "submodel 0 of tiny":
            plant(own, bundle, record.key.digest, bundle.read("submodel", device=0, variant="fp16"))
    child = node.start()
    _, said = child.communicate(timeout=30)
    assert (child.returncode, said.count("\n")) == (78, 1)
    assert "is another graph than that of" in said


def test_an_agent_checks_a_few_golden_images_before_it_connects(node: HandMadeNode) -> None:
    child = node.start(before=WRONG)
    _, said = child.communicate(timeout=30)
    assert (child.returncode, said.count("\n")) == (78, 1)
    assert "expected an engine that computes what was trained, found smallest cosine" in said


def test_a_device_with_allowed_signers_refuses_an_unsigned_bundle(node: HandMadeNode, tmp_path: Path) -> None:
    (tmp_path / "signers").write_text("")
    child = node.start(config='tegrastats = []\nallowed_signers = "signers"')
    _, said = child.communicate(timeout=30)
    assert child.returncode == 78
    assert "not a signed bundle" in said
    assert said.count("\n") == 1


def test_closing_its_standard_input_ends_an_agent_that_was_told_so(node: HandMadeNode) -> None:
    child = node.start("--engine", "null", "--stop-with-stdin")
    node.welcome()
    assert child.stdin is not None
    child.stdin.close()
    child.stdin = None
    child.wait(10)
    assert child.returncode == 0


def test_power_lines_come_with_the_devices_clock_and_stop_when_told(node: HandMadeNode) -> None:
    command = json.dumps([sys.executable, "-m", "devit_profiling.simulator.program", "--board", "orin-nano"])
    node.start("--engine", "null", config=f"tegrastats = {command}")
    node.welcome()
    assert node.ask(Control(Question.SAMPLE_START, interval_ms=100)).error == ""
    before = node.ask(Control(Question.MARK)).mark
    stamps: list[int] = []
    while len(stamps) < 4:
        telemetry = read_body(node.receive(Kind.TELEMETRY), Telemetry)
        assert telemetry.device == "jetson1"
        assert all("SIMULATED" in line.text for line in telemetry.lines)
        stamps += [line.monotonic_ns for line in telemetry.lines]
    after = node.ask(Control(Question.MARK)).mark
    assert before is not None
    assert after is not None
    assert before.monotonic_ns < stamps[-1] < after.monotonic_ns
    assert stamps == sorted(stamps)
    assert node.ask(Control(Question.SAMPLE_STOP)).error == ""


def test_a_sensor_that_dies_is_told_once_with_its_last_words(node: HandMadeNode) -> None:
    command = json.dumps(["sh", "-c", "echo RAM no more; exit 3"])
    node.start("--engine", "null", config=f"tegrastats = {command}")
    node.welcome()
    node.ask(Control(Question.SAMPLE_START, interval_ms=100))
    while not (telemetry := read_body(node.receive(Kind.TELEMETRY), Telemetry)).ended:
        pass
    assert "exit code 3" in telemetry.ended
    assert "RAM no more" in telemetry.ended


def test_a_sensor_that_ignores_its_end_holds_up_no_frame(node: HandMadeNode, bundle: Bundle) -> None:
    """It is killed after two seconds; the agent answers meanwhile, and can sample anew."""
    stubborn = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
    node.start("--engine", "null", config=f"tegrastats = {json.dumps(['sh', '-c', stubborn])}")
    node.welcome()
    image, pids = bundle.golden()["images"][0], []
    for _ in range(2):
        node.ask(Control(Question.SAMPLE_START, interval_ms=100))
        pids += [int(line.text) for line in read_body(node.receive(Kind.TELEMETRY), Telemetry).lines]
        with within(1.0):
            assert node.ask(Control(Question.SAMPLE_STOP)).error == ""
            node.send(node.frame(image))
            node.receive(Kind.FEATURE)
    assert len(set(pids)) == 2
    for pid in pids:
        assert_gone(pid)


def test_a_flooding_sensor_is_ended_and_named(node: HandMadeNode) -> None:
    command = json.dumps(["sh", "-c", "exec yes RAM 1/2MB"])
    node.start("--engine", "null", config=f"tegrastats = {command}")
    node.welcome()
    node.ask(Control(Question.SAMPLE_START, interval_ms=100))
    while not (telemetry := read_body(node.receive(Kind.TELEMETRY), Telemetry)).ended:
        pass
    assert "'sh' prints more than lines of tegrastats every 100 ms" in telemetry.ended


def test_an_agent_tells_which_board_it_is_by_its_tree_and_its_settings(node: HandMadeNode) -> None:
    tree = TINY.parent / "boards" / "orin-nano-jp6.2"
    node.start("--engine", "null", config=f'tegrastats = []\nroot = "{tree}"\nboard = "orin-nx"')
    node.welcome()
    found = node.ask(Control(Question.DESCRIBE)).description
    assert found is not None
    assert (found.board_choice, found.compatible[1]) == ("orin-nx", "nvidia,p3767-0005")


def test_all_that_a_dying_sensor_printed_arrives_before_the_reason(node: HandMadeNode) -> None:
    """A hundred lines at once, as after a long inference, are more than one message takes."""
    command = json.dumps(["sh", "-c", "seq -f 'RAM %g/999MB' 100; kill -9 $$"])
    node.start("--engine", "null", config=f"tegrastats = {command}")
    node.welcome()
    node.ask(Control(Question.SAMPLE_START, interval_ms=100))
    texts: list[str] = []
    ended = ""
    while not ended:
        telemetry = read_body(node.receive(Kind.TELEMETRY), Telemetry)
        texts += [line.text for line in telemetry.lines]
        ended = telemetry.ended
    assert texts == [f"RAM {number}/999MB" for number in range(1, 101)]
    assert "exit code -9" in ended
    assert node.ask(Control(Question.SAMPLE_STOP)).error == ""


def test_chips_are_sampled_in_place_of_tegrastats_and_tell_the_time_of_reading(
    node: HandMadeNode, tmp_path: Path
) -> None:
    orin_nano(tmp_path)
    command = json.dumps([sys.executable, "-m", "devit_profiling.sensor.hwmon", "--root", str(tmp_path)])
    node.start("--engine", "null", config=f"tegrastats = {command}")
    node.welcome()
    assert node.ask(Control(Question.SAMPLE_STOP)).sampling is None
    assert node.ask(Control(Question.SAMPLE_START, interval_ms=20)).error == ""
    lines: list[PowerLine] = []
    while len(lines) < 20:
        lines += read_body(node.receive(Kind.TELEMETRY), Telemetry).lines
    cost = node.ask(Control(Question.SAMPLE_STOP)).sampling
    assert all(line.text.startswith(f"INA3221 {line.monotonic_ns}ns SIMULATED VDD_IN 4359mW ") for line in lines)
    assert cost is not None
    assert cost.duration_s >= 0.3
    assert 0 < (cost.sampler_cpu_s or 0) < cost.duration_s
    assert 0 < cost.reader_cpu_s < cost.duration_s
    assert node.ask(Control(Question.SAMPLE_STOP)).sampling == cost


@pytest.mark.parametrize(
    ("config", "complaint"),
    [("tegrastats = []", "expected a power sensor, found none"), ('tegrastats = ["no-such"]', "cannot be started")],
)
def test_a_device_without_a_sensor_says_so(node: HandMadeNode, config: str, complaint: str) -> None:
    node.start("--engine", "null", config=config)
    node.welcome()
    assert complaint in node.ask(Control(Question.SAMPLE_START, interval_ms=100)).error


def test_an_unknown_question_is_answered_with_an_error(node: HandMadeNode) -> None:
    node.start("--engine", "null")
    node.welcome()
    assert "Invalid enum value 'sing'" in node.ask(Control("sing")).error  # type: ignore[arg-type]
    assert "only the node answers 'status'" in node.ask(Control(Question.STATUS)).error


def test_a_running_agent_has_mapped_no_training_library(node: HandMadeNode) -> None:
    """What the process really holds, by the kernel's word."""
    child = node.start()
    node.welcome()
    maps = Path(f"/proc/{child.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert not [name for name in ("torch", "onnxsim", "onnx_cpp") if f"/{name}" in maps]


def test_a_flood_of_questions_holds_no_frame_up(node: HandMadeNode) -> None:
    """A turn of the agent's loop answers one of them."""
    child = node.start("--engine", "null")
    node.welcome()
    question = Message(Kind.CONTROL, Dtype.BODY, payload=body(Control(Question.DESCRIBE)), run_id=RUN_ID)
    child.send_signal(signal.SIGSTOP)
    for _ in range(200):
        node.send(question)
    node.send(node.frame(np.zeros((6, 8, 1), np.uint8)))
    child.send_signal(signal.SIGCONT)
    before = 0
    while node.receive(Kind.CONTROL, Kind.FEATURE).kind is Kind.CONTROL:
        before += 1
    assert before < 100
    for _ in range(200 - before):
        assert read_body(node.receive(Kind.CONTROL), ControlReply).description is not None
