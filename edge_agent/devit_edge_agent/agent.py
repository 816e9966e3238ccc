"""The edge agent: one thread and one poll loop that turns images into features, and samples power when asked to."""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.manifest import check_image
from devit_contract.errors import DeviceLostError, EnergyError, EngineError, InputError, RefusedError, WireError
from devit_contract.machine import over_current_events
from devit_contract.service.closing import Closing
from devit_contract.service.journal import Log, Priority, Supervisor
from devit_contract.wire.codec import Dtype, Kind, Message, Reason, array_payload
from devit_contract.wire.messages import Control, ControlReply, Mark, Telemetry, body, read_body
from devit_contract.wire.waiting import Waiter
from devit_contract.wire.words import Question
from devit_edge_agent.engine.baseline_model import BaselineModel
from devit_edge_agent.engine.inference import Inference
from devit_edge_agent.engine.loading import Loaded, Settings, describe
from devit_edge_agent.engine.swap import Swap, retire
from devit_edge_agent.sensors.over_current import OverCurrentWatch
from devit_edge_agent.sensors.power import PowerFeed
from devit_edge_agent.sensors.throttling import ThrottlingWatch
from devit_edge_agent.sources.moments import Moments
from devit_edge_agent.sources.source import Captured, Source
from devit_edge_agent.uplink import Uplink
from devit_edge_agent.uplinks import Uplinks

_IDLE_POLL_MS = 200
"""Longest wait of the loop: how soon it sees that it should stop."""
_FOLDER_PERIOD_MS = 33
"""Pace of a free-running folder, about a camera's."""
_SHUTDOWN_NS = 2_000_000_000
"""How long a stopping agent may finish its queued frames, and wait for the node to know."""


