"""Engines that take over while the agent serves: from SIGHUP to the node's word, and what may go wrong in between."""

from __future__ import annotations

import select
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.edge_agent.hand_made_node import RUN_ID, TINY, HandMadeNode
from tests.support.opened import opened_files

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import EngineError, InputError
from devit_contract.service.journal import Log
from devit_contract.wire.codec import Dtype, Kind, Message
from devit_contract.wire.messages import Control, ControlReply, Hello, Refused, body, read_body
from devit_contract.wire.words import Question
from devit_edge_agent.engine import swap
from devit_edge_agent.engine.loading import Loaded, Settings, load, read_again, read_settings, self_check
from devit_edge_agent.engine.swap import Swap
from devit_engines.null import NullEngine

DEADLINE_S = 20
BLACK = np.zeros((6, 8, 1), np.uint8)
BOUND = """
import threading
from dataclasses import replace
from devit_contract.errors import EngineError
from devit_engines.engine import CheckedEngine
from devit_engines.null import NullEngine
make, answer, made, stubborn = NullEngine.__init__, NullEngine._run, [], []
def bind(self, spec):
    made.append(self)
    make(self, replace(spec, revision=len(made)))
    self.owner = threading.current_thread()
def check(self):
    if threading.current_thread() is not self.owner:
        raise EngineError("expected the thread that opened the engine")
def run(self, images):
    check(self)
    return answer(self, images)
def close(self):
    check(self)
    CheckedEngine.close(self)
    if self.revision in stubborn:
        stubborn.remove(self.revision)
        raise EngineError("cuMemFree: expected success")
NullEngine.__init__, NullEngine._run, NullEngine.close = bind, run, close
"""
"""A null engine that is bound to its thread, as CUDA's are; each has a revision of its own, 1, 2, 3."""


def refusal(text: str) -> Message:
    return Message(Kind.REFUSED, Dtype.BODY, payload=body(Refused(text)))


def welcomed(node: HandMadeNode, revision: int) -> None:
    """Accept an engine; an introduction before it may come twice."""
    while node.welcome().engine_revision != revision:
        pass


def line_with(node: HandMadeNode, words: str) -> str:
    """Read the agent's log up to a line with some words."""
    assert node.child is not None
    assert node.child.stderr is not None
    while words not in (line := node.child.stderr.readline()):
        assert line, f"the log ended without: {words}"
    return line


def test_a_reloaded_engine_serves_after_the_nodes_word_and_no_frame_is_lost(node: HandMadeNode, bundle: Bundle) -> None:
    golden = bundle.golden()
    child = node.start()
    first = node.welcome()
    child.send_signal(signal.SIGHUP)
    number, hello = 0, None
    while hello is None:
        number += 1
        node.send(node.frame(golden["images"][number % 8], number))
        message = node.receive(Kind.FEATURE, Kind.HELLO)
        if message.kind is Kind.HELLO:
            hello = message
        else:
            assert message.frame_id == number
    assert (hello.boot_id, hello.engine_revision) == (first.boot_id, first.engine_revision)
    node.accept(hello)
    assert node.receive(Kind.FEATURE).frame_id == number
    node.send(node.frame(golden["images"][3], number + 1))
    np.testing.assert_allclose(node.receive(Kind.FEATURE).array(), golden["features.0"][3], atol=1e-5)


def test_an_engine_that_the_node_refuses_leaves_the_old_one_serving(node: HandMadeNode, bundle: Bundle) -> None:
    golden = bundle.golden()
    child = node.start()
    node.welcome()
    child.send_signal(signal.SIGHUP)
    node.receive(Kind.HELLO)
    node.send(refusal("another bundle"))
    node.welcome()
    node.send(node.frame(golden["images"][3], 7))
    np.testing.assert_allclose(node.receive(Kind.FEATURE).array(), golden["features.0"][3], atol=1e-5)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=10)
    assert "the old engine keeps serving" in said
    assert "another bundle" in said


