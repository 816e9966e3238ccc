"""One model, every variant of it: built, checked, measured side by side on this device; the best one is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial

from devit_contract.choices import Preference
from devit_contract.errors import EnergyError
from devit_contract.service.progress import Progress
from devit_engines.accuracy import reference_of
from devit_engines.building.backends import RunSettings
from devit_engines.building.build_one import BuiltEngine, make_variant, no_variant_passes, now_utc
from devit_engines.building.kept import SCHEMA, Choice, Tried, digest_of, find_kept, remember
from devit_engines.building.latency import mode_name
from devit_engines.building.report import tried_failure
from devit_engines.building.side_by_side import Clock, Figures, OpenMeter, measure_side_by_side
from devit_engines.building.store import EngineRecord, FailedVariant
from devit_engines.building.target import Target


@dataclass(frozen=True)
class Measuring:
    """What variants are measured with."""

    open_meter: OpenMeter | None = None
    """Absent where nobody passed one: then there are no joules."""
    clock_s: Clock = time.monotonic


def checked_meter(prefer: Preference, measuring: Measuring) -> Measuring:
    """Find out before the first build whether there is a sensor; without one, latency and accuracy go without.

    Raises:
        EnergyError: The preference is energy, and there is no sensor.
    """
    try:
        if measuring.open_meter is None:
            raise EnergyError("nothing measures power here")
        with measuring.open_meter():
            return measuring
    except EnergyError as err:
        if prefer == "energy":
            raise EnergyError(
                f"--prefer energy needs a power sensor ({err}): run devit build --prefer latency"
            ) from err
        return Measuring(None, measuring.clock_s)


def build_preferred(
    target: Target, prefer: Preference, settings: RunSettings, progress: Progress, measuring: Measuring
) -> BuiltEngine:
    """Build what the store lacks of all variants, measure those that pass in turns, and remember the best one.

    What was chosen among the same engines before, run in the same way and in the same power mode, is not measured
    again. Whatever ends this early leaves the choice as it was, and in the store what had been built.

    Raises:
        EngineError: No variant passes, or the back end fails for reasons that every variant shares.
        EnergyError: The sensor has ended.
        InputError: A graph cannot be read, or the store not be written.
        ManifestError: The bundle is broken.
    """
    start_s = time.monotonic()

    def wait() -> None:
        progress(target.name, 0, 1, "waiting for another choice of it")

    with target.store.lock(digest_of(target), wait):
        if (before := _chosen_before(target, prefer, settings)) is not None:
            return BuiltEngine(target.model, *before, True, time.monotonic() - start_s)
        made, failed, is_cached = _build_all(target, settings, progress)
        if not made:
            raise no_variant_passes(target, failed)
        figures = _measure(target, made, settings, progress, measuring)
        passed = [Passed(record, each) for record, each in zip(made, figures, strict=True)]
        choice = _choice(target, prefer, settings, passed, failed)
        remember(target, choice)
    (record,) = (each.record for each in passed if each.record.key.digest == choice.kept.digest)
    return BuiltEngine(target.model, record, choice, is_cached, time.monotonic() - start_s)


@dataclass(frozen=True)
class Passed:
    """A variant that has passed the accuracy check, and what it costs."""

    record: EngineRecord
    figures: Figures

    @property
    def error(self) -> float:
        """Against the golden images' references."""
        return self.record.accuracy.relative_l2


def best_of(prefer: Preference, passed: Sequence[Passed]) -> tuple[Passed, dict[str, str]]:
    """Choose one; the second result says by digest why each of the others is left.

    Of those that no six rounds tell from the cheapest one, the most exact is taken.
    """
    if prefer == "accuracy":
        best = min(passed, key=lambda each: (each.error, each.figures.latency.p50_ms))
        equal = "as exact, and slower"
        others = {
            each: equal if each.error == best.error else f"relative L2 error {each.error:.2%}, not {best.error:.2%}"
            for each in passed
        }
    else:
        rounds, cost, word, most = _COSTS[prefer]
        cheapest = min(passed, key=cost)

        def is_dearer(other: Passed) -> bool:
            return all(low < high for low, high in zip(rounds(cheapest), rounds(other), strict=True))

        best = min((each for each in passed if not is_dearer(each)), key=lambda each: (each.error, cost(each)))
        others = {
            each: f"{word}, {cost(each) / cost(best):.2f}x" if is_dearer(each) else f"{most} beyond noise, less exact"
            for each in passed
        }
    return best, {each.record.key.digest: why for each, why in others.items() if each is not best}


