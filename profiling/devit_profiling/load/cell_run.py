"""Measures a running cell by a plan of idle and loaded phases, and keeps all raw data of it.

No figure crosses clocks: each device takes its snapshots at the boundaries of a phase on the clock that also stamps its
power samples. The host's own clock is used for latency, answers per second, and to show all devices side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from devit_contract.artefacts.files import make_folder
from devit_contract.artefacts.fleet import Device, Extra
from devit_contract.errors import InputError, LinkError
from devit_contract.service.progress import Progress
from devit_contract.wire.client import Client, Picture
from devit_profiling.load.images import Pictures
from devit_profiling.load.measurement import Measurement
from devit_profiling.load.node_power import NodePower
from devit_profiling.load.watch import scenario_s
from devit_profiling.record.calibration import find_calibration
from devit_profiling.record.record import (
    NODE,
    QUICK,
    SCHEMA,
    TOGETHER,
    CutShort,
    NodeRecord,
    Plan,
    Recording,
    Run,
    Scenario,
)
from devit_profiling.record.run_folder import write_recording

__all__ = ["QUICK", "Measurement", "Plan", "planned_s", "run_profile"]


def run_profile(
    client: Client,
    devices: Sequence[Device],
    pictures: Iterable[Picture],
    plan: Plan,
    out: Path,
    progress: Progress,
    *,
    calibrations: Path | None = None,
    extras: Sequence[Extra] = (),
) -> Path:
    """Measure devices of a running cell and write the raw files of the run.

    A device without a power sensor is measured in milliseconds alone. The node's machine is sampled where it is this
    one and has a sensor. Ctrl-C or a lost link stop the sampling and end the run early: the folder holds what had been
    measured by then, and says so. Where no phase had ended there is nothing to keep, and no folder; nor is there one
    after a second Ctrl-C.

    Args:
        client: Connected to the cell's node.
        devices: The devices to measure; others of the cell answer too where the whole cell is asked.
        pictures: What to send, in turn, for as long as it takes: a list that is repeated, or an endless iterator.
        plan: Phases and their lengths.
        out: Folder in which the run's own folder is made.
        progress: Told the scenario, the seconds that are done and planned, and the phase.
        calibrations: Folder in which devices' calibrations are looked for; they become part of the run.
        extras: What else the cell needs.

    Returns:
        The run's folder, named by UTC time and devices.

    Raises:
        InputError: There is no device or no picture, a picture is refused, or ``out`` cannot be written.
        ManifestError: A calibration breaks its format, or is of another board.
        LinkError: The node or a device does not answer, or a device's link is lost before the end of the first phase.
    """
    if not devices:
        raise InputError("expected at least one device to measure, found none: name it with --devices")
    if plan.undivided and plan.undivided not in [device.name for device in devices]:
        names = ", ".join(device.name for device in devices)
        raise InputError(f"device {plan.undivided!r} of the undivided model: expected one that is measured: {names}")
    make_folder(out)  # told now, not after minutes of measuring
    started = datetime.now(timezone.utc)
    name = f"{started:%Y%m%dT%H%M%SZ}-{'-'.join(device.name for device in devices)}"[:_MAX_NAME_CHARS]
    before = NodeRecord.of(client.status())
    descriptions = {device.name: client.describe(device.name) for device in devices}
    found = {name: find_calibration(calibrations, name, about.board_model) for name, about in descriptions.items()}
    scenarios = _scenarios(devices, plan)
    measurement = Measurement(client, devices, plan, progress)
    timeout_s = client.timeout_s
    with NodePower(client.endpoint, plan.interval_ms) as node:
        try:
            cut_short = _measure(measurement, scenarios, _endless(pictures))
            if cut_short is not None and not cut_short.is_interrupt:
                client.timeout_s = min(timeout_s, _LAST_WORD_S)  # whoever is lost is not waited for as before
            measurement.let_samples_arrive()
        finally:
            measurement.stop_sampling()
    after = _after(client)
    client.timeout_s = timeout_s
    begun = {phase.scenario for phase in measurement.phases}
    run = Run(
        schema=SCHEMA,
        name=name,
        started_utc=f"{started:%Y-%m-%d %H:%M:%S}",
        software=version("devit"),
        pictures=pictures.origin if isinstance(pictures, Pictures) else "images of the program that measured",
        plan=plan,
        devices=measurement.records(descriptions, found),
        scenarios=tuple(scenario for scenario in scenarios if scenario.name in begun),
        phases=tuple(measurement.phases),
        before=before,
        after=after,
        cut_short=cut_short,
        node=node.record,
        extras=tuple(extras),
        undivided=measurement.undivided,
    )
    lines = {name: tuple(lines) for name, lines in measurement.lines.items()} | {NODE: node.lines}
    write_recording(out / name, Recording(run, lines, measurement.answers))
    return out / name


def planned_s(devices: Sequence[Device], plan: Plan) -> float:
    """Tell how long a run of devices is meant to take; a slow device's warm-up takes longer."""
    return sum(scenario_s(plan, scenario) for scenario in _scenarios(devices, plan))


_MAX_NAME_CHARS = 120
_LAST_WORD_S = 2.0


def _measure(measurement: Measurement, scenarios: Sequence[Scenario], pictures: Iterator[Picture]) -> CutShort | None:
    """Take all scenarios; what ends that early is told, if there is anything to keep."""
    try:
        measurement.start_sampling()
        for scenario in scenarios:
            measurement.measure(scenario, pictures)
    except (KeyboardInterrupt, LinkError) as err:
        if not measurement.phases:
            raise
        return measurement.cut_short(err)
    return None


def _after(client: Client) -> NodeRecord | None:
    try:
        return NodeRecord.of(client.status())
    except LinkError:
        return None


def _endless(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """Repeat a list for ever, without keeping what an endless iterator gives."""
    while True:
        found = 0
        for found, picture in enumerate(pictures, 1):  # noqa: B007 - counts
            yield picture
        if not found:
            raise InputError("expected pictures for as long as the run takes, found no more: give a list of them")


def _scenarios(devices: Sequence[Device], plan: Plan) -> tuple[Scenario, ...]:
    alone = [Scenario(f"{device.name} alone", 1 << device.submodel, device.name) for device in devices]
    # First, so that what is missing for it is told before anything was measured.
    undivided = [
        Scenario(f"{device.name} undivided", 1 << device.submodel, device.name, is_undivided=True)
        for device in devices
        if device.name == plan.undivided
    ]
    return (*undivided, *(alone if plan.has_alone else ()), Scenario(TOGETHER, 0))
