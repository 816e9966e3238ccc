"""The demo: the whole pipeline on this machine, from a bundle to answers and joules, on simulated boards."""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from devit_contract.arrays import Int64Array, UInt8Array
from devit_contract.artefacts.files import check_replaceable, exclusive_lock, make_folder, read_tensors
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import DevitError, InputError
from devit_contract.service.progress import Progress
from devit_contract.wire.client import Answer, Client
from devit_contract.wire.codec import State
from devit_engines.building.backends import RunSettings
from devit_engines.building.build_all import build_engines, load_engine
from devit_engines.building.build_one import BuiltEngine
from devit_engines.building.store import Store
from devit_pipeline.local_cell import LocalCell, LocalDevice
from devit_profiling.figures.analysis import Report
from devit_profiling.figures.interval import mean_of
from devit_profiling.load.cell_run import measure_cell, raise_if_cut_short
from devit_profiling.record.record import QUICK
from devit_profiling.report.report import write_report

SHIPPED = Path(__file__).parent / "fashion_mnist"
"""Bundle and test images that come with this package."""
BOARD_MODEL = "NVIDIA Jetson Orin Nano Developer Kit (SIMULATED)"

_MARKER = ".devit-demo"
"""Marks a folder that a demo may empty and remove."""
_IN_FLIGHT = 4
_KILLED_SUBMODEL = 2
"""Its agent is killed in the second pass."""
_PROFILED = ("jetson1", "jetson2")
_TEACHER_BATCH = 50


class Figures(msgspec.Struct, frozen=True):
    """What the demo measured; accuracies in 0 to 1 over the test images."""

    bundle: str
    images: int
    engines_cached: int
    engines_built: int
    teacher_accuracy: float | None
    """Absent where the bundle has no baseline model."""
    full_accuracy: float
    partial_accuracy: float
    """With one of the agents killed."""
    killed_device: str
    partial_mask: int
    answers: dict[str, int]
    """By state, over both passes."""
    frames_per_s: float
    """Full cell."""
    partial_frames_per_s: float
    """From the kill to the end of the pass."""
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    slowest_device: str
    """The device whose feature was most often the last, and its share of the frames."""
    wire_bytes_per_answer: float
    """Between node and devices, both ways."""
    energy_note: str
    """``SIMULATED``, always, as no board is here."""
    joules_per_answer: dict[str, float | None]
    """Device to total energy per inference, SIMULATED; ``None`` where not measured."""
    duration_s: float
    report: str
    """Path of report.html."""


@dataclass(frozen=True)
class _Pass:
    """One pass over the test images."""

    answers: list[Answer]
    labels: Int64Array
    duration_s: float
    wire_bytes: int
    """Between node and devices, both ways."""
    killed_after_s: float = 0.0
    """When an agent was killed; 0 if none was."""

    @property
    def counted(self) -> list[tuple[Answer, int]]:
        """Answers and labels: all, or the partial ones if an agent was killed."""
        pairs = zip(self.answers, self.labels.tolist(), strict=True)
        return [pair for pair in pairs if not self.killed_after_s or pair[0].state is State.PARTIAL]

    @property
    def accuracy(self) -> float:
        """Share of the counted frames that were answered right; a failed frame is wrong."""
        right = [answer.logits is not None and int(answer.logits.argmax()) == label for answer, label in self.counted]
        return sum(right) / len(right)

    @property
    def frames_per_s(self) -> float:
        """From the kill on, if there was one."""
        return len(self.counted) / (self.duration_s - self.killed_after_s)

    def latency_ms(self, percentile: float) -> float:
        """Percentile of the latencies of all answers."""
        return 1000 * float(np.percentile([answer.latency_s for answer in self.answers], percentile))

    @property
    def mask(self) -> int:
        """The devices of most of the counted answers."""
        masks = [answer.mask for answer, _ in self.counted]
        return max(set(masks), key=masks.count)


@contextmanager
def demo_cell(
    bundle: Path, folder: Path, progress: Progress, store: Path | None = None, *, http: str = "", port: int = 0
) -> Iterator[LocalCell]:
    """Build this machine's engines and bring a cell up: one agent a submodel, on simulated boards.

    ``folder`` takes the fleet file, keys and logs; when the block ends, only the logs stay, until the next cell's. The
    rest is as in :class:`LocalCell`.

    Raises:
        InputError: The folder holds something else, or another demo is running in it.
    """
    with _claimed(folder):
        _build(Bundle(bundle), Store(store), progress)
        with _cell(bundle, folder, store, progress, http, port) as cell:
            yield cell


