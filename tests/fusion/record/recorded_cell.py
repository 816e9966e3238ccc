"""A cell of four devices in threads, which answer, err and go as a seed says, and its recording."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import zmq
from tests.fusion.hand_made_devices import DEADLINE_S, Device, Scene

import devit_pipeline
from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.fleet import Certain, Fleet, Node, Record, Serving
from devit_contract.artefacts.fleet import Device as FleetDevice
from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Policy
from devit_contract.wire.client import Answer
from devit_contract.wire.codec import Kind, Reason, pack, unpack
from devit_fusion.record.file import Ring
from devit_fusion.record.recorder import Images, Recorded, Recorder, record

SHIPPED = Path(devit_pipeline.__file__).parent / "fashion_mnist" / "bundle"
DEADLINE_MS = 150.0


class Played(threading.Thread):
    """One device: it answers with the golden image's feature that a frame's first pixel names."""

    def __init__(self, scene: Scene, golden: dict[str, np.ndarray], submodel: int, seed: int, *, is_calm: bool) -> None:
        super().__init__(daemon=True)
        self._scene, self._submodel, self.is_calm = scene, submodel, is_calm
        self._images, self._features = golden["images"], golden[f"features.{submodel}"]
        self._chance = random.Random(seed)
        self.should_stop = threading.Event()
        self._device = self._greeted()

    def run(self) -> None:
        while not self.should_stop.is_set():
            if not self._device.socket.poll(20, zmq.POLLIN):
                continue
            message = unpack(self._device.socket.recv())
            if message.kind is not Kind.FRAME:
                continue
            what = 1.0 if self.is_calm else self._chance.random()
            if what < 0.004:
                self._device.close()  # as if its power was cut
                self._device = self._greeted()
            elif what < 0.03:
                self._device.skip(message, Reason.ENGINE)
            elif what >= 0.031:  # else it says nothing
                if what > 0.99 and self._submodel == 3 and not self.is_calm:
                    time.sleep(self._chance.uniform(0.5, 1.2) * DEADLINE_MS / 1000)
                number = int.from_bytes(bytes(message.payload[:2]), "little")
                data = unpack(self._device.feature(message, np.asarray(self._features[number], np.float32)))
                self._device.socket.send(pack(msgspec.structs.replace(data, inference_us=self._chance.randrange(900))))

    def _greeted(self) -> Device:
        end_s = time.monotonic() + DEADLINE_S
        while True:
            device = self._scene.device(self._submodel)
            device.hello = msgspec.structs.replace(device.hello, can_withdraw=True)
            if device.greet().kind is Kind.WELCOME:
                return device
            device.close()  # the node has not noticed that the one before is gone
            assert time.monotonic() < end_s


class RecordedCell:
    """A node that is recorded, its devices, and a client."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        *,
        seed: int = 1,
        is_calm: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        bundle = Bundle(SHIPPED)
        golden = bundle.golden()
        fleet = Fleet(
            2,
            Node("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
            tuple(FleetDevice(f"jetson{index}", index) for index in range(4)),
            Serving(deadline_ms=DEADLINE_MS, credit=3),
            Certain(audit=0.3),
            record=Record(str(folder / "record.sock")),
        )
        self.bundle, self.golden, self.folder = bundle, golden, folder / "recorded"
        self.scene = Scene(stack, bundle, fleet, None, calibration=calibration)
        self._stack = stack
        self._should_stop, self.found = threading.Event(), [Recorded()]
        self._writer = threading.Thread()
        self.devices = [Played(self.scene, golden, index, seed * 10 + index, is_calm=is_calm) for index in range(4)]
        for device in self.devices:
            device.start()
            stack.callback(device.join, DEADLINE_S)
            stack.callback(device.should_stop.set)
        self.client = self.scene.client()
        self.client.status()

    def begin(self, *, images: Images = "whole", max_bytes: int = 1 << 30) -> None:
        """Record from now on."""
        recorder = self._stack.enter_context(Recorder(self.folder.parent / "record.sock"))
        ring = Ring(self.folder, max_bytes)
        self._writer = threading.Thread(target=self._record, args=(recorder, ring, images), daemon=True)
        self._writer.start()
        end_s = time.monotonic() + DEADLINE_S
        while not any("is told all" in event.text for event in self.client.status().events):
            assert time.monotonic() < end_s

    def _record(self, recorder: Recorder, ring: Ring, images: Images) -> None:
        self.found[0] = record(recorder, ring, images, self._should_stop.is_set)

    def ask(self, count: int, policies: Sequence[Policy], *, in_flight: int = 3) -> list[Answer]:
        """Ask for so many golden images, some at the same time; the first pixels name the image."""
        answers: list[Answer] = []
        open_requests = 0
        for number in range(count):
            image = np.array(self.golden["images"][number % 64], np.uint8)
            image.reshape(-1)[:2] = np.frombuffer((number % 64).to_bytes(2, "little"), np.uint8)
            self.client.submit(image, policy=policies[number % len(policies)])
            open_requests += 1
            while open_requests >= in_flight:
                for _, answer in self.client.collect(DEADLINE_S):
                    assert isinstance(answer, Answer)
                    answers.append(answer)
                    open_requests -= 1
        while open_requests:
            for _, answer in self.client.collect(DEADLINE_S):
                assert isinstance(answer, Answer)
                answers.append(answer)
                open_requests -= 1
        return answers

    def stop(self) -> Recorded:
        """End the recording."""
        self._should_stop.set()
        self._writer.join(DEADLINE_S)
        assert not self._writer.is_alive()
        return self.found[0]