def test_an_engine_that_cannot_be_loaded_leaves_the_old_one_serving(
    node: HandMadeNode, bundle: Bundle, store: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own-store"
    shutil.copytree(store, own)
    node.store = own
    child = node.start()
    assert child.stderr is not None
    node.welcome()
    for file in own.glob("*/*.onnx"):
        file.write_bytes(b"damaged")
    child.send_signal(signal.SIGHUP)
    while "the old engine keeps serving" not in (line := child.stderr.readline()):
        assert line
    node.send(node.frame(bundle.golden()["images"][3], 7))
    assert node.receive(Kind.FEATURE).frame_id == 7


def test_engines_that_are_bound_to_their_thread_take_over_one_after_the_other(node: HandMadeNode) -> None:
    child = node.start("--engine", "null", before=BOUND)
    assert node.welcome().engine_revision == 1
    for revision in (2, 3):
        child.send_signal(signal.SIGHUP)
        welcomed(node, revision)
        node.send(node.frame(BLACK, number=revision))
        answer = node.receive(Kind.FEATURE, Kind.SKIP)
        assert (answer.kind, answer.engine_revision) == (Kind.FEATURE, revision)
    child.send_signal(signal.SIGTERM)
    node.receive(Kind.LEAVE)
    node.send(Message(Kind.LEAVE, run_id=RUN_ID))
    _, said = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 0
    assert "expected" not in said


def test_an_engine_that_cannot_be_freed_hinders_nobody(node: HandMadeNode) -> None:
    """The first one when the second takes over, the third when the node refuses it."""
    child = node.start("--engine", "null", before=BOUND + "stubborn += [1, 3]\n")
    node.welcome()
    child.send_signal(signal.SIGHUP)
    node.welcome()
    assert "cuMemFree" in line_with(node, "was not freed")
    child.send_signal(signal.SIGHUP)
    while node.receive(Kind.HELLO).engine_revision != 3:
        pass
    node.send(refusal("another bundle"))
    assert "cuMemFree" in line_with(node, "was not freed")
    welcomed(node, 2)
    node.send(node.frame(BLACK))
    assert node.receive(Kind.FEATURE, Kind.SKIP).engine_revision == 2


def test_without_a_node_the_new_engine_waits_for_its_word(node: HandMadeNode) -> None:
    child = node.start("--engine", "null", before=BOUND)
    assert child.stdout is not None
    assert node.receive(Kind.HELLO).engine_revision == 1
    child.send_signal(signal.SIGHUP)
    while node.receive(Kind.HELLO).engine_revision == 1:  # it says so every second
        pass
    assert select.select([child.stdout], [], [], 0)[0] == []  # not ready: nobody has accepted it
    node.send(refusal("another bundle"))
    while (hello := node.receive(Kind.HELLO)).engine_revision != 1:
        pass
    node.accept(hello)
    node.send(node.frame(BLACK))
    assert node.receive(Kind.FEATURE, Kind.SKIP).engine_revision == 1


def test_what_agent_toml_says_of_the_engine_is_read_again(node: HandMadeNode, tmp_path: Path) -> None:
    """The bundle under its new path is the same one, as the node would refuse another."""
    moved = Path(shutil.copytree(TINY, tmp_path / "moved"))
    child = node.start()
    first = node.welcome()
    node.configure(bundle=moved)
    (moved / "fusion.safetensors").write_bytes(b"damaged")
    child.send_signal(signal.SIGHUP)
    assert str(moved) in line_with(node, "the old engine keeps serving")
    shutil.copy(TINY / "fusion.safetensors", moved)
    child.send_signal(signal.SIGHUP)
    assert read_body(node.welcome(), Hello) == read_body(first, Hello)
    assert node.ask(Control(Question.PING)) == ControlReply()


def test_what_belongs_to_the_process_cannot_change_while_it_runs(node: HandMadeNode) -> None:
    child = node.start("--engine", "null")
    node.welcome()
    node.configure(name="jetson2")
    child.send_signal(signal.SIGHUP)
    assert "not name: restart the agent" in line_with(node, "the old engine keeps serving")
    node.send(node.frame(BLACK))
    assert node.receive(Kind.FEATURE, Kind.SKIP).kind is Kind.FEATURE


def test_new_keys_need_a_new_process(node: HandMadeNode) -> None:
    settings = read_settings(node.configure(), "null")
    assert read_again(settings).config == settings.config
    with pytest.raises(InputError, match="not the content of secret_key: restart the agent"):
        read_again(replace(settings, keys=KeyPair(b"public", b"secret")))


@pytest.fixture
def settings(node: HandMadeNode) -> Settings:
    return read_settings(node.configure(), "null")


def outcome(made: Swap) -> Loaded | None:
    """Wait until loading has ended."""
    made.start()
    assert select.select([made.fileno()], [], [], DEADLINE_S)[0]
    return made.take_loaded()


def test_loading_reads_no_graph_of_any_submodel(tmp_path: Path, bundle: Bundle, store: Path) -> None:
    """The engine comes from the store, so an agent starts though another submodel's graph is damaged."""
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    (folder / "submodel-1.fp32.onnx").write_bytes(bytes((folder / "submodel-1.fp32.onnx").stat().st_size))
    (tmp_path / "agent.toml").write_text(
        'schema = 1\nname = "jetson1"\nsubmodel = 0\nnode = "tcp://127.0.0.1:1"\nbundle = "bundle"\n'
        f'store = "{store}"\ntegrastats = []\n'
    )
    settings = read_settings(tmp_path / "agent.toml", "built")
    with opened_files(folder) as opened:
        loaded = load(settings)
        self_check(settings, loaded)
        assert sorted(set(opened)) == ["fusion.safetensors", "golden.safetensors", "manifest.json"]
    loaded.engine.close()


def test_a_surprise_while_loading_is_told_and_the_next_try_counts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def surprise(_: Settings) -> Loaded:
        raise KeyError("no such thing")

    made = Swap(settings, Log("edge-agent"))
    with monkeypatch.context() as patched:
        patched.setattr(swap, "load", surprise)
        assert outcome(made) is None
    said = capsys.readouterr().err
    assert "the old engine keeps serving: loading ended with KeyError: 'no such thing' in test_swap.py, line" in said
    assert outcome(made) is not None
    made.start()
    assert "another one waits for the node's answer already" in capsys.readouterr().err
    made.close()


def test_an_agent_that_ends_while_it_loads_closes_what_was_loaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[NullEngine] = []
    monkeypatch.setattr(NullEngine, "close", lambda engine: closed.append(engine))
    made = Swap(settings, Log("edge-agent"))
    made.start()
    made.close()
    assert len(closed) == 1


@pytest.mark.parametrize("error", [EngineError("out of memory"), KeyError("no such thing")], ids=["named", "a bug"])
def test_an_engine_that_fails_before_it_serves_is_closed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """While it warms up, and in its rehearsal; and what it says is what failed first."""

    def fail(_engine: NullEngine, _images: UInt8Array) -> Float32Array:
        raise error

    def close(engine: NullEngine) -> None:
        closed.append(engine)
        raise EngineError("cuMemFree: expected success")

    closed: list[NullEngine] = []
    loaded = load(settings)
    monkeypatch.setattr(NullEngine, "_run", fail)
    monkeypatch.setattr(NullEngine, "close", close)
    with pytest.raises(type(error)) as caught:
        load(settings)
    assert caught.value is error
    assert len(closed) == 1
    with pytest.raises(type(error)) as caught:
        self_check(replace(settings, engine_choice="built"), loaded)
    assert caught.value is error
    assert closed[1:] == [loaded.engine]