def _joules(each: Passed) -> float:
    assert each.figures.energy is not None  # else checked_meter has refused
    return each.figures.energy.j_per_answer


_Cost = tuple[Callable[[Passed], tuple[float, ...]], Callable[[Passed], float], str, str]
_COSTS: dict[str, _Cost] = {
    "latency": (lambda each: each.figures.p50_ms, lambda each: each.figures.latency.p50_ms, "slower", "no faster"),
    "energy": (lambda each: each.figures.j_per_answer, _joules, "more energy", "no less energy"),
}
"""Of a preference: the cost of each round, that of all, and how a dearer and an equal variant are called."""


def _chosen_before(target: Target, prefer: Preference, settings: RunSettings) -> tuple[EngineRecord, Choice] | None:
    kept = find_kept(target)
    if kept.choice is None or kept.key is None or kept.doubt:
        return None
    keys = tuple(key.digest for key in target.engine_keys())
    wanted = prefer, keys, target.backend.run_options(settings), mode_name()
    choice = kept.choice
    if wanted != (choice.prefer, choice.keys, choice.run_options, choice.power_mode):
        return None
    entry = target.store.find(kept.key.digest)
    if entry is None or entry.damage is not None or entry.record is None or target.objection(entry.record):
        return None
    return entry.record, choice


def _build_all(
    target: Target, settings: RunSettings, progress: Progress
) -> tuple[list[EngineRecord], list[FailedVariant], bool]:
    """Build every variant; the third result says whether the store held all that passed."""
    made: list[EngineRecord] = []
    failed: list[FailedVariant] = []
    is_cached = True
    for key in target.engine_keys():
        result, was_cached = make_variant(target, key, settings, tuple(failed), progress)
        if isinstance(result, EngineRecord):
            made.append(result)
            is_cached = is_cached and was_cached
        else:
            failed.append(result)
    return made, failed, is_cached


def _measure(
    target: Target, made: Sequence[EngineRecord], settings: RunSettings, progress: Progress, measuring: Measuring
) -> list[Figures]:
    with ExitStack() as stack:
        meter = stack.enter_context(measuring.open_meter() if measuring.open_meter is not None else nullcontext())
        engines = []
        for record in made:
            content = target.store.read(record.key.digest)[1]
            engines.append(stack.enter_context(target.backend.load(content, target.spec(record.key), settings)))
        return measure_side_by_side(
            engines,
            reference_of(target.bundle, target.model).images,
            target.backend.run_options(settings),
            meter=meter,
            clock_s=measuring.clock_s,
            report=partial(progress, target.name, note=f"measuring {len(made)} variants in turns"),
        )


def _choice(
    target: Target, prefer: Preference, settings: RunSettings, passed: Sequence[Passed], failed: Sequence[FailedVariant]
) -> Choice:
    best, why = best_of(prefer, passed)
    keys = target.engine_keys()
    tried = [tried_failure(each) for each in failed]
    for each in passed:
        record = each.record
        tried.append(
            Tried(
                record.key.variant,
                "kept" if each is best else "left",
                why.get(record.key.digest, ""),
                record.key.digest,
                record.file.size_bytes,
                record.accuracy,
                each.figures.latency,
                each.figures.energy,
            )
        )
    order = [key.variant for key in keys]
    return Choice(
        schema=SCHEMA,
        digest=digest_of(target),
        title=target.title,
        prefer=prefer,
        precision=target.precision,
        backend=keys[0].backend,
        backend_version=keys[0].backend_version,
        device_name=keys[0].device_name,
        compute_capability=keys[0].compute_capability,
        run_options=target.backend.run_options(settings),
        created=now_utc(),
        keys=tuple(key.digest for key in keys),
        tried=tuple(sorted(tried, key=lambda each: order.index(each.variant))),
        power_mode=mode_name(),
    )
