"""Whatever devices do, every request is answered once, and no device is asked more than it may."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.fleet import Certain, Device, Fleet, Node, Serving
from devit_contract.artefacts.head import Fusion, FusionHead, FusionStatistics
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.choices import Policy
from devit_contract.service.journal import Log
from devit_contract.wire.codec import Copies, Kind, Message, State, array_payload
from devit_contract.wire.messages import AnswerBody, DeviceTiming, Hello, read_body
from devit_contract.wire.sockets import Sent
from devit_contract.wire.words import MissingReason
from devit_fusion.clock import Clock
from devit_fusion.devices.links import Link
from devit_fusion.events import Events
from devit_fusion.frames.images import Images
from devit_fusion.frames.scheduler import Scheduler
from devit_fusion.ports.clients import Request

DEVICES, DIM, CLASSES, CREDIT, DEADLINE_MS = 4, 2, 3, 2, 100
HELLO = Hello("any", 0, DIM, "", "by hand", ("float32",), "0", can_withdraw=True)
GENERATOR = np.random.default_rng(5)
HEAD = FusionHead(
    (DIM,) * DEVICES,
    GENERATOR.normal(size=(CLASSES, DEVICES * DIM)),
    np.zeros(CLASSES),
    FusionStatistics(np.zeros(DEVICES * DIM), np.eye(DEVICES * DIM)),
)
CALIBRATION = Calibration(10_000, {mask: np.full(100, 0.5, np.float32) for mask in range(1, 2**DEVICES - 1)})
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "feature", "feature", "feature", "skip", "lose", "link", "wait"]),
        st.integers(0, DEVICES - 1),
        st.sampled_from(["all", "certain", "single", "replica"]),
        st.integers(0, 2**DEVICES - 1),
    ),
    max_size=60,
)


class Ports:
    """Both ports, in memory: what each device has been sent, and what clients were answered."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = [[] for _ in range(DEVICES)]
        self.times: Counter[tuple[int, int]] = Counter()
        self.answers: list[tuple[int, Message]] = []
        self.frame_id = 0
        self.has_own_views = False

    def send_frame(self, link: Link, copies: Copies) -> Sent:
        frame_id = int.from_bytes(copies.to(link.index)[52:60], "little")
        self.times[link.index, frame_id] += 1
        self.sent[link.index].append(frame_id)
        return Sent.YES

    def withdraw(self, link: Link, frame_id: int) -> None:
        assert frame_id in link.in_flight

    def suspect(self) -> None:
        raise AssertionError("no link is gone here")

    def answer(self, request: Request, answer: Message) -> bool:
        self.answers.append((request.picture.frame_id, answer))
        return True

    def refuse(self, *_: object) -> None:
        raise AssertionError("nothing is refused here")


def play(events: Sequence[tuple[str, int, Policy, int]], *, policy: Policy, early: bool, ports: Ports) -> Scheduler:
    fleet = Fleet(
        2,
        Node("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        tuple(Device(f"jetson{index}", index) for index in range(DEVICES)),
        Serving(deadline_ms=DEADLINE_MS, credit=CREDIT, startup_grace_ms=0, policy=policy),
        Certain(audit=0.5, early_release=early),
    )
    links = {f"jetson{index}": Link(index, f"jetson{index}", CREDIT, DEADLINE_MS * 10**6) for index in range(DEVICES)}
    clock = Clock()
    clock.now_ns = 10**9  # and it stands still unless it is told to go on
    anything: Any = ports
    events_log = Events(Log("test"))
    scheduler = Scheduler(
        Fusion(HEAD),
        fleet,
        links,
        anything,
        anything,
        7,
        events_log,
        calibration=CALIBRATION,
        accuracies={},
        images=Images("raw", Preprocess(2, 2, "gray"), links),
        clock=clock,
    )
    by_index = list(links.values())
    for link in by_index:
        link.connect(HELLO, 1, 1)
    asked = 0
    for what, device, named, mask in events:
        link, waiting = by_index[device], ports.sent[device]
        if what == "ask":
            asked += 1
            picture = Message(Kind.REQUEST, *array_payload(np.ones((2, 2, 1), np.uint8)), mask=mask, frame_id=asked)
            scheduler.request(Request(b"client", "", picture, clock.now_ns, named))
        elif what == "feature" and waiting:
            feature = GENERATOR.normal(size=DIM).astype(np.float32)
            scheduler.feature_received(link, waiting.pop(0), feature, DeviceTiming(device, 0, 0, 0, 10, 10))
        elif what == "skip" and waiting:
            scheduler.frame_skipped(link, waiting.pop(0), MissingReason.ENGINE)
        elif what == "lose" and link.hello is not None:
            link.disconnect()
            waiting.clear()
            scheduler.lose(link, MissingReason.ABSENT)
        elif what == "link" and link.hello is None:
            link.connect(HELLO, 1, 1)
        elif what == "wait":
            clock.now_ns += (1 + mask) * 10**6 * DEADLINE_MS // 12
        scheduler.expire(clock.now_ns)
        scheduler.dispatch_waiting()
        assert all(len(each.in_flight) <= CREDIT for each in by_index)
    for _ in range(3):
        clock.now_ns += 2 * 10**9
        scheduler.expire(clock.now_ns)
        scheduler.dispatch_waiting()
    assert sorted(number for number, _ in ports.answers) == list(range(1, asked + 1))
    assert (scheduler.open_frames, scheduler.waiting_requests) == (0, 0)
    assert not scheduler._courses.line
    assert not scheduler._courses.audits
    return scheduler


@examples(3)
@given(events=EVENTS, policy=st.sampled_from(["all", "certain"]), early=st.booleans())
def test_every_request_is_answered_once_by_devices_that_were_asked_once(
    events: list[tuple[str, int, Policy, int]], policy: Policy, early: bool
) -> None:
    ports = Ports()
    play(events, policy=policy, early=early, ports=ports)
    assert set(ports.times.values()) <= {1}
    for _, answer in ports.answers:
        content = read_body(answer, AnswerBody)
        present = {timing.device for timing in content.devices}
        assert sum(1 << device for device in present) == answer.mask
        assert answer.mask & ~content.asked == 0
        assert present | set(content.missing) == set(range(DEVICES))
        assert present.isdisjoint(content.missing)
        if answer.state is State.CERTAIN:
            assert content.score is not None
            assert content.threshold is not None
            assert content.score >= content.threshold
            assert content.policy in ("all", "certain")
        if content.policy in ("single", "replica"):
            assert len(present) <= 1
            assert answer.state is (State.PARTIAL if present else State.FAILED)
