"""Roll-outs of a whole fleet by Ansible, over ssh, to five hosts on this machine.

Real: sshd, keys, playbooks, wheel, virtual environments, bundles and their signatures, engines, agents, node, load.
SIMULATED: systemd (``simulated_systemctl.py``). Only in tests: the wheel shows this test environment's packages to each
release (``--no-deps``), so that no package but devit itself is installed five times.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from tests.deploy.conftest import DEVICES, Fleet, Release, finish
from tests.deploy.releases import FASHION

from devit_contract.artefacts.fleet import Certain, Watch, load_fleet
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import DevitError
from devit_contract.wire.client import Answer, Client
from devit_contract.wire.codec import State

RATE_HZ = 50.0
DEADLINE_S = 120.0

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def first(fleet: Fleet) -> Release:
    """The fleet runs its first release."""
    release = fleet.release("one", serial=1)
    played = fleet.play("site.yml", release)
    assert played.code == 0, played.said
    return release


@pytest.fixture(scope="module")
def second(fleet: Fleet) -> Release:
    """What it may be upgraded to."""
    return fleet.release("two", serial=2)


@dataclass
class Load:
    """Frames at a fixed rate, whatever becomes of them."""

    fleet: Fleet
    answers: list[tuple[float, Answer | DevitError]] = field(default_factory=list)
    """With the Unix time when each came."""
    sent: int = 0

    @contextmanager
    def running(self) -> Iterator[Load]:
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(over,))
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join(DEADLINE_S)

    def before(self, unix_s: float) -> list[Answer | DevitError]:
        """Answers that had come by then."""
        return [answer for came_s, answer in self.answers if came_s < unix_s]

    def _run(self, over: threading.Event) -> None:
        images = Bundle(FASHION).golden()["images"]
        with self.fleet.client() as client:
            client.status()
            start_s = time.monotonic()
            while not over.is_set():
                due_s = start_s + self.sent / RATE_HZ
                while (left_s := due_s - time.monotonic()) > 0:
                    self._collect(client, left_s)
                client.submit(images[self.sent % len(images)])
                self.sent += 1
            end_s = time.monotonic() + DEADLINE_S
            while len(self.answers) < self.sent and time.monotonic() < end_s:
                self._collect(client, 0.2)

    def _collect(self, client: Client, timeout_s: float) -> None:
        self.answers += [(time.time(), answer) for _, answer in client.collect(timeout_s)]


def missing_at_once(answers: list[Answer | DevitError]) -> int:
    """Most devices that one answer lacked."""
    return max(len(answer.missing) for answer in answers if isinstance(answer, Answer))


def figures(answers: list[Answer | DevitError]) -> str:
    states = [a.state.name.lower() if isinstance(a, Answer) else "lost" for a in answers]
    latencies = [1000 * a.latency_s for a in answers if isinstance(a, Answer)]
    p50, p99 = np.percentile(latencies, (50, 99))
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    return (
        f"{len(answers)} frames at {RATE_HZ:g}/s: {counts}; at most {missing_at_once(answers)} devices missing at once"
        f"; latency p50 {p50:.1f}, p99 {p99:.1f}, max {max(latencies):.1f} ms"
    )


def everywhere(release: str) -> dict[str, str]:
    return dict.fromkeys(("node1", *DEVICES), release)


def assert_all_answer(fleet: Fleet) -> None:
    with fleet.client() as client:
        answer = client.classify(Bundle(FASHION).golden()["images"][0])
    assert answer.state is State.FULL, answer.missing


def test_an_unsigned_bundle_is_refused_before_anything_is_changed(fleet: Fleet) -> None:
    before = fleet.started
    played = fleet.play("site.yml", fleet.release("unsigned", serial=1, bundle="unsigned"))
    assert played.code != 0
    assert "not a signed bundle" in played.said
    assert sum(played.changed.values()) == 0
    assert fleet.started == before


def test_the_first_roll_out_brings_up_a_cell_that_answers(fleet: Fleet, first: Release) -> None:
    assert fleet.releases_in_use == everywhere(first.version)
    assert_all_answer(fleet)
    for name in DEVICES:
        keys = list((fleet.hosts[name].root / "etc/devit/keys").iterdir())
        assert {key.name for key in keys} == {f"{name}.key", f"{name}.key_secret"}
    written = load_fleet(fleet.hosts["node1"].root / "etc/devit/fleet.toml")
    assert (written.serving.policy, written.certain, written.watch) == (
        "all",
        Certain(flips=0.003, stages=(1, 2)),
        Watch(liars="off"),
    )


def test_engines_are_built_by_one_device_and_taken_by_the_others(fleet: Fleet, first: Release) -> None:
    """All are of one kind here: the reference device holds all four engines, the others their own."""
    stores = [fleet.hosts[name].root / "var/lib/devit/engines" for name in DEVICES]
    held = [{path.parent.name for path in store.glob("*/engine.json")} for store in stores]
    assert [len(keys) for keys in held] == [4, 1, 1, 1]
    assert set.union(*held[1:]) < held[0]


def test_a_second_run_changes_nothing(fleet: Fleet, first: Release) -> None:
    before = fleet.started
    played = fleet.play("site.yml", first)
    assert played.code == 0, played.said
    assert played.changed == dict.fromkeys(("node1", *DEVICES), 0), played.said
    assert fleet.started == before


def test_a_changed_configuration_is_in_force_though_another_host_failed(fleet: Fleet, first: Release) -> None:
    """The file of jetson1 is new, its agent the old one, when jetson3 ends the run; the next run restarts the agent."""
    before, changed = fleet.started, ("--extra-vars", "devit_threads=2")
    failing = json.dumps({"devit_threads": "{{ 2 if inventory_hostname != 'jetson3' else not_defined }}"})
    assert fleet.play("site.yml", first, "--extra-vars", failing).code != 0
    assert "threads = 2" in (fleet.hosts["jetson1"].root / "etc/devit/jetson1.toml").read_text()
    assert fleet.started == before
    assert fleet.play("site.yml", first, *changed).code == 0
    once = {name: count + (name in DEVICES) for name, count in before.items()}
    assert fleet.started == once
    assert fleet.play("site.yml", first, *changed).changed == dict.fromkeys(("node1", *DEVICES), 0)
    assert fleet.started == once
    assert fleet.play("site.yml", first).code == 0  # as the other tests expect it
    assert_all_answer(fleet)


@pytest.mark.parametrize(("playbook", "version"), [("upgrade.yml", "two"), ("rollback.yml", "one")])
def test_no_frame_fails_while_the_fleet_is_switched_under_load(
    fleet: Fleet, first: Release, second: Release, playbook: str, version: str
) -> None:
    """Forth and back: one device after the other is missing, then the node restarts."""
    load = Load(fleet)
    with load.running():
        played = fleet.play(playbook, second)
    assert played.code == 0, played.said
    assert fleet.releases_in_use == everywhere(version)
    while_devices = load.before(fleet.hosts["node1"].switched_unix_s)
    print(f"{playbook}, devices: {figures(while_devices)}")
    print(f"{playbook}, with the node: {figures(load.before(math.inf))}")
    assert len(load.answers) == load.sent
    assert len(while_devices) > 5 * RATE_HZ
    answers = [answer for _, answer in load.answers if isinstance(answer, Answer)]
    assert len(answers) == load.sent
    assert all(answer.state in (State.FULL, State.PARTIAL) for answer in answers)
    assert missing_at_once(load.before(math.inf)) == 1
    assert_all_answer(fleet)


def test_an_engine_that_fails_on_the_canary_is_rolled_back_by_itself(fleet: Fleet, first: Release) -> None:
    """The agent starts and is accepted, but answers nonsense."""
    before = fleet.started
    played = fleet.play("upgrade.yml", fleet.release("nonsense", serial=3, agent="bad"))
    assert played.code != 0
    assert re.search(r"jetson1: expected 100 good frames, found .*Rolled back: jetson1\.", played.said), played.said
    assert fleet.releases_in_use == everywhere(first.version)
    assert fleet.started == before | {"jetson1": before["jetson1"] + 2}
    assert_all_answer(fleet)


def test_a_bundle_whose_engines_do_not_pass_is_not_switched_to(fleet: Fleet, first: Release) -> None:
    before = fleet.started
    played = fleet.play("upgrade.yml", fleet.release("untrue", serial=4, bundle="untrue"))
    assert played.code != 0
    assert "no variant passes on this device" in played.said
    assert fleet.releases_in_use == everywhere(first.version)
    assert fleet.started == before
    assert_all_answer(fleet)


def test_a_device_that_dies_stops_the_roll_out_and_what_was_upgraded_is_rolled_back(
    fleet: Fleet, first: Release, second: Release
) -> None:
    before, dying = fleet.started, fleet.hosts["jetson2"]
    with fleet.playing("upgrade.yml", second) as child:
        end_s = time.monotonic() + DEADLINE_S
        while dying.current != "two":
            assert child.poll() is None, child.communicate()[0]
            assert time.monotonic() < end_s
            time.sleep(0.005)  # a link of another process: nothing tells when it changes
        dying.cut_power()
        played = finish(child)
    assert played.code != 0
    assert "Rolled back: jetson1." in played.said, played.said
    assert "NOT rolled back: jetson2" in played.said
    assert fleet.releases_in_use == everywhere("one") | {"jetson2": "two"}
    assert {name: fleet.started[name] for name in ("node1", "jetson3", "jetson4")} == {
        name: before[name] for name in ("node1", "jetson3", "jetson4")
    }
    dying.boot()
    played = fleet.play("rollback.yml", first, "--limit", "jetson2")
    assert played.code == 0, played.said
    assert fleet.releases_in_use == everywhere("one")
    assert_all_answer(fleet)


def test_a_bundle_with_other_submodels_takes_a_whole_cell_at_once(fleet: Fleet, first: Release) -> None:
    """From device to device it is refused; all at once, requests wait until the cell is up on it."""
    other = fleet.release("other", serial=6, bundle="other")
    played = fleet.play("upgrade.yml", other)
    assert played.code != 0
    assert "run upgrade_cell.yml" in played.said
    assert fleet.releases_in_use == everywhere(first.version)
    load = Load(fleet)
    with load.running():
        played = fleet.play("upgrade_cell.yml", other)
    assert played.code == 0, played.said
    print(f"upgrade_cell.yml: {figures(load.before(math.inf))}")
    assert len(load.answers) == load.sent
    for at, answer in load.answers:
        if not isinstance(answer, Answer) or answer.state is not State.FULL:
            print(at, answer if not isinstance(answer, Answer) else (answer.state, answer.latency_s, answer.missing))
    assert all(isinstance(answer, Answer) and answer.state is State.FULL for _, answer in load.answers)
    assert fleet.releases_in_use == everywhere("other")
    assert_all_answer(fleet)
