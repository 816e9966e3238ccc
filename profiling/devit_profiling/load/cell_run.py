"""Measures a running cell by a plan of idle and loaded phases, and keeps all raw data of it.

No figure crosses clocks: each device takes its snapshots at the boundaries of a phase on the clock that also stamps its
power samples. The host's own clock is used for latency, answers per second, and to show all devices side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from devit_contract.artefacts.fleet import Device, Fleet
from devit_contract.errors import InputError, LinkError, LostLinkError
from devit_contract.service.progress import Progress
from devit_contract.wire.client import Client, Picture
from devit_profiling.load.load_generator import ImageSet
from devit_profiling.load.measurement import Measurement
from devit_profiling.load.node_power import NodePower
from devit_profiling.record.record import (
    NO_POWER,
    NODE,
    SCHEMA,
    TOGETHER,
    CutShort,
    NodeRecord,
    Plan,
    Recording,
    Run,
    Scenario,
)
from devit_profiling.record.run_folder import new_run, write_recording

_LAST_WORD_S = 2.0


def measure_cell(
    client: Client,
    fleet: Fleet,
    device_names: Sequence[str],
    pictures: Iterable[Picture],
    plan: Plan,
    out: Path,
    progress: Progress,
    calibrations: Path | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> Path:
    """Measure devices of a running cell, and write the raw files to a folder named by UTC time and devices.

    A device without a power sensor has milliseconds alone. The node's machine is sampled where it is this one. Ctrl-C
    or a lost link end the run early: its folder holds what was measured by then, if a phase had ended, and says so.

    Args:
        client: Connected to the fleet's node.
        fleet: Its extras become part of the run.
        device_names: Devices to measure, each once; the others answer too where all work together.
        pictures: Images to send, in turn: a list that is repeated, or an endless iterator.
        plan: Phases and their lengths.
        out: Folder in which the run's own folder is made.
        progress: Told the scenario, the seconds that are done and planned, and the phase.
        calibrations: Folder with calibrations of devices, which become part of the run.
        on_start: Called when all is checked, before anything is measured.

    Raises:
        InputError: A name, an image or the length of the windows is refused, or ``out`` cannot be written.
        ManifestError: A calibration breaks its format, or is of another board.
        LinkError: The node or a device does not answer, or a device's link is lost before the end of the first phase.
    """
    devices = _devices(fleet, device_names, plan)
    folder, started_utc = new_run(out, "-".join(device_names))
    status = client.status()
    for spare in (each.name for each in status.devices if each.is_spare and each.name in device_names):
        raise InputError(f"{spare}: a spare now, so no frames go to it: measure the device that serves in its place")
    scenarios = cell_scenarios(devices, plan)
    measurement = Measurement(client, devices, plan, progress, calibrations)
    on_start()
    with NodePower(client.endpoint, plan.interval_ms, "" if plan.has_power else NO_POWER) as node:
        cut_short, node_after = _take_all(client, measurement, scenarios, _endless(pictures))
    run = Run(
        schema=SCHEMA,
        name=folder.name,
        started_utc=started_utc,
        software=version("devit"),
        bundle=status.bundle,
        pictures=pictures.origin if isinstance(pictures, ImageSet) else "images of the program that measured",
        plan=plan,
        devices=measurement.devices,
        scenarios=tuple(scenario for scenario in scenarios if measurement.has_begun(scenario)),
        phases=tuple(measurement.phases),
        node_before=NodeRecord.of(status),
        node_after=node_after,
        cut_short=cut_short,
        node=node.record,
        extras=tuple(fleet.extra),
        baseline=measurement.baseline,
    )
    write_recording(folder, Recording(run, measurement.lines | {NODE: node.lines}, measurement.answers))
    return folder


def cell_scenarios(devices: Sequence[Device], plan: Plan) -> tuple[Scenario, ...]:
    """List the scenarios of a run in their order: the baseline model, each device alone, all together."""
    alone = [Scenario(f"{device.name} alone", 1 << device.submodel, device.name) for device in devices]
    # First, so that what is missing for it is known before anything was measured.
    baseline = [
        Scenario(f"{device.name} baseline", 1 << device.submodel, device.name, is_baseline=True)
        for device in devices
        if device.name == plan.baseline
    ]
    return (*baseline, *(alone if plan.has_alone else ()), Scenario(TOGETHER, 0))


def raise_if_cut_short(cut_short: CutShort | None) -> None:
    """Raise again what ended a run before its plan did.

    Raises:
        KeyboardInterrupt: It was Ctrl-C or SIGTERM.
        LostLinkError: The link to the node or to a device was lost, or a local engine failed.
    """
    if cut_short is not None:
        raise KeyboardInterrupt if cut_short.is_interrupt else LostLinkError(cut_short.cause)


def _devices(fleet: Fleet, names: Sequence[str], plan: Plan) -> list[Device]:
    if not names:
        raise InputError("no device to measure: name one with --devices")
    for name in names:
        if list(names).count(name) > 1:
            raise InputError(f"device {name!r} is named twice: name it once")
    if plan.baseline and plan.baseline not in names:
        raise InputError(
            f"device {plan.baseline!r} of the baseline model: expected one that is measured: {', '.join(names)}"
        )
    return [fleet.find_device(name) for name in names]


def _take_all(
    client: Client, measurement: Measurement, scenarios: Sequence[Scenario], pictures: Iterator[Picture]
) -> tuple[CutShort | None, NodeRecord | None]:
    """Take all scenarios while power is sampled; return what ended that early, and what the node says after it."""
    timeout_s = client.timeout_s
    cut_short = after = None
    try:
        try:
            measurement.sampling.start()
            for scenario in scenarios:
                measurement.measure(scenario, pictures)
        except (KeyboardInterrupt, LinkError) as err:
            if not measurement.phases:
                raise  # there is nothing to keep
            cut_short = CutShort.by(err, scenario.name, measurement.phases)
            if not cut_short.is_interrupt:
                client.timeout_s = min(timeout_s, _LAST_WORD_S)  # a peer that is lost gets little time to answer
        measurement.sampling.wait_for_tail()
    finally:
        measurement.sampling.stop()
    with suppress(LinkError):
        after = NodeRecord.of(client.status())
    client.timeout_s = timeout_s
    return cut_short, after


def _endless(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """Repeat a list for ever, without keeping what an endless iterator gives."""
    while True:
        found = 0
        for found, picture in enumerate(pictures, 1):  # noqa: B007 - counts
            yield picture
        if not found:
            raise InputError("the images ended before the run did: give a list, which is repeated")