class EdgeAgent(Closing):
    """Serves one engine; a context manager. Build it, then call :meth:`serve`."""

    def __init__(
        self,
        settings: Settings,
        loaded: Loaded,
        source: Source | None,
        *,
        log: Log,
        on_ready: Callable[[], None] = lambda: None,
        started_ns: int | None = None,
    ) -> None:
        """Connect to the nodes in the background; engine and source are closed with the agent.

        ``on_ready`` is called once, when a node has accepted this device. The process started at ``started_ns``, or
        before; by default it is just starting.
        """
        self._config = settings.config
        self._loaded = loaded
        self._source = source
        self._log = log
        self._on_ready = on_ready
        self._queue: deque[tuple[Message, int]] = deque()  # frames and triggers for the engine, and when each came
        self._withdrawn: set[tuple[int, int]] = set()  # frames of the queue, by run, that are not needed any more
        self._questions: deque[Message] = deque()
        self._newest: Inference | None = None
        self._moments: Moments[Captured | Inference] = Moments(self._config.submodel, self._capture)
        self._inferences = 0
        self._busy_ns = 0
        self._has_served = False
        self._refusal = ""
        self._left = 0
        self._next_free_ns = 0
        self._next_throttled_ns = 0
        is_paced = self._config.free_running and source is not None and source.fileno() < 0
        self._idle_poll_ms = _FOLDER_PERIOD_MS if is_paced else _IDLE_POLL_MS
        self._problem = ""
        self._supervisor = Supervisor()
        self._swap = Swap(settings, log)
        self._baseline = BaselineModel(settings, log)
        self._power = PowerFeed(self._config.tegrastats)
        self._over_current = OverCurrentWatch(Path(self._config.root))
        self._throttling = ThrottlingWatch(Path(self._config.root))
        started_ns = time.monotonic_ns() if started_ns is None else started_ns
        introduced = loaded.hello, loaded.engine.revision
        self._uplinks = Uplinks(self._config, settings.keys, log, *introduced, started_ns=started_ns)
        self._sampler_run = 0  # of the node that power samples go to
        self._waiter = Waiter()
        self._uplinks.wait_with(self._waiter)
        self._waiter.add(self._swap.fileno())
        if source is not None and source.fileno() >= 0:
            self._waiter.add(source.fileno())
        self._supervisor.starting("waiting for the node")

    def close(self) -> None:
        """Stop sampling, close link, source and engine."""
        self._power.stop()
        self._uplinks.close()
        self._baseline.close()
        self._swap.close()
        if self._source is not None:
            self._source.close()
        self._loaded.engine.close()

    def serve(self, should_stop: Callable[[], bool], should_reload: Callable[[], bool] = lambda: False) -> None:
        """Run until ``should_stop``, then disconnect from the node and finish the queued frames.

        Both functions are called at least five times a second. If ``should_reload`` is true, the engine is loaded again
        and takes over if it is good.

        Raises:
            RefusedError: The node refuses this device or its bundle, and has never accepted it.
        """
        gc.freeze()  # the collector need not look again at what lives as long as the agent
        while not should_stop():
            if should_reload():
                self._swap.start()
            self._turn()
        self._supervisor.stopping()
        runs = self._uplinks.runs()
        for run_id in runs:
            self._send(Kind.LEAVE, run_id)
        end_ns = time.monotonic_ns() + _SHUTDOWN_NS
        while self._uplinks.runs() and (self._queue or self._left < len(runs)) and time.monotonic_ns() < end_ns:
            self._turn()
        for message, _ in self._queue:
            self._skip(message, Reason.STOPPING)

    def _turn(self) -> None:
        is_busy = (self._queue and not self._uplinks.is_introducing) or self._questions
        ready = self._waiter.wait(0 if is_busy else self._idle_poll_ms)
        self._supervisor.alive()
        for uplink, descriptor in self._uplinks.watched:
            run_id = uplink.run_id
            if uplink.watch(has_events=uplink.monitor.descriptor in ready):
                self._unlinked(run_id, "waiting for the node")
            if descriptor in ready:
                self._receive(uplink)
        if self._questions:  # one a turn: frames and signs of life come between
            self._control(self._questions.popleft())
        self._power.feed(self._config.name, self._send_samples)
        offered = self._swap.take_loaded()
        if offered is not None:
            self._uplinks.introduce(offered.hello, offered.engine.revision)
        elif self._swap.is_offered and not self._uplinks.is_introducing and self._uplinks.runs():
            self._take_over()  # the node that is worked for now has welcomed it, when another one was
        self._baseline.tend()
        if self._source is not None:
            self._tend_source(self._source)
        if self._config.free_running and self._source is not None:
            self._run_free(self._source)
        if self._queue and not self._uplinks.is_introducing:
            self._run(*self._queue.popleft())

    def _receive(self, uplink: Uplink) -> None:
        run_id = uplink.run_id
        try:
            for message in uplink.receive():
                try:
                    self._take(uplink, message)
                except WireError as err:
                    self._log_throttled(f"a message of the node was not used: {err}")
        except RefusedError as err:
            if self._swap.is_offered and self._uplinks.decides(uplink):
                self._swap.refuse(str(err))
                self._uplinks.introduce(self._loaded.hello, self._loaded.engine.revision)
            elif self._has_served or self._config.standby:
                self._refused(uplink, run_id, str(err))
            else:
                raise

    def _refused(self, uplink: Uplink, run_id: int | None, text: str) -> None:
        """Try again: another agent may have taken the name for a while, or the node has a new bundle already."""
        if text != self._refusal:
            self._refusal = text
            self._log.log(Priority.ERROR, f"{text}; trying again")
        uplink.try_again()
        self._unlinked(run_id, f"trying again, {text}")

    def _unlinked(self, run_id: int | None, status: str) -> None:
        """Drop what belonged to the link that has ended."""
        self._queue = deque(each for each in self._queue if each[0].run_id != run_id)
        self._withdrawn &= {(frame.run_id, frame.frame_id) for frame, _ in self._queue}
        self._moments.forget(run_id)
        self._questions = deque(question for question in self._questions if question.run_id != run_id)
        if run_id == self._sampler_run:
            self._power.stop()
        if not self._uplinks.runs():
            self._baseline.free()
            self._supervisor.waiting(status)

    def _take(self, uplink: Uplink, message: Message) -> None:
        if message.kind is Kind.FRAME or message.kind is Kind.TRIGGER:
            is_kept = message.kind is Kind.TRIGGER and self._loaded.has_own_view
            if not is_kept or self._moments.hears(message):
                self._queue.append((message, time.monotonic_ns()))
        elif message.kind is Kind.WITHDRAW:  # skipped in its turn: the node expects answers in the order of the frames
            withdrawn = message.run_id, message.frame_id
            self._withdrawn |= {withdrawn} & {(frame.run_id, frame.frame_id) for frame, _ in self._queue}
        elif message.kind is Kind.WELCOME:
            self._welcomed(uplink)
        elif message.kind is Kind.CONTROL:
            if not self._uplinks.vote(message):  # a lease is short, so that is answered at once
                self._questions.append(message)
        elif message.kind is Kind.LEAVE:
            self._left += 1
        else:
            raise WireError("kind", f"expected a node's message, found {message.kind.name}")

    def _take_over(self) -> None:
        before, self._loaded, self._newest = self._loaded, self._swap.take_over(), None
        retire(before.engine, self._log)

    def _welcomed(self, uplink: Uplink) -> None:
        if self._swap.is_offered and self._uplinks.decides(uplink):
            self._take_over()
        self._has_served, self._refusal = True, ""
        text = f"ready, {self._loaded.hello.engine}"
        self._log.log(Priority.INFO, text)
        self._supervisor.ready(text)
        self._on_ready()
        self._on_ready = lambda: None
        # Beside the loop, as the first picture file would else be late for it.
        threading.Thread(target=import_module, args=("devit_contract.artefacts.preprocess",), daemon=True).start()

    def _run(self, message: Message, read_ns: int) -> None:
        start_ns = time.monotonic_ns()
        if (frame := (message.run_id, message.frame_id)) in self._withdrawn:
            self._withdrawn.remove(frame)
            self._skip(message, Reason.WITHDRAWN)
            return
        if not self._uplinks.works_for(message.run_id, start_ns):
            self._skip(message, Reason.OTHER_NODE)
            return
        if message.deadline_us and start_ns - read_ns >= message.deadline_us * 1000:
            self._skip(message, Reason.EXPIRED)
            return
        try:
            inference = (self._triggered if message.kind is Kind.TRIGGER else self._framed)(message, start_ns)
            feature = None if inference is None else inference.as_sent(self._uplinks.feature_dtype(message.run_id))
        except (InputError, WireError):
            self._skip(message, Reason.DECODE)
            return
        except DeviceLostError:
            self._skip(message, Reason.ENGINE)
            raise  # nothing in this process can bring the GPU back
        except EngineError as err:
            self._log_throttled(f"the engine failed on a frame: {err}")
            self._skip(message, Reason.ENGINE)
            return
        if inference is None or feature is None:
            self._skip(message, Reason.NO_SOURCE)
            return
        dtype, dims, payload = array_payload(feature)
        age_us = (time.monotonic_ns() - inference.captured_ns) // 1000 if inference.captured_ns else 0
        self._uplinks.send(
            Message(
                Kind.FEATURE,
                dtype,
                dims,
                payload,
                device=self._config.submodel,
                engine_revision=self._loaded.engine.revision,
                run_id=message.run_id,
                frame_id=message.frame_id,
                boot_id=self._uplinks.boot_id,
                dispatch_ns=message.dispatch_ns,
                queue_us=(start_ns - read_ns) // 1000,
                decode_us=inference.decode_us,
                inference_us=inference.inference_us,
                capture_age_us=min(age_us, 0xFFFFFFFF),
            )
        )

    def _framed(self, message: Message, start_ns: int) -> Inference:
        """Run the engine on an image that the node sent."""
        if message.dtype is Dtype.ENCODED:
            from devit_contract.artefacts.preprocess import decode_coded, decode_image  # see _welcomed

            decode = decode_image if message.is_file else decode_coded
            image = decode(message.payload, self._loaded.preprocess, "frame")
        else:
            image = message.array()
            check_image(image, self._loaded.preprocess)
        return self._infer(image, start_ns)

    def _triggered(self, message: Message, start_ns: int) -> Inference | None:
        """Run the engine on an image of the own source: of now, or with an own view of when the trigger came."""
        is_kept = self._loaded.has_own_view
        captured = self._moments.take(message) if is_kept else self._capture(message.frame_id)
        if isinstance(captured, Captured):
            return self._infer(captured.image, start_ns, captured.captured_ns)
        return captured

    def _capture(self, frame_id: int) -> Captured | Inference | None:
        """Take the newest image of the own source; a free-running one has its newest feature ready."""
        if self._source is None:
            return None
        if self._config.free_running:
            # A feature of the last image before the source failed would be out of date.
            if self._source.problem or self._newest is None:
                return None
            # It was there before the trigger, so it cost the frame no time.
            return replace(self._newest, decode_us=0, inference_us=0)
        return self._source.newest(frame_id)

    def _tend_source(self, source: Source) -> None:
        source.pump()
        if source.problem != self._problem:
            self._problem = source.problem
            self._log.log(Priority.WARNING, f"source: {self._problem or 'images come again'}")

    def _run_free(self, source: Source) -> None:
        start_ns = time.monotonic_ns()
        if source.fileno() < 0 and start_ns < self._next_free_ns:
            return  # a folder always has a next picture
        self._next_free_ns = start_ns + _FOLDER_PERIOD_MS * 1_000_000
        captured = source.take_new()
        if captured is None:
            return
        try:
            self._newest = self._infer(captured.image, start_ns, captured.captured_ns)
        except EngineError as err:
            if isinstance(err, DeviceLostError):
                raise  # nothing in this process can bring the GPU back
            self._newest = None
            self._log_throttled(f"the engine failed on an image of the own source: {err}")

    def _log_throttled(self, text: str) -> None:
        """Log an error that every frame may repeat, at most once a second."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_throttled_ns:
            self._next_throttled_ns = now_ns + 1_000_000_000
            self._log.log(Priority.ERROR, text)

    def _infer(self, image: UInt8Array, start_ns: int, captured_ns: int = 0) -> Inference:
        decoded_ns = time.monotonic_ns()
        feature = self._loaded.engine.features(image[np.newaxis])[0]  # (1, H, W, C) -> (1, dim) -> (dim,)
        done_ns = time.monotonic_ns()
        self._inferences += 1
        self._busy_ns += done_ns - decoded_ns
        return Inference(feature, (decoded_ns - start_ns) // 1000, (done_ns - decoded_ns) // 1000, captured_ns)

    def _control(self, message: Message) -> None:
        try:
            reply = self._reply(read_body(message, Control), message.run_id)
        except (WireError, EngineError, EnergyError) as err:  # a WireError: e.g. a question of a newer version
            reply = ControlReply(error=f"{self._config.name}: {err}")
        self._send(Kind.CONTROL, message.run_id, body(reply), frame_id=message.frame_id)

    def _send_samples(self, telemetry: Telemetry) -> None:
        self._send(Kind.TELEMETRY, self._sampler_run, body(telemetry))

    def _reply(self, control: Control, run_id: int) -> ControlReply:
        question, baseline = control.question, self._baseline
        if question is Question.DESCRIBE:
            return ControlReply(description=describe(self._loaded, Path(self._config.root)))
        if question is Question.MARK:
            baseline.keep()
            counted = self._inferences, self._busy_ns, baseline.inferences, baseline.busy_ns
            events = over_current_events(Path(self._config.root))
            return ControlReply(mark=Mark(time.monotonic_ns(), *counted, events))
        if question is Question.BASELINE:
            return ControlReply(baseline=baseline.ask(control.step, self._loaded))
        if question is Question.SAMPLE_START:
            self._sampler_run = run_id
            self._power.start(control.interval_ms, self._waiter)
        elif question is Question.SAMPLE_STOP:
            self._power.stop()
            return ControlReply(sampling=self._power.cost)
        elif question is Question.STATUS:
            raise WireError("question", f"only the node answers {str(question)!r}")
        elif question is Question.PING:
            return ControlReply(over_current=self._over_current.since_start(), throttling=self._throttling.now())
        return ControlReply()

    def _send(self, kind: Kind, run_id: int, payload: bytes = b"", *, frame_id: int = 0) -> None:
        message = Message(
            kind,
            Dtype.BODY if payload else Dtype.NONE,
            payload=payload,
            run_id=run_id,
            frame_id=frame_id,
            boot_id=self._uplinks.boot_id,
        )
        self._uplinks.send(message)

    def _skip(self, message: Message, reason: Reason) -> None:
        self._uplinks.send(
            Message(
                Kind.SKIP,
                device=self._config.submodel,
                reason=reason,
                run_id=message.run_id,
                frame_id=message.frame_id,
                boot_id=self._uplinks.boot_id,
                dispatch_ns=message.dispatch_ns,
            )
        )