def run_demo(bundle_folder: Path, out: Path, progress: Progress, store: Path | None = None) -> Figures:
    """Run every stage once and measure it; ``out`` takes the profiler's runs, and no ``store`` is the user's default.

    Raises:
        DevitError: A stage failed; the text names it.
    """
    start_s = time.monotonic()
    bundle = Bundle(bundle_folder)
    images, labels = test_images(bundle)
    count = len(bundle.manifest.submodels)
    if count <= _KILLED_SUBMODEL:
        raise InputError(
            f"{bundle_folder}: expected at least {_KILLED_SUBMODEL + 1} submodels, found {count}: "
            "add --serve to bring such a cell up"
        )
    make_folder(out)  # an error is raised now, not at the end
    built = _build(bundle, Store(store), progress)
    teacher_accuracy = _teacher_accuracy(bundle, Store(store), images, labels, progress)
    with _passing_cell(bundle_folder, store, progress) as cell, cell.client() as client:
        full = _pass(client, images, labels, progress, "full cell")
        killed = list(cell.devices)[_KILLED_SUBMODEL]
        partial = _pass(client, images, labels, progress, f"without {killed}", kill=lambda: cell.kill(killed))
        progress("restart", 0, 1, killed)
        cell.start_agents([killed])
        progress("restart", 1, 1, f"{killed} is back")
        run = measure_cell(client, cell.fleet, _PROFILED, itertools.cycle(images), QUICK, out, progress)
        report = write_report(run)
        raise_if_cut_short(report.cut_short)
    states = [answer.state.name.lower() for answer in (*full.answers, *partial.answers)]
    return Figures(
        bundle=f"{bundle.manifest.name} {bundle.manifest.serial}",
        images=len(labels),
        engines_cached=sum(engine.was_cached for engine in built),
        engines_built=sum(not engine.was_cached for engine in built),
        teacher_accuracy=teacher_accuracy,
        full_accuracy=full.accuracy,
        partial_accuracy=partial.accuracy,
        killed_device=killed,
        partial_mask=partial.mask,
        answers={state: states.count(state) for state in sorted(set(states))},
        frames_per_s=full.frames_per_s,
        partial_frames_per_s=partial.frames_per_s,
        latency_p50_ms=full.latency_ms(50),
        latency_p95_ms=full.latency_ms(95),
        latency_p99_ms=full.latency_ms(99),
        slowest_device=_slowest(full.answers, list(cell.devices)),
        wire_bytes_per_answer=full.wire_bytes / len(full.answers),
        energy_note="SIMULATED",
        joules_per_answer=_joules(report),
        duration_s=time.monotonic() - start_s,
        report=str(run / "report.html"),
    )


def test_images(bundle: Bundle) -> tuple[UInt8Array, Int64Array]:
    """Read the shipped test images, uint8 ``(1000, H, W, C)``, and their labels.

    Raises:
        InputError: The bundle takes other images than these.
    """
    tensors = read_tensors(SHIPPED / "test-images.safetensors", "install the package again")
    images: UInt8Array = tensors["images"]
    labels: Int64Array = tensors["labels"]
    if bundle.manifest.views == "own":
        raise InputError(
            f"{bundle.folder}: expected a bundle whose devices see the same image, found own views: "
            "simulate its cameras by devit views"
        )
    expected = bundle.manifest.preprocess.shape
    if images.shape[1:] != expected:
        raise InputError(
            f"{bundle.folder}: expected a bundle for the demo's images {images.shape[1:]}, found one for {expected}"
        )
    return images, labels


def _build(bundle: Bundle, store: Store, progress: Progress) -> list[BuiltEngine]:
    has_baseline = bundle.manifest.baseline is not None
    return build_engines(bundle, store, baseline=has_baseline, backend="ort", progress=progress)


