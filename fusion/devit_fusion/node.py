"""The fusion node: one thread and one poll loop over both ports."""

from __future__ import annotations

import gc
import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.head import Fusion, FusionHead
from devit_contract.artefacts.keys import KeyPair, load_keys
from devit_contract.artefacts.manifest import Bundle
from devit_contract.artefacts.revoked import RevokedKeys, revoked_path
from devit_contract.descriptors import keep_reserve
from devit_contract.errors import AddressError, InputError
from devit_contract.extras import own_version
from devit_contract.machine import process_start_ns
from devit_contract.service.closing import Closing
from devit_contract.service.journal import Log, Priority, Supervisor
from devit_contract.service.lifecycle import ReloadSignal, StopSignal, as_configured
from devit_contract.service.terminal import print_json
from devit_contract.wire.sockets import Authenticator, Context, open_context
from devit_contract.wire.status import NodeStatus
from devit_contract.wire.waiting import Waiter
from devit_contract.wire.words import Question
from devit_fusion.clock import Clock
from devit_fusion.events import Events
from devit_fusion.frames.images import Images
from devit_fusion.frames.scheduler import Scheduler
from devit_fusion.frames.stages import NOT_CALIBRATED
from devit_fusion.handler import Handler
from devit_fusion.ports.clients import ClientPort, Request
from devit_fusion.ports.devices import DevicePort
from devit_fusion.questions import Questions
from devit_fusion.record.door import Door
from devit_fusion.record.records import Start
from devit_fusion.record.start import start_record
from devit_fusion.record.tap import Tap
from devit_fusion.roster.members import allowed_keys, check_fleet, check_submodels, new_link
from devit_fusion.roster.roster import Parts, Roster
from devit_fusion.roster.watched import WatchedFleet
from devit_fusion.standby.nodes import Nodes

_IDLE_NS = 200_000_000
"""Longest wait of the loop: how soon it sees that it should stop."""


def run_node(
    bundle: Path, fleet: Path, key: Path | None = None, *, name: str = "", stop_with_stdin: bool = False
) -> None:
    """Serve until SIGTERM, Ctrl-C or, with ``stop_with_stdin``, the end of standard input; SIGHUP rereads the fleet."""
    should_stop, should_reload = StopSignal(with_stdin=stop_with_stdin), ReloadSignal()
    keep_reserve()
    with ExitStack() as stack:
        with as_configured():
            keys = load_keys(key) if key is not None else None
            revoked = RevokedKeys(revoked_path(fleet))
            watched = WatchedFleet(fleet)
            parts = Bundle(bundle), watched.fleet, keys
            started_ns = process_start_ns()
            made = FusionNode(*parts, revoked=revoked, watched=watched, name=name, started_ns=started_ns)
            node = stack.enter_context(made)
        ready = {"ready": True, "pid": os.getpid(), "endpoint": node.endpoint, "client_endpoint": node.client_endpoint}
        print_json(ready, indent=0)
        node.serve(should_stop, should_reload)


