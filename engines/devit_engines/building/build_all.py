"""The engines of a bundle on this device: build what the store lacks, find and load what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import BackendChoice, Precision, Preference, is_at_least
from devit_contract.errors import EngineError, NotBuiltError
from devit_contract.service.progress import Progress, no_progress
from devit_engines.accuracy import spot_check
from devit_engines.board import Board, detect_board
from devit_engines.building.backends import DEFAULT_SETTINGS, RunSettings, backend_of
from devit_engines.building.build_one import BuiltEngine, build_one
from devit_engines.building.kept import Kept, find_kept, forget
from devit_engines.building.prefer import Measuring, build_preferred, checked_meter
from devit_engines.building.store import EngineKey, EngineRecord, Store
from devit_engines.building.target import Target
from devit_engines.engine import CheckedEngine, ModelRef, closed_on_failure

_DEFAULT_MEASURING = Measuring()


@dataclass(frozen=True)
class StoredEngine:
    """An engine that the store holds for this device; not loaded yet."""

    target: Target
    key: EngineKey
    record: EngineRecord | None
    """Absent if it is damaged, which :meth:`load` reports."""
    doubt: str = ""
    """Why it is not the variant that ``devit build --prefer`` chose, or why that should be run again; empty where all
    is well."""

    @property
    def title(self) -> str:
        """For people: ``TensorRT 10.3.0, fp16``."""
        return f"{self.target.backend.title} {self.key.backend_version}, {self.key.variant}"

    def load(self, settings: RunSettings = DEFAULT_SETTINGS) -> CheckedEngine:
        """Load the engine, and send a few golden images through it: who may write to the store may have put it there.

        Raises:
            NotBuiltError: It is damaged, not this bundle's, or does not compute what was trained; the text names the
                command that builds it.
            EngineError: The back end cannot load or run it.
            ManifestError: The golden images are not usable.
        """
        target, digest = self.target, self.key.digest
        record, content = target.store.read(digest, f"run {target.command}")
        if objection := target.objection(record):
            raise NotBuiltError(objection)
        engine = target.backend.load(content, target.spec(self.key), settings)
        with closed_on_failure(engine):
            if failures := spot_check(engine, target.bundle, target.model, self.key.variant):
                raise NotBuiltError(
                    f"{target.store.folder / digest}: expected an engine that computes what was trained, found "
                    f"{'; '.join(failures)}: remove that folder, then run {target.command}"
                )
        return engine


def build_engines(
    bundle: Bundle,
    store: Store,
    *,
    submodels: Sequence[int] | None = None,
    baseline: bool = False,
    backend: BackendChoice = "auto",
    precision: Precision | None = None,
    prefer: Preference | None = None,
    measuring: Measuring = _DEFAULT_MEASURING,
    settings: RunSettings = DEFAULT_SETTINGS,
    board: Board | None = None,
    progress: Progress = no_progress,
) -> list[BuiltEngine]:
    """Build the engines that the store lacks, and check each with the bundle's golden images on this device.

    Submodels are in the order given, all of them without a list; then comes the baseline. Without a board, the device
    is the one that this runs on. The progress counts golden images, with every model as a stage of its own.

    Which variant of a model is taken: with ``prefer`` the best of all, down to ``precision`` (``fp8``), which is
    remembered; without it the one that is remembered; else the first from ``precision`` (``fp16``) up that passes. A
    ``precision`` alone forgets what was remembered.

    Raises:
        EngineError: A model is not in the bundle, the back end is missing, or no variant passed the accuracy check.
        EnergyError: Energy is preferred, and there is no power sensor.
        ManifestError: The bundle is broken.
        InputError: A file cannot be read, or the store not be written.
    """
    count = len(bundle.manifest.submodels)
    models: list[ModelRef] = [*(range(count) if submodels is None else submodels)]
    for model in models:
        if model not in range(count):
            raise EngineError(
                f"submodel {model}: expected 0 to {count - 1}, which {bundle.folder} holds: choose another"
            )
    if baseline:
        _require_baseline(bundle)
        models.append("baseline")
    row, here = backend_of(backend), board or detect_board()
    targets = [Target(bundle, store, model, row, here, precision or ("fp8" if prefer else "fp16")) for model in models]
    if prefer is not None:
        checked = checked_meter(prefer, measuring)
        return [build_preferred(target, prefer, settings, progress, checked) for target in targets]
    if precision is None:
        return [build_one(target, find_kept(target), settings, progress) for target in targets]
    return [_build_and_forget(target, settings, progress) for target in targets]


def find_engine(
    bundle: Bundle,
    store: Store,
    model: ModelRef,
    *,
    backend: BackendChoice = "auto",
    precision: Precision | None = None,
    board: Board | None = None,
) -> StoredEngine:
    """Find what :func:`build_engines` stored for this bundle on this device.

    The variant that ``prefer`` chose comes first, then those from ``precision`` (``fp16``) up; with ``precision``, the
    chosen one too has to be at least that. The first that this bundle's golden images have validated wins, else the
    first that is there at all. With ``auto``, ONNX Runtime's engine will do if TensorRT has none.

    Raises:
        NotBuiltError: It was not built here; the text names the command that builds it.
        EngineError: The bundle has no baseline.
    """
    if model == "baseline":
        _require_baseline(bundle)
    rows = [backend_of(backend)]
    if backend == "auto" and rows[0].name != "ort" and backend_of("ort").is_installed:
        rows.append(backend_of("ort"))
    targets = [Target(bundle, store, model, row, board or detect_board(), precision or "fp16") for row in rows]
    found = [stored for target in targets for stored in _stored(target, precision)]
    for stored in found:
        if stored.record is not None and not stored.target.objection(stored.record):
            return stored
    if found:
        return found[0]
    raise NotBuiltError(
        f"{store.folder}: expected an engine for {targets[0].name}, found {_nearest(targets[0])}: "
        f"run {targets[0].command}"
    )


def load_engine(
    bundle: Bundle,
    store: Store,
    model: ModelRef,
    *,
    backend: BackendChoice = "auto",
    settings: RunSettings = DEFAULT_SETTINGS,
    board: Board | None = None,
) -> CheckedEngine:
    """Find an engine as :func:`find_engine` does, and load it as :meth:`StoredEngine.load` does."""
    return find_engine(bundle, store, model, backend=backend, board=board).load(settings)


def _build_and_forget(target: Target, settings: RunSettings, progress: Progress) -> BuiltEngine:
    """Take the first variant that passes, and forget the choice for the model: the user says which to take."""
    kept, doubt = find_kept(target), ""
    if kept.choice is not None:
        chosen = f"{kept.choice.kept.variant} was chosen for {kept.choice.prefer}"
        doubt = f"{target.name}: {chosen}, which --precision {target.precision} undoes"
    built = build_one(target, Kept(doubt=doubt), settings, progress)
    forget(target)
    return built


def _stored(target: Target, precision: Precision | None) -> Iterator[StoredEngine]:
    """List what the store holds for a target, the chosen variant first."""
    kept = find_kept(target)
    if kept.key is not None and precision is not None and not is_at_least(kept.key.variant, precision):
        kept = Kept()
    for key in kept.before(target.engine_keys()):
        if not (target.store.folder / key.digest).is_dir():
            continue
        doubt = kept.doubt
        if kept.key is not None and key != kept.key:
            doubt = kept.passed_over("its engine is missing, damaged or not validated", target)
        yield StoredEngine(target, key, target.store.record(key.digest), doubt)


def _require_baseline(bundle: Bundle) -> None:
    if bundle.manifest.baseline is None:
        raise EngineError(f"{bundle.folder}: the bundle has no baseline: leave --baseline out")


def _nearest(target: Target) -> str:
    """Say what the store holds of the same graph, and in what it differs."""
    models = {key.model_sha256: key for key in target.engine_keys()}
    for record in target.store.records():
        if (wanted := models.get(record.key.model_sha256)) is not None:
            other = record.key
            return (
                f"one of {other.backend} {other.backend_version} for {other.device_name} on "
                f"{other.compute_capability}, this is {wanted.backend} {wanted.backend_version} for "
                f"{wanted.device_name} on {wanted.compute_capability}"
            )
    lower = {key.digest for key in replace(target, precision="fp8").engine_keys()}
    for record in target.store.records():
        if record.key.digest in lower:
            kind = record.key.variant.partition("-")[0]
            return f'one in {kind.upper()} alone, which precision = "{kind}" in agent.toml takes'
    return "none"