def _teacher_accuracy(
    bundle: Bundle, store: Store, images: UInt8Array, labels: Int64Array, progress: Progress
) -> float | None:
    if bundle.manifest.baseline is None:
        return None
    correct = 0
    with load_engine(bundle, store, "baseline", backend="ort", settings=RunSettings(threads=2)) as engine:
        for start in range(0, len(images), _TEACHER_BATCH):
            logits = engine.features(images[start : start + _TEACHER_BATCH])
            correct += int((logits.argmax(axis=1) == labels[start : start + _TEACHER_BATCH]).sum())
            progress("baseline model", start + _TEACHER_BATCH, len(images))
    return correct / len(images)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Empty a folder, lock other demos out, and leave nothing but logs at the end."""
    check_replaceable(folder, _MARKER)
    make_folder(folder)
    busy = InputError(f"{folder}: another demo is running there: stop it, or choose another --out")
    with exclusive_lock(folder / _MARKER, busy=busy):  # not of the folder: devit keys revoke waits for that lock
        try:
            _remove_all_but(folder, _MARKER)
            yield
        finally:
            _remove_all_but(folder, _MARKER, "logs")
            if not (folder / "logs").exists():
                shutil.rmtree(folder, ignore_errors=True)


def _remove_all_but(folder: Path, *kept: str) -> None:
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


@contextmanager
def _passing_cell(bundle: Path, store: Path | None, progress: Progress) -> Iterator[LocalCell]:
    """Bring a cell up for this process alone, in a folder of which the logs stay if something fails."""
    folder, kept = Path(tempfile.mkdtemp(prefix="devit-demo-")), ""
    try:
        with _cell(bundle, folder, store, progress) as cell:
            yield cell
    except DevitError:
        kept = "logs"
        raise
    finally:
        _remove_all_but(folder, kept)
        if not kept:
            folder.rmdir()


@contextmanager
def _cell(
    bundle: Path,
    folder: Path,
    store: Path | None,
    progress: Progress,
    http: str = "",
    port: int = 0,
) -> Iterator[LocalCell]:
    count = len(Bundle(bundle).manifest.submodels)
    root = folder / "board"
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/model").write_text(BOARD_MODEL + "\0")
    simulator = (sys.executable, "-m", "devit_profiling.simulator.program", "--board", "orin-nano", "--seed")
    devices = [
        LocalDevice(f"jetson{index + 1}", index, tegrastats=(*simulator, str(index)), root=str(root.absolute()))
        for index in range(count)
    ]
    progress("start", 0, 1, f"1 node, {count} agents")
    with LocalCell(bundle, folder, devices, store=store, http=http, port=port) as cell:
        progress("start", 1, 1, f"1 node, {count} agents")
        yield cell


def _pass(
    client: Client,
    images: UInt8Array,
    labels: Int64Array,
    progress: Progress,
    stage: str,
    *,
    kill: Callable[[], None] | None = None,
) -> _Pass:
    """Send every image; call ``kill`` after a twentieth of the answers."""
    answers: list[Answer] = []
    bytes_before = _wire_bytes(client)
    start_s = time.monotonic()
    killed_after_s = 0.0
    for answer in client.stream(images, in_flight=_IN_FLIGHT):
        answers.append(answer)
        if kill is not None and len(answers) == len(images) // 20:
            kill()
            killed_after_s = time.monotonic() - start_s
        if len(answers) % 10 == 0:
            progress(stage, len(answers), len(images))
    duration_s = time.monotonic() - start_s
    return _Pass(answers, labels, duration_s, _wire_bytes(client) - bytes_before, killed_after_s)


def _wire_bytes(client: Client) -> int:
    """Bytes so far between node and devices, both ways."""
    found = client.status().wire_bytes
    return found["devices_in"] + found["devices_out"]


def _slowest(answers: list[Answer], names: list[str]) -> str:
    last = [max(answer.devices, key=lambda timing: timing.arrival_us).device for answer in answers if answer.devices]
    device = max(set(last), key=last.count)
    return f"{names[device]} ({last.count(device) / len(last):.0%} of frames)"


def _joules(report: Report) -> dict[str, float | None]:
    """Total energy per inference of each profiled device, from the run's only scenario."""
    (scenario,) = report.scenarios
    return {energy.device: mean_of(energy.total_j_per_inference) for energy in scenario.energies}