class FusionNode(Closing):
    """Serves one cell; a context manager. Build it, then call :meth:`serve`."""

    def __init__(
        self,
        bundle: Bundle,
        fleet: Fleet,
        keys: KeyPair | None,
        *,
        head: FusionHead | None = None,
        calibration: Calibration | None = None,
        revoked: RevokedKeys | None = None,
        watched: WatchedFleet | None = None,
        log: Log | None = None,
        name: str = "",
        started_ns: int | None = None,
    ) -> None:
        """Bind both ports.

        Of several nodes it is the one with these keys, or without keys the one of that ``name``. ``keys`` are the
        node's own, ``None`` without encryption; ``head`` and ``calibration`` stand for the bundle's. Keys in
        ``revoked`` are not accepted any more; devices and clients change as ``watched`` does, the fleet's file. The
        process started at ``started_ns``, or before; by default it is just starting.

        Raises:
            InputError: Fleet, bundle and keys do not fit together.
            AddressError: An address cannot be bound.
        """
        place = check_fleet(bundle, fleet, keys, name)
        self._node = fleet.nodes[place]
        self._fleet, self._manifest = fleet, bundle.manifest
        fusion = Fusion(head or bundle.fusion_head())
        calibration = _calibration_of(bundle, fleet, calibration)
        self._is_calibrated = calibration is not None
        self._clock = Clock()
        self._start_ns = self._idle_end_ns = self._clock.now_ns
        self._software = own_version()  # from a file: where descriptors have run out, none could be opened
        self._events = Events(log or Log("fusion-node"))
        run_id = secrets.randbits(64)
        self._links = {device.name: new_link(device, fleet.serving) for device in fleet.device}
        self._door = Door(fleet.record.socket)
        self._opened = open_context(io_threads=2)
        context = self._opened.__enter__()
        try:
            self._authenticator = Authenticator(context, allowed_keys(fleet, place)) if keys is not None else None
            self._devices, self._clients = self._open_ports(context, keys, fusion, run_id)
        except AddressError:
            self._opened.__exit__(None, None, None)
            raise
        self.endpoint, self.client_endpoint = self._devices.endpoint, self._clients.endpoint
        """Where devices and clients connect, with the real ports."""
        ports = self._links, self._devices, self._clients
        self._questions = Questions(*ports, self._events)
        self._images = Images(fleet.serving.images, bundle.manifest.preprocess, self._links)
        self._scheduler = self._make_scheduler(fusion, calibration, bundle, run_id)
        self._nodes = self._join_nodes(place, keys, run_id, started_ns)
        self._handler = Handler(self._scheduler, self._questions, self._events, self._nodes)
        parts = Parts(*ports, self._authenticator, self._scheduler.refill, self._nodes.know, self._events)
        self._roster = Roster(parts, fleet, watched, revoked, partial(check_submodels, bundle), place)
        self._tap = self._make_tap(bundle, run_id)

    def close(self) -> None:
        """Close both ports, and end a recording."""
        self._nodes.close()
        self._door.close()
        self._opened.__exit__(None, None, None)

    def serve(self, should_stop: Callable[[], bool], should_reload: Callable[[], bool] = lambda: False) -> None:
        """Run until ``should_stop``; both are called at least five times a second."""
        waiter = Waiter()
        devices, clients = waiter.add_socket(self._devices.socket), waiter.add_socket(self._clients.socket)
        devices_monitor, clients_monitor = self._devices.monitor.descriptor, self._clients.monitor.descriptor
        zap = self._authenticator
        neighbours = set(self._nodes.descriptors())
        for descriptor in (devices_monitor, clients_monitor, *neighbours, *([] if zap is None else [zap.descriptor])):
            waiter.add(descriptor)
        self._tap.join(waiter)
        supervisor = Supervisor()
        supervisor.ready(f"serving {self._manifest.name} {self._manifest.serial}")
        gc.freeze()  # the collector need not look again at what lives as long as the node
        while not should_stop():
            due_ns = self._due_ns()
            # Only what is readable is read: a read in vain costs as much as a message.
            ready = waiter.wait(max(0.0, (due_ns - time.monotonic_ns()) / 1e6))
            if zap is not None and zap.descriptor in ready:
                zap.answer()
            if devices in ready:
                self._devices.receive(self._tap.handler)
            if clients in ready:
                for received in self._clients.receive():
                    if isinstance(received, Request):
                        if received.arrival_ns < self._clients.active_until_ns:
                            self._tap.request(received)
                        else:
                            self._clients.refuse_as_standby(received)
                    elif received.control.question is Question.LEASE:
                        self._nodes.watch(received)
                    else:
                        self._questions.ask(received)
                self._questions.send_status(self._status)
            if neighbours and not neighbours.isdisjoint(ready):
                self._nodes.hear()
            now_ns = time.monotonic_ns()
            if clients_monitor in ready:
                self._clients.watch(now_ns)
            if devices_monitor in ready:
                self._devices.watch(now_ns)
            if now_ns >= due_ns:
                supervisor.alive()
                self._tend(self._clock.tick())
                if should_reload():
                    self._roster.refresh(now_ns, self._tap.handler.lose, at_once=True)
            if now_ns < self._clients.active_until_ns:
                self._scheduler.dispatch_waiting()
            self._tap.look(ready)
            if self._tap.is_on:
                self._tap.end_turn()
        supervisor.stopping()
        self._tap.close()
        self._nodes.stop()

    def _make_scheduler(
        self, fusion: Fusion, calibration: Calibration | None, bundle: Bundle, run_id: int
    ) -> Scheduler:
        ports = self._links, self._devices, self._clients
        return Scheduler(
            fusion,
            self._fleet,
            *ports,
            run_id,
            self._events,
            calibration=calibration,
            accuracies={subset.mask: subset.validation_accuracy for subset in bundle.manifest.subsets},
            images=self._images,
            clock=self._clock,
        )

    def _open_ports(
        self, context: Context, keys: KeyPair | None, fusion: Fusion, run_id: int
    ) -> tuple[DevicePort, ClientPort]:
        node, serving = self._node, self._fleet.serving
        devices = DevicePort(
            context,
            node.endpoint,
            keys,
            links=self._links,
            manifest=self._manifest,
            plausible_norms=fusion.head.plausible_norms(),
            run_id=run_id,
            events=self._events,
            clock=self._clock,
            feature_dtype=serving.feature_dtype,
        )
        clients = ClientPort(
            context,
            node.client_endpoint,
            keys,
            manifest=self._manifest,
            max_pixels=serving.most_pixels,
            policy=serving.policy,
            events=self._events,
            clock=self._clock,
        )
        return devices, clients

    def _make_tap(self, bundle: Bundle, run_id: int) -> Tap:
        def start() -> Start:
            return start_record(bundle, self._roster.fleet, run_id, self._software)

        return Tap(self._door, self._scheduler, self._handler, self._events, self._clock, start)

    def _join_nodes(self, place: int, keys: KeyPair | None, run_id: int, started_ns: int | None) -> Nodes:
        return Nodes(
            self._fleet,
            place,
            keys,
            run_id,
            self._links,
            self._devices,
            self._clients,
            self._events,
            take_over=self._scheduler.take_over,
            give_up=self._scheduler.shed_waiting,
            started_ns=started_ns,
        )

    def _due_ns(self) -> int:
        """Tell when :meth:`_tend` has something to do."""
        due_ns = min(self._idle_end_ns, self._devices.next_probe_ns())
        for other_ns in (
            self._scheduler.next_deadline_ns(),
            self._devices.guard.next_ns(),
            self._clients.guard.next_ns(),
            self._roster.next_ns,
            self._nodes.next_ns(),
        ):
            if other_ns is not None and other_ns < due_ns:
                due_ns = other_ns
        return due_ns

    def _tend(self, now_ns: int) -> None:
        """Do what is due by time rather than by a message."""
        self._idle_end_ns = now_ns + _IDLE_NS
        self._roster.refresh(now_ns, self._tap.handler.lose)
        for link in self._devices.lost(now_ns):
            self._tap.handler.lose(link)
        self._nodes.tend(now_ns)
        self._stop_floods(now_ns)
        self._questions.expire(now_ns)
        if self._tap.is_on:
            self._tap.tended()
        self._scheduler.expire(now_ns)

    def _stop_floods(self, now_ns: int) -> None:
        for name, guard in (("device", self._devices.guard), ("client", self._clients.guard)):
            before = guard.cut
            guard.check(now_ns)
            if guard.cut != before:
                text = f"a {name}'s connection was shut: its message did not end"
                self._events.note("", text, Priority.WARNING)

    def _status(self) -> NodeStatus:
        manifest, serving, promise = self._manifest, self._fleet.serving, self._scheduler.promise
        return NodeStatus(
            bundle=f"{manifest.name} {manifest.serial}",
            labels=manifest.labels,
            image_shape=manifest.preprocess.shape,
            preprocess=manifest.preprocess,
            frames=dict(self._scheduler.answers.ended),
            devices=self._scheduler.device_status(),
            clients=self._scheduler.client_status(),
            heads=self._scheduler.answers.head_status(),
            policy="all" if promise.is_broken and serving.policy == "certain" else serving.policy,
            promise=promise.status() if self._is_calibrated else None,
            asked=dict(self._scheduler.answers.asked),
            images=self._images.now,
            image_choice=self._images.choice,
            views=manifest.views,
            nodes=self._nodes.views(),
            min_devices=serving.min_devices,
            deadline_ms=serving.deadline_ms,
            software=self._software,
            uptime_s=(time.monotonic_ns() - self._start_ns) / 1e9,
            open_frames=self._scheduler.open_frames,
            waiting_requests=self._scheduler.waiting_requests,
            frame_time=self._scheduler.answers.frame_time,
            refused_handshakes=self._devices.failed_handshakes + self._clients.failed_handshakes,
            unknown_peers=self._devices.unknown_peers,
            refused_requests=dict(self._clients.refused),
            floods=self._devices.guard.cut + self._clients.guard.cut,
            events=self._events.latest(),
            fleet=self._roster.status(),
            without_device=tuple(
                sorted(set(range(len(manifest.submodels))) - {link.index for link in self._links.values()})
            ),
            wire_bytes={
                "devices_in": self._devices.bytes_in,
                "devices_out": self._devices.bytes_out,
                "clients_in": self._clients.bytes_in,
                "clients_out": self._clients.bytes_out,
            },
        )


def _calibration_of(bundle: Bundle, fleet: Fleet, given: Calibration | None) -> Calibration | None:
    calibration = given or bundle.calibration()
    if calibration is None and (fleet.serving.policy == "certain" or fleet.certain.early_release):
        raise InputError(f"bundle {bundle.folder}: {NOT_CALIBRATED}, or ask all devices in fleet.toml")
    return calibration
