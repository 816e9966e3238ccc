"""Frames that ask some devices, then others: stages, tests, releases and audits, with devices that the test plays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from tests.fusion.hand_made_devices import DEADLINE_S, Scene

import devit_pipeline
from devit_contract.arrays import Float32Array
from devit_contract.artefacts.calibration import Calibration, Scores
from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.head import Fusion
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import InputError
from devit_contract.wire.client import Answer
from devit_contract.wire.codec import Kind, Message, Reason, State, array_payload, pack, unpack
from devit_contract.wire.messages import AnswerBody, read_body
from devit_contract.wire.status import NodeStatus
from devit_fusion.node import FusionNode

SHIPPED = Path(devit_pipeline.__file__).parent / "fashion_mnist" / "bundle"
IMAGE = np.zeros((28, 28, 1), np.uint8)
ALL = 0b1111
LIMIT = 3.0
"""Scores above are certain, for every subset: so many images of the calibration flip with a score that high."""
CALIBRATION = Calibration(10_000, {mask: np.full(100, LIMIT, np.float32) for mask in range(1, ALL)})


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle(SHIPPED)


class Golden:
    """Golden images by what the test needs of them."""

    def __init__(self, bundle: Bundle) -> None:
        golden, head = bundle.golden(), bundle.fusion_head()
        self.fusion = Fusion(head)
        self._features = [golden[f"features.{index}"] for index in range(4)]
        together = np.concatenate(self._features, axis=1)
        self._scores = {
            mask: Scores(head, mask).of_batch(self.fusion.batch_logits(together, mask)) for mask in range(1, ALL)
        }
        self._classes = self.fusion.batch_logits(together, ALL).argmax(axis=1)

    def image(self, *, certain: Sequence[int] = (), uncertain: Sequence[int] = ()) -> int:
        """Find an image that subsets are certain of, and others are not."""
        return self.images(certain=certain, uncertain=uncertain)[0]

    def images(self, *, certain: Sequence[int] = (), uncertain: Sequence[int] = ()) -> list[int]:
        """Find all such images."""
        return [
            number
            for number in range(len(self._classes))
            if all(self._scores[mask][number] > 1.2 * LIMIT for mask in certain)
            and all(self._scores[mask][number] < 0.8 * LIMIT for mask in uncertain)
        ]

    def other_than(self, number: int) -> int:
        """Find an image that the whole cell takes for another class."""
        return int(np.flatnonzero(self._classes != self._classes[number])[0])

    def feature(self, number: int, device: int) -> Float32Array:
        return np.asarray(self._features[device][number], np.float32)


@pytest.fixture(scope="module")
def golden(shipped: Bundle) -> Golden:
    return Golden(shipped)


class Cell:
    """A node with four devices, all of them played by the test."""

    def __init__(self, stack: ExitStack, bundle: Bundle, golden: Golden, fleet: Path, *, can_withdraw: bool) -> None:
        self._golden = golden
        self._scene = Scene(stack, bundle, load_fleet(fleet), None, calibration=CALIBRATION)
        self.client = self._scene.client()
        self.node = self._scene.node
        self.devices = [self._scene.device(index) for index in range(4)]
        for device in self.devices:
            device.hello = msgspec.structs.replace(device.hello, can_withdraw=can_withdraw)
            assert device.greet().kind is Kind.WELCOME
        self.client.status()  # connected, so that what is submitted is sent

    def say(self, device: int, frame: Message, number: int, inference_us: int = 0) -> None:
        """Answer a frame with the feature of a golden image."""
        data = unpack(self.devices[device].feature(frame, self._golden.feature(number, device)))
        self.devices[device].socket.send(pack(msgspec.structs.replace(data, inference_us=inference_us)))

    def play(self, device: int, number: int) -> Message:
        """Have a device take its next frame, and answer it."""
        frame = self.devices[device].hear(Kind.FRAME, Kind.TRIGGER)
        self.say(device, frame, number)
        return frame

    def play_any(self, number: int) -> int:
        """Play the device that is asked first, and tell which it was."""
        poller, end_s = zmq.Poller(), time.monotonic() + DEADLINE_S
        for device in self.devices:
            poller.register(device.socket, zmq.POLLIN)
        while True:
            assert time.monotonic() < end_s
            for socket, _ in poller.poll(1000):
                (place,) = (device.submodel for device in self.devices if device.socket is socket)
                message = unpack(self.devices[place].socket.recv())
                if message.kind is Kind.FRAME:
                    self.say(place, message, number)
                    return place

    def answer(self, number: int) -> Answer:
        """Wait for the answer to what was submitted under a number."""
        ((found, answer),) = self.client.collect(DEADLINE_S)
        assert found == number
        assert isinstance(answer, Answer)
        return answer

    def is_idle(self, device: int) -> bool:
        """Tell whether nothing but pings came for a device, once the node has done all before this question."""
        self.client.status()
        socket = self.devices[device].socket
        while socket.poll(0):
            message = unpack(socket.recv())
            if message.kind is not Kind.CONTROL:
                return False
        return True

    def until(self, is_so: Callable[[NodeStatus], bool]) -> NodeStatus:
        end_s = time.monotonic() + DEADLINE_S
        while not is_so(status := self.client.status()):
            assert time.monotonic() < end_s, status
        return status


Make = Callable[..., Cell]


def write_fleet(folder: Path, serving: str, certain: str = "") -> Path:
    devices = "".join(f'[[device]]\nname = "jetson{index}"\nsubmodel = {index}\n' for index in range(4))
    path = folder / "fleet.toml"
    path.write_text(
        'schema = 2\n[node]\nendpoint = "tcp://127.0.0.1:0"\nclient_endpoint = "tcp://127.0.0.1:0"\n'
        f"[serving]\n{serving}\n[certain]\n{certain}\n{devices}"
    )
    return path


@pytest.fixture
def make(tmp_path: Path, shipped: Bundle, golden: Golden) -> Iterator[Make]:
    """Start a cell; the texts are tables of its fleet file."""
    with ExitStack() as stack:

        def start(
            policy: str = "certain", *, serving: str = "deadline_ms = 20000", certain: str = "", withdraws: bool = True
        ) -> Cell:
            text = f'policy = "{policy}"\n{serving}'
            path = write_fleet(tmp_path, text, certain or "audit = 0")
            return Cell(stack, shipped, golden, path, can_withdraw=withdraws)

        yield start


def test_an_answer_that_is_certain_after_one_device_asks_no_other(make: Make, golden: Golden) -> None:
    cell, clear = make(), golden.image(certain=[0b0001])
    asked = cell.client.submit(IMAGE)
    cell.play(0, clear)
    answer = cell.answer(asked)
    assert (answer.state, answer.policy, answer.mask) == (State.CERTAIN, "certain", 0b0001)
    assert (answer.asked, answer.devices_asked) == (0b0001, 1)
    assert answer.missing == dict.fromkeys((1, 2, 3), "not needed")
    assert answer.score is not None
    assert answer.threshold is not None
    assert answer.score >= answer.threshold > LIMIT
    np.testing.assert_allclose(answer.logits, golden.fusion.logits({0: golden.feature(clear, 0)}), rtol=1e-5)
    assert all(cell.is_idle(device) for device in range(4))
    status = cell.client.status()
    assert (status.policy, status.frames, status.asked) == ("certain", {"certain": 1}, {1: 1})
    assert [device.missing for device in status.devices] == [{}] * 4


def test_an_answer_that_no_stage_makes_certain_is_that_of_all_devices(make: Make, golden: Golden) -> None:
    cell, unclear = make(), golden.image(uncertain=[0b0001, 0b0011])
    asked = cell.client.submit(IMAGE)
    cell.play(0, unclear)
    cell.play(1, unclear)
    for device in (3, 2):  # the last stage asks both at once
        cell.play(device, unclear)
    answer = cell.answer(asked)
    assert (answer.state, answer.asked, answer.missing) == (State.FULL, ALL, {})
    features = {device: golden.feature(unclear, device) for device in range(4)}
    np.testing.assert_allclose(answer.logits, golden.fusion.logits(features), rtol=1e-4, atol=1e-4)


def test_a_second_device_may_make_an_answer_certain(make: Make, golden: Golden) -> None:
    cell, number = make(), golden.image(uncertain=[0b0001], certain=[0b0011])
    asked = cell.client.submit(IMAGE)
    cell.play(0, number)
    cell.play(1, number)
    answer = cell.answer(asked)
    assert (answer.state, answer.mask, answer.asked) == (State.CERTAIN, 0b0011, 0b0011)
    assert cell.is_idle(2)
    assert cell.is_idle(3)


def test_rotating_asks_each_device_in_its_turn(make: Make, golden: Golden) -> None:
    cell, clear = make(), golden.image(certain=[0b0001, 0b0010, 0b0100, 0b1000])
    for device in (0, 1, 2, 3, 0):
        asked = cell.client.submit(IMAGE)
        cell.play(device, clear)
        assert cell.answer(asked).asked == 1 << device


def test_the_order_best_asks_the_most_accurate_device_first(make: Make, golden: Golden, shipped: Bundle) -> None:
    alone = {subset.mask: subset.validation_accuracy for subset in shipped.manifest.subsets}
    best = max(range(4), key=lambda device: alone[1 << device])
    cell, clear = make(certain='order = "best"\naudit = 0'), golden.image(certain=[1 << best])
    for _ in range(2):
        asked = cell.client.submit(IMAGE)
        cell.play(best, clear)
        assert cell.answer(asked).asked == 1 << best


def test_as_many_devices_as_an_answer_needs_are_asked_in_the_first_stage(make: Make, golden: Golden) -> None:
    cell, clear = make(serving="deadline_ms = 20000\nmin_devices = 2"), golden.image(certain=[0b0001, 0b0011])
    asked = cell.client.submit(IMAGE)
    cell.play(1, clear)
    cell.play(0, clear)
    answer = cell.answer(asked)
    assert (answer.state, answer.mask) == (State.CERTAIN, 0b0011)


@pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "skipped"])
def test_a_device_that_fails_in_its_stage_is_followed_by_the_next(make: Make, golden: Golden, is_lost: bool) -> None:
    cell, clear = make(), golden.image(certain=[0b0010])
    asked = cell.client.submit(IMAGE)
    frame = cell.devices[0].hear(Kind.FRAME)
    if is_lost:
        cell.devices[0].close()
    else:
        cell.devices[0].skip(frame, Reason.ENGINE)
    cell.play(1, clear)
    answer = cell.answer(asked)
    assert (answer.state, answer.mask, answer.asked) == (State.CERTAIN, 0b0010, 0b0011)
    assert answer.missing == {0: "absent" if is_lost else "engine", 2: "not needed", 3: "not needed"}


def test_a_stage_that_takes_too_long_is_left_while_the_next_devices_can_still_answer(
    make: Make, golden: Golden
) -> None:
    """Its device is not blamed where the others make the answer certain."""
    cell = make(serving="deadline_ms = 5000")
    for link in cell.node._links.values():
        link.pace._images.own_ns = 4.5e9  # the rest has to be asked after a quarter of a second
    number = golden.image(certain=[0b0110], uncertain=[0b0010, 0b0100])
    asked = cell.client.submit(IMAGE)
    cell.devices[0].hear(Kind.FRAME)
    cell.play(1, number)
    cell.play(2, number)
    answer = cell.answer(asked)
    assert (answer.state, answer.mask, answer.asked) == (State.CERTAIN, 0b0110, ALL)
    assert answer.missing == {0: "not needed", 3: "not needed"}
    for device in (0, 3):
        cell.devices[device].skip(cell.devices[device].hear(Kind.WITHDRAW), Reason.WITHDRAWN)
        found = cell.until(lambda status, device=device: not status.devices[device].in_flight)  # type: ignore[misc]
        assert (found.devices[device].state, found.devices[device].missing) == ("ready", {})


def test_a_device_that_never_says_that_it_skips_a_withdrawn_frame_is_overdue_in_the_end(
    make: Make, golden: Golden
) -> None:
    cell = make("all", serving="deadline_ms = 300", certain="early_release = true\naudit = 0")
    clear = golden.image(certain=[0b0111])
    asked = cell.client.submit(IMAGE)
    for device in range(3):
        cell.play(device, clear)
    assert cell.answer(asked).state is State.CERTAIN
    cell.until(lambda status: status.devices[3].state == "stalled")


def test_at_the_deadline_a_frame_ends_with_what_has_come(make: Make, golden: Golden) -> None:
    cell, unclear = make(serving="deadline_ms = 500"), golden.image(uncertain=[0b0001])
    asked = cell.client.submit(IMAGE)
    cell.play(0, unclear)
    answer = cell.answer(asked)
    assert (answer.state, answer.mask, answer.asked) == (State.PARTIAL, 0b0001, ALL)
    assert answer.missing == dict.fromkeys((1, 2, 3), "deadline")


def test_a_frame_that_waits_for_its_next_device_goes_before_new_requests(make: Make, golden: Golden) -> None:
    cell = make(serving="deadline_ms = 20000\ncredit = 1")
    clear, unclear = golden.image(certain=[0b0010]), golden.image(uncertain=[0b0001])
    for _ in range(4):
        cell.client.submit(IMAGE)
    frames = [device.hear(Kind.FRAME) for device in cell.devices]
    cell.say(0, frames[0], unclear)
    assert cell.client.submit(IMAGE) == 6  # after four and a question; it finds room at the first device
    assert cell.devices[0].hear(Kind.FRAME).frame_id == 5
    cell.client.submit(IMAGE)
    cell.say(1, frames[1], clear)
    assert cell.devices[1].hear(Kind.FRAME).frame_id == frames[0].frame_id
    assert cell.client.status().waiting_requests == 1


def test_a_client_that_asks_much_does_not_keep_another_ones_frame_from_its_turn(make: Make, golden: Golden) -> None:
    cell, clear = make(serving="deadline_ms = 20000\ncredit = 1"), golden.image(certain=[0b0001])
    for _ in range(12):
        cell.client.submit(IMAGE)
    frames = [device.hear(Kind.FRAME) for device in cell.devices]
    other = cell._scene.client()
    other.status()
    number = other.submit(IMAGE)
    assert other.status().waiting_requests == 9
    cell.say(0, frames[0], clear)
    cell.play(0, clear)
    ((found, answer),) = other.collect(DEADLINE_S)
    assert found == number
    assert isinstance(answer, Answer)
    assert answer.state is State.CERTAIN
    assert cell.client.status().waiting_requests == 7  # eight less the one that the first device has now


def test_a_mask_restricts_which_devices_are_asked(make: Make, golden: Golden) -> None:
    cell, unclear = make(), golden.image(uncertain=[0b0100, 0b1100])
    asked = cell.client.submit(IMAGE, mask=0b1100)
    for device in (2, 3):
        cell.play(device, unclear)
    answer = cell.answer(asked)
    assert (answer.state, answer.mask, answer.missing) == (
        State.PARTIAL,
        0b1100,
        {0: "not asked", 1: "not asked"},
    )


def test_own_cameras_are_all_asked_at_once(make: Make, golden: Golden) -> None:
    """Those of a later stage would see another image."""
    cell, clear = make(), golden.image(certain=[0b0001])
    asked = cell.client.submit(None)
    for device in range(4):
        cell.play(device, clear)
    answer = cell.answer(asked)
    assert (answer.state, answer.policy, answer.devices_asked) == (State.FULL, "all", 4)


def test_each_request_may_name_its_policy(make: Make, golden: Golden, shipped: Bundle) -> None:
    cell, clear = make("all"), golden.image(certain=[0b0001, 0b0010, 0b0100, 0b1000])
    alone = {subset.mask: subset.validation_accuracy for subset in shipped.manifest.subsets}
    best = max(range(4), key=lambda device: alone[1 << device])
    asked = cell.client.submit(IMAGE, policy="single")
    cell.play(best, clear)
    answer = cell.answer(asked)
    assert (answer.state, answer.policy, answer.mask) == (State.PARTIAL, "single", 1 << best)
    assert set(answer.missing.values()) == {"not asked"}
    idlest = 0 if best else 1
    asked = cell.client.submit(IMAGE, policy="replica")
    cell.play(idlest, clear)
    answer = cell.answer(asked)
    assert (answer.state, answer.policy, answer.mask) == (State.PARTIAL, "replica", 1 << idlest)
    next_one = min({0, 1, 2, 3} - {best, idlest})
    asked = cell.client.submit(IMAGE, policy="certain")
    cell.play(next_one, clear)
    assert (cell.answer(asked).policy, cell.client.status().policy) == ("certain", "all")
    asked = cell.client.submit(IMAGE)
    for device in range(4):
        cell.play(device, clear)
    answer = cell.answer(asked)
    assert (answer.state, answer.policy, answer.score) == (State.FULL, "all", None)
    assert cell.client.status().asked == {1: 3, 4: 1}


def test_a_single_device_that_fails_is_replaced(make: Make, golden: Golden, shipped: Bundle) -> None:
    alone = {subset.mask: subset.validation_accuracy for subset in shipped.manifest.subsets}
    first, second = sorted(range(4), key=lambda device: -alone[1 << device])[:2]
    cell, clear = make("single"), golden.image(certain=[1 << second])
    asked = cell.client.submit(IMAGE)
    cell.devices[first].skip(cell.devices[first].hear(Kind.FRAME), Reason.ENGINE)
    cell.play(second, clear)
    answer = cell.answer(asked)
    assert (answer.state, answer.mask) == (State.PARTIAL, 1 << second)
    assert answer.missing.pop(first) == "engine"
    assert set(answer.missing.values()) == {"not asked"}


def test_a_single_device_that_does_not_answer_in_time_has_none_asked_for_it(make: Make) -> None:
    cell = make("replica", serving="deadline_ms = 200")
    answer = cell.answer(cell.client.submit(IMAGE))
    assert (answer.state, answer.missing.pop(0)) == (State.FAILED, "deadline")
    assert set(answer.missing.values()) == {"not asked"}


def test_an_answer_is_released_before_the_slowest_device_which_is_not_blamed(make: Make, golden: Golden) -> None:
    cell = make("all", certain="early_release = true\naudit = 0")
    number = golden.image(certain=[0b0111], uncertain=[0b0001, 0b0011, 0b0010, 0b0100])
    for _ in range(4):
        asked = cell.client.submit(IMAGE)
        slow = cell.devices[3].hear(Kind.FRAME)
        for device in range(3):
            cell.play(device, number)
        answer = cell.answer(asked)
        assert (answer.state, answer.mask, answer.asked) == (State.CERTAIN, 0b0111, ALL)
        assert answer.missing == {3: "not needed"}
        withdrawn = cell.devices[3].hear(Kind.WITHDRAW)
        assert (withdrawn.frame_id, withdrawn.device) == (slow.frame_id, 3)
        cell.say(3, slow, number)  # it had begun
        cell.until(lambda status: status.devices[3].in_flight == 0)
    found = cell.client.status().devices[3]
    assert (found.state, found.late, found.missing, found.rejected) == ("ready", 0, {}, {})


def test_a_withdrawn_frame_that_is_skipped_gives_the_credit_back(make: Make, golden: Golden) -> None:
    cell = make("all", certain="early_release = true\naudit = 0")
    number = golden.image(certain=[0b0111], uncertain=[0b0001, 0b0011])
    asked = cell.client.submit(IMAGE)
    slow = cell.devices[3].hear(Kind.FRAME)
    for device in range(3):
        cell.play(device, number)
    cell.answer(asked)
    cell.devices[3].skip(cell.devices[3].hear(Kind.WITHDRAW), Reason.WITHDRAWN)
    status = cell.until(lambda status: status.devices[3].in_flight == 0).devices[3]
    assert (status.missing, status.rejected) == ({}, {})
    cell.devices[3].skip(slow, Reason.WITHDRAWN)  # nobody has withdrawn it a second time
    cell.until(lambda status: status.devices[3].rejected == {"reason": 1})


def test_a_device_that_lags_behind_holds_nobody_up_and_is_asked_where_it_is_needed(make: Make, golden: Golden) -> None:
    cell = make("all", serving="deadline_ms = 20000\ncredit = 1", certain="early_release = true\naudit = 0")
    clear, unclear = golden.image(certain=[0b0111]), golden.image(uncertain=[0b0001, 0b0011, 0b0111])
    asked = cell.client.submit(IMAGE)
    slow = cell.devices[3].hear(Kind.FRAME)
    for device in range(3):
        cell.play(device, clear)
    assert cell.answer(asked).state is State.CERTAIN
    asked = cell.client.submit(IMAGE)
    for device in range(3):
        cell.play(device, unclear)
    assert cell.client.status().frames == {"certain": 1}
    cell.say(3, slow, clear)
    assert cell.play(3, unclear).frame_id > slow.frame_id
    assert cell.answer(asked).state is State.FULL


def test_an_agent_of_an_older_version_is_not_told_what_it_does_not_know(make: Make, golden: Golden) -> None:
    cell = make("all", certain="early_release = true\naudit = 0", withdraws=False)
    number = golden.image(certain=[0b0111])
    asked = cell.client.submit(IMAGE)
    slow = cell.devices[3].hear(Kind.FRAME)
    for device in range(3):
        cell.play(device, number)
    assert cell.answer(asked).state is State.CERTAIN
    assert cell.is_idle(3)
    cell.say(3, slow, number)
    assert cell.until(lambda status: status.devices[3].in_flight == 0).devices[3].late == 0


def test_a_client_of_an_older_version_is_told_in_its_own_words(make: Make, golden: Golden) -> None:
    cell, clear = make(), golden.image(certain=[0b0001])
    old = cell._scene.device(0, to_clients_port=True)
    dtype, dims, payload = array_payload(IMAGE)
    old.socket.send(pack(Message(Kind.REQUEST, dtype, dims, payload, run_id=1, frame_id=1, minor=1)))
    cell.play(0, clear)
    answer = unpack(old.socket.recv())
    assert (answer.kind, answer.state) == (Kind.ANSWER, State.CERTAIN)
    assert set(read_body(answer, AnswerBody).missing.values()) == {"not asked"}


def test_a_policy_of_a_newer_version_is_refused_by_name(make: Make) -> None:
    cell = make()
    newer = cell._scene.device(0, to_clients_port=True)
    dtype, dims, payload = array_payload(IMAGE)
    newer.socket.send(pack(Message(Kind.REQUEST, dtype, dims, payload, run_id=1, frame_id=1, policy=9)))
    refusal = unpack(newer.socket.recv())
    assert refusal.kind is Kind.REFUSED
    assert b"policy: expected 0 to 4, found 9" in bytes(refusal.payload)
    assert cell.client.status().refused_requests == {"policy": 1}


def test_an_audit_asks_the_others_behind_the_clients_back(make: Make, golden: Golden) -> None:
    cell, clear = make(certain="audit = 1"), golden.image(certain=[0b0001])
    asked = cell.client.submit(IMAGE)
    cell.play(0, clear)
    assert cell.answer(asked).devices_asked == 1
    for device in (1, 2, 3):
        cell.play(device, clear)
    status = cell.until(lambda status: status.promise is not None and status.promise.audited == 1)
    assert status.promise is not None
    assert (status.promise.flipped, status.promise.is_broken, status.open_frames) == (0, False, 0)
    assert (status.frames, status.asked) == ({"certain": 1}, {1: 1})
    assert sum(client.frames["certain"] for client in status.clients) == 1


def test_an_audit_waits_for_room_that_no_client_wants(make: Make, golden: Golden) -> None:
    cell = make(serving="deadline_ms = 20000\ncredit = 1", certain="audit = 1")
    clear = golden.image(certain=[0b0001])
    cell.client.submit(IMAGE, policy="all")
    busy = [device.hear(Kind.FRAME) for device in cell.devices]
    asked = cell.client.submit(IMAGE)
    later = cell.client.submit(IMAGE, mask=0b0010, policy="all")
    cell.say(0, busy[0], clear)
    cell.play(0, clear)
    assert cell.answer(asked).state is State.CERTAIN
    cell.say(1, busy[1], clear)
    wanted = cell.play(1, clear)  # the client's, before the audit's
    assert cell.answer(later).mask == 0b0010
    assert cell.play(1, clear).frame_id < wanted.frame_id


def test_a_broken_promise_has_all_devices_asked_again(make: Make, golden: Golden) -> None:
    cell, clear = make(certain="audit = 1"), golden.image(certain=[0b0001, 0b0010, 0b0100, 0b1000])
    other, audits = golden.other_than(clear), 0
    while cell.client.status().policy == "certain":
        asked = cell.client.submit(IMAGE)
        first = cell.play_any(clear)
        assert cell.answer(asked).state is State.CERTAIN
        for device in sorted({0, 1, 2, 3} - {first}):
            cell.play(device, other)
        audits += 1
        cell.until(lambda status: status.open_frames == 0)
    status = cell.client.status()
    assert status.promise is not None
    assert (status.promise.audited, status.promise.flipped, status.promise.is_broken) == (audits, audits, True)
    assert audits < 10
    assert "the promise of 1.00% flips is broken" in status.events[0].text
    asked = cell.client.submit(IMAGE, policy="certain")
    for device in range(4):
        cell.play(device, clear)
    answer = cell.answer(asked)
    assert (answer.state, answer.policy) == (State.FULL, "all")


def test_a_frame_of_one_device_is_charged_as_its_part_of_the_cell(make: Make, golden: Golden) -> None:
    cell, clear = make(), golden.image(certain=[0b0001])
    asked = cell.client.submit(IMAGE)
    frame = cell.devices[0].hear(Kind.FRAME)
    cell.say(0, frame, clear, inference_us=10**6)  # cut to what the node saw
    (timing,) = cell.answer(asked).devices
    (client,) = cell.client.status().clients
    assert timing.inference_us > 0
    assert client.device_s <= timing.inference_us / 4e6 + 0.01


def test_without_calibration_certain_answers_are_refused_with_what_to_run(tmp_path: Path, bundle: Bundle) -> None:
    fleet = write_fleet(tmp_path, "", "audit = 0").read_text().split("[[device]]")
    path = tmp_path / "fleet.toml"
    with ExitStack() as stack:
        path.write_text("[[device]]".join(fleet[:3]))
        client = Scene(stack, bundle, load_fleet(path), None).client()
        with pytest.raises(InputError, match="policy certain: the bundle does not say when"):
            client.classify(np.zeros((6, 8, 1), np.uint8), policy="certain")
        assert client.status().promise is None
    for table in ('[serving]\npolicy = "certain"', "[serving]\n[certain]\nearly_release = true"):
        path.write_text(fleet[0].partition("[serving]")[0] + table + "\n[[device]]" + "[[device]]".join(fleet[1:3]))
        with pytest.raises(InputError, match="make it again with devit export"):
            FusionNode(bundle, load_fleet(path), None)
