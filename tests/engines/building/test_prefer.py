"""Which of a bundle's variants a device keeps, by what is measured on it; engines take what a hand-made clock says."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engines.changes import spoil
from tests.engines.int8 import with_int8

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Precision, Preference, Variant
from devit_contract.errors import EnergyError, EngineError, NotBuiltError
from devit_contract.machine import PowerMode
from devit_engines import ort
from devit_engines.board import Board
from devit_engines.building import backends, latency
from devit_engines.building.backends import RunSettings
from devit_engines.building.build_all import build_engines, find_engine
from devit_engines.building.build_one import BuiltEngine
from devit_engines.building.kept import Energy, digest_of, find_kept, path_of
from devit_engines.building.prefer import Measuring, Passed, best_of
from devit_engines.building.side_by_side import ROUNDS, Figures
from devit_engines.building.store import EngineRecord, Latency, Store
from devit_engines.building.target import Target
from devit_engines.engine import CheckedEngine, EngineSpec

TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"
BOARD = Board("test machine", "cpu", None)


@dataclass
class Device:
    """A machine whose clock and power are what the running engine makes of them."""

    ms: dict[str, float] = field(default_factory=lambda: {"int8": 1.0, "fp32": 2.0})
    watts: dict[str, float] = field(default_factory=lambda: {"int8": 5.0, "fp32": 5.0})
    slower_per_s: float = 0.0
    """Of its own time: by how much more every image takes, as on a device that gets hot."""
    now_s: float = 0.0
    joules: list[tuple[float, float]] = field(default_factory=list)
    """Times, and the energy up to then."""
    order: list[str] = field(default_factory=list)

    settle_s = 0.02
    block_s = 0.02
    scope = "whole board"
    is_simulated = True

    def run(self, variant: str) -> None:
        taken_s = self.ms[variant] / 1000 * (1.0 + self.slower_per_s * self.now_s)
        before_j = self.joules[-1][1] if self.joules else 0.0
        self.now_s += taken_s
        self.joules.append((self.now_s, before_j + taken_s * self.watts[variant]))
        if self.order[-1:] != [variant]:
            self.order.append(variant)

    def collect(self) -> None:
        """Nothing waits."""

    def mean_w(self, start_s: float, end_s: float) -> float:
        inside = [(time_s, j) for time_s, j in self.joules if start_s <= time_s <= end_s]
        if len(inside) < 10:  # as many as the real meter wants
            raise EnergyError(f"the window has {len(inside)} power samples")
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])

    @contextmanager
    def meter(self) -> Iterator[Device]:
        yield self

    def measuring(self, *, has_sensor: bool = False) -> Measuring:
        return Measuring(self.meter if has_sensor else None, lambda: self.now_s)


class Paced(ort.OrtEngine):
    """ONNX Runtime's answers, in the device's time."""

    def __init__(self, model: bytes, spec: EngineSpec, device: Device) -> None:
        super().__init__(model, spec)
        self.device, self.variant = device, "int8" if b"QuantizeLinear" in model else "fp32"

    def _run(self, images: UInt8Array) -> Float32Array:
        self.device.run(self.variant)
        return super()._run(images)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()

    def load(content: bytes, spec: EngineSpec, settings: RunSettings) -> CheckedEngine:
        return Paced(content, spec, made)

    monkeypatch.setitem(backends.BACKENDS, "ort", replace(backends.BACKENDS["ort"], load=load))
    return made


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("quantized") / "bundle"
    return with_int8(Bundle(Path(shutil.copytree(TINY, place)))).folder


@pytest.fixture
def bundle(quantized: Path, tmp_path: Path) -> Bundle:
    """The tiny bundle with a variant ``int8`` of each model, which a test may change."""
    return Bundle(Path(shutil.copytree(quantized, tmp_path / "quantized")))


@dataclass(frozen=True)
class Builder:
    """Builds submodel 0 on the device."""

    bundle: Bundle
    store: Store
    device: Device

    def build(
        self,
        prefer: Preference | None = None,
        precision: Precision | None = None,
        *,
        has_sensor: bool = False,
        board: Board = BOARD,
        progress: Callable[..., None] = lambda *_args, **_words: None,
    ) -> BuiltEngine:
        (built,) = build_engines(
            self.bundle,
            self.store,
            submodels=[0],
            precision=precision,
            prefer=prefer,
            measuring=self.device.measuring(has_sensor=has_sensor),
            board=board,
            progress=progress,
        )
        return built

    def found(self, precision: Precision | None = None, board: Board = BOARD) -> tuple[Variant, str]:
        """What an agent would load, and what it would say of it."""
        stored = find_engine(self.bundle, self.store, 0, precision=precision, board=board)
        stored.load().close()
        return stored.key.variant, stored.doubt


@pytest.fixture
def builder(bundle: Bundle, store: Store, device: Device) -> Builder:
    return Builder(bundle, store, device)


@pytest.fixture
def target(builder: Builder) -> Target:
    return Target(builder.bundle, builder.store, 0, backends.BACKENDS["ort"], BOARD)


def verdicts(built: BuiltEngine) -> list[tuple[str, str, str]]:
    return [(tried.variant, tried.verdict, tried.why) for tried in built.tried]


def test_the_faster_variant_is_kept_and_found_without_any_option(builder: Builder) -> None:
    built = builder.build("latency")
    assert verdicts(built) == [("int8", "kept", ""), ("fp32", "left", "slower, 2.00x")]
    assert [round(tried.latency.p50_ms, 6) for tried in built.tried if tried.latency] == [1.0, 2.0]
    assert builder.found() == ("int8", "")


def test_a_faster_fp32_is_kept_for_latency(builder: Builder) -> None:
    builder.device.ms["int8"] = 3.0
    assert verdicts(builder.build("latency")) == [("int8", "left", "slower, 1.50x"), ("fp32", "kept", "")]
    assert builder.found() == ("fp32", "")


def test_the_more_exact_variant_is_kept_for_accuracy_however_slow(builder: Builder) -> None:
    builder.device.ms["fp32"] = 50.0
    (int8, fp32) = verdicts(builder.build("accuracy"))
    assert fp32 == ("fp32", "kept", "")
    assert int8[:2] == ("int8", "left")
    assert int8[2] == "relative L2 error 1.60%, not 0.00%"
    assert builder.found() == ("fp32", "")


def test_variants_take_turns_so_a_device_that_gets_slower_judges_none_of_them_alone(builder: Builder) -> None:
    """Each block of fp32 is slower than the one of int8 before it, though one of int8's is the slowest of all."""
    builder.device.ms["fp32"], builder.device.slower_per_s = 1.1, 0.01
    built = builder.build("latency")
    assert built.record.key.variant == "int8"
    assert builder.device.order[-2 * ROUNDS :] == ["int8", "fp32"] * ROUNDS


def test_the_fewest_joules_an_answer_are_kept_for_energy_though_another_is_faster(builder: Builder) -> None:
    builder.device.watts["int8"] = 15.0
    built = builder.build("energy", has_sensor=True)
    assert [(each.variant, each.verdict) for each in built.tried] == [("int8", "left"), ("fp32", "kept")]
    costs = [each.energy for each in built.tried if each.energy is not None]
    assert [round(cost.j_per_answer * 1000, 1) for cost in costs] == pytest.approx([15.0, 10.0], rel=0.05)
    assert {(cost.scope, cost.is_simulated) for cost in costs} == {("whole board", True)}
    assert built.tried[0].why.startswith("more energy, 1.")
    assert builder.build("latency", has_sensor=True).record.key.variant == "int8"


def test_a_model_that_takes_a_quarter_of_a_second_is_metered_with_enough_samples(builder: Builder) -> None:
    builder.device.ms = {"int8": 250.0, "fp32": 300.0}
    assert builder.build("latency", has_sensor=True).record.key.variant == "int8"


def test_energy_without_a_sensor_is_refused_before_anything_is_built(builder: Builder) -> None:
    wrong = "--prefer energy needs a power sensor .*: run devit build --prefer latency"
    with pytest.raises(EnergyError, match=wrong) as caught:
        builder.build("energy")
    assert "\n" not in str(caught.value)
    assert builder.store.entries() == []


def test_a_variant_that_fails_the_check_is_named_and_left(tiny: Bundle, store: Store, device: Device) -> None:
    """The ranges of images a tenth as bright clip everything."""
    builder = Builder(with_int8(tiny, [0], gain=0.1), store, device)
    (int8, fp32) = builder.build("latency").tried
    assert (int8.verdict, fp32.verdict) == ("failed", "kept")
    assert "smallest cosine" in int8.why
    assert int8.accuracy is not None
    assert builder.found() == ("fp32", "")
    assert [entry.record.key.variant for entry in store.entries() if entry.record] == ["fp32"]


def test_where_no_variant_passes_none_is_chosen(
    builder: Builder, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda outputs: outputs[::-1].copy())
    with pytest.raises(EngineError, match=r"no variant passes .*\(int8: .*; fp32: .*\), nothing was stored"):
        builder.build("latency")
    assert find_kept(target).choice is None
    assert builder.store.entries() == []


def test_a_plain_build_keeps_what_was_chosen_and_says_what_for(builder: Builder) -> None:
    builder.build("latency")
    again = builder.build()
    assert (again.record.key.variant, again.was_cached, again.doubt) == ("int8", True, "")
    assert again.choice is not None
    assert again.choice.prefer == "latency"
    assert builder.found() == ("int8", "")


def test_without_a_preference_all_is_as_ever(builder: Builder) -> None:
    built = builder.build()
    assert (built.record.key.variant, built.choice) == ("fp32", None)
    assert verdicts(built) == [("fp32", "kept", "")]
    assert verdicts(builder.build(precision="int8")) == [("int8", "kept", "")]
    assert builder.found() == ("fp32", "")
    assert builder.found("int8") == ("int8", "")


def test_a_plain_build_lists_what_failed_too(tiny: Bundle, store: Store, device: Device) -> None:
    builder = Builder(with_int8(tiny, [0], gain=0.1), store, device)
    for _ in range(2):
        built = builder.build(precision="int8")
        assert [each[:2] for each in verdicts(built)] == [("int8", "failed"), ("fp32", "kept")]
        assert built.tried[0].why


def test_a_precision_by_itself_undoes_the_choice_and_says_so(builder: Builder) -> None:
    builder.build("latency")
    built = builder.build(precision="fp32")
    assert built.doubt == "submodel 0: int8 was chosen for latency, which --precision fp32 undoes"
    assert builder.found() == ("fp32", "")
    assert builder.build().doubt == ""


def test_a_precision_beside_the_preference_bounds_what_is_tried(builder: Builder) -> None:
    assert verdicts(builder.build("latency", "fp16")) == [("fp32", "kept", "")]


def test_an_agent_that_asks_for_a_precision_gets_no_lower_one(builder: Builder) -> None:
    builder.build("latency")
    assert builder.found("fp32") == ("fp32", "")
    assert builder.found("int8") == ("int8", "")


def test_an_agent_that_asks_for_no_int8_is_told_that_nothing_else_was_built(builder: Builder) -> None:
    builder.build(precision="int8")
    with pytest.raises(NotBuiltError, match=r'found one in INT8 alone, which precision = "int8" in agent.toml takes'):
        builder.found()


def test_the_same_preference_is_not_measured_again_and_another_one_is(builder: Builder) -> None:
    first = builder.build("latency")
    before_s = builder.device.now_s
    again = builder.build("latency")
    assert (again.was_cached, again.choice) == (True, first.choice)
    assert builder.device.now_s == before_s
    assert builder.build("accuracy").record.key.variant == "fp32"
    assert builder.found() == ("fp32", "")


@pytest.mark.parametrize("moment", ["checking fp32", "measuring 2 variants in turns"])
def test_ctrl_c_loses_no_engine_and_chooses_none(builder: Builder, target: Target, moment: str) -> None:
    def stop(stage: str, done: float, total: float, note: str = "") -> None:
        if note == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builder.build("latency", progress=stop)
    assert find_kept(target).choice is None
    kept = [entry.record.key.variant for entry in builder.store.entries() if entry.record is not None]
    assert sorted(kept) == (["int8"] if moment == "checking fp32" else ["fp32", "int8"])
    assert builder.store.leftovers() == []
    assert builder.build().record.key.variant == "fp32"
    assert builder.build("latency").record.key.variant == "int8"


def test_ctrl_c_in_a_later_choice_leaves_the_one_before(builder: Builder) -> None:
    builder.build("latency")

    def stop(stage: str, done: float, total: float, note: str = "") -> None:
        if note.startswith("measuring"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builder.build("accuracy", progress=stop)
    assert builder.found() == ("int8", "")


def test_of_two_choices_at_once_one_waits_for_the_other(builder: Builder, target: Target) -> None:
    waits, notes, built = threading.Event(), [], []

    def report(stage: str, done: float, total: float, note: str = "") -> None:
        notes.append(note)
        waits.set()

    with builder.store.lock(digest_of(target)):
        other = threading.Thread(target=lambda: built.append(builder.build("latency", progress=report)))
        other.start()
        assert waits.wait(30)
        assert notes == ["waiting for another choice of it"]
        assert builder.store.entries() == []
    other.join(30)
    assert [each.record.key.variant for each in built] == ["int8"]


def test_an_engine_that_was_removed_is_said_and_built_again_by_a_plain_build(builder: Builder) -> None:
    builder.store.remove(builder.build("latency").digest)
    variant, doubt = builder.found()
    assert variant == "fp32"
    gone = "its engine is missing, damaged or not validated"
    assert doubt.startswith(f"submodel 0: int8 was chosen for latency, but {gone}: run devit build ")
    assert doubt.endswith("--prefer latency")
    assert builder.build().record.key.variant == "int8"
    assert builder.found() == ("int8", "")


@pytest.mark.parametrize("content", [b"{", b'{"schema": 1}', b'{"schema": 99}'])
def test_a_damaged_choice_is_said_and_not_followed(builder: Builder, target: Target, content: bytes) -> None:
    builder.build("latency")
    path_of(target).write_bytes(content)
    for variant, doubt in (builder.found(), (builder.build().record.key.variant, builder.build().doubt)):
        assert variant == "fp32"
        assert str(path_of(target)) in doubt
        assert "--prefer latency" in doubt
    assert builder.build("latency").doubt == ""
    assert builder.found() == ("int8", "")


def test_a_choice_for_another_version_of_the_back_end_or_board_is_said_and_not_followed(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder.build("latency")
    built = builder.build(board=Board("Jetson B", "sm_87", None))
    assert built.record.key.variant == "fp32"
    assert "for test machine on cpu, this is ort" in built.doubt
    assert "for Jetson B on sm_87: run devit build" in built.doubt
    monkeypatch.setitem(backends.BACKENDS, "ort", replace(backends.BACKENDS["ort"], version=lambda: "99.0"))
    built = builder.build()
    assert built.record.key.variant == "fp32"
    assert "this is ort 99.0 for test machine" in built.doubt


def test_a_variant_that_failed_is_tried_again_when_its_graph_is_another(
    tiny: Bundle, store: Store, device: Device
) -> None:
    failing = Builder(with_int8(tiny, [0], gain=0.1), store, device)
    assert failing.build(precision="int8").record.key.variant == "fp32"
    calibrated = with_int8(Bundle(Path(shutil.copytree(TINY, tiny.folder.with_name("again")))), [0])
    assert Builder(calibrated, store, device).build(precision="int8").record.key.variant == "int8"


def test_a_variant_that_no_build_has_tried_yet_is_tried_though_a_more_exact_one_is_there(builder: Builder) -> None:
    builder.build(precision="fp32")
    assert builder.build(precision="int8").record.key.variant == "int8"


def test_a_variant_that_failed_is_not_tried_again(tiny: Bundle, store: Store, device: Device) -> None:
    builder = Builder(with_int8(tiny, [0], gain=0.1), store, device)
    for precision in ("fp32", "int8"):
        builder.build(precision=precision)
    notes: list[str] = []

    def report(stage: str, done: float, total: float, note: str = "") -> None:
        notes.append(note)

    assert builder.build(precision="int8", progress=report).was_cached
    assert notes == []


def test_a_failure_that_an_older_version_noted_is_not_tried_again(tiny: Bundle, store: Store, device: Device) -> None:
    """Its records name the variant, and not the engine."""
    builder = Builder(with_int8(tiny, [0], gain=0.1), store, device)
    record = builder.build(precision="int8").record
    (failed,) = record.failed_variants
    old = msgspec.structs.replace(record, failed_variants=(msgspec.structs.replace(failed, digest=""),))
    store.keep(old, store.read(record.key.digest)[1])
    assert builder.build(precision="int8").was_cached
    assert store.record(record.key.digest) == old


def test_a_choice_among_other_graphs_is_said_and_not_followed(builder: Builder, tiny: Bundle) -> None:
    """A bundle that was calibrated anew has the same fp32 graph, and another int8 one."""
    builder.build("latency")
    newer = Builder(with_int8(tiny, gain=0.9), builder.store, builder.device)
    built = newer.build()
    assert built.record.key.variant == "fp32"
    assert "among other graphs than the bundle's" in built.doubt
    assert newer.build("latency").record.key.variant == "int8"


def test_in_another_power_mode_the_choice_is_followed_and_said(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder.build("latency")
    monkeypatch.setattr(latency, "power_mode", lambda: PowerMode("15W", 1))
    variant, doubt = builder.found()
    assert variant == "int8"
    assert "in power mode unknown, this is" in doubt
    assert "15W" in doubt
    before_s = builder.device.now_s
    assert builder.build("latency").doubt == ""
    assert builder.device.now_s > before_s
    assert builder.found() == ("int8", "")


def passed(record: EngineRecord, error: float, rounds: Sequence[float]) -> Passed:
    """A variant of that error whose rounds took so long, or so many joules."""
    accuracy = msgspec.structs.replace(record.accuracy, relative_l2=error)
    key = msgspec.structs.replace(record.key, options=(f"error={error}", f"rounds={rounds}"))
    middle = sorted(rounds)[len(rounds) // 2]
    figures = Figures(Latency(middle, middle, 9, ()), Energy(middle, 1.0, "board"), tuple(rounds), tuple(rounds))
    return Passed(msgspec.structs.replace(record, accuracy=accuracy, key=key), figures)


@pytest.fixture(scope="module")
def record(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineRecord:
    return build_engines(Bundle(quantized), Store(tmp_path_factory.mktemp("store")), submodels=[0])[0].record


@pytest.mark.parametrize("preferred", ["latency", "energy"])
def test_one_round_that_says_otherwise_is_noise_and_the_more_exact_variant_is_taken(
    record: EngineRecord, preferred: Preference
) -> None:
    coarse = passed(record, 0.02, [1.0] * 6)
    assert best_of(preferred, [coarse, passed(record, 0.0, [1.1] * 6)])[0] is coarse
    exact = passed(record, 0.0, [1.1] * 5 + [0.9])
    best, why = best_of(preferred, [coarse, exact])
    assert best is exact
    (reason,) = why.values()
    assert reason.endswith("beyond noise, less exact")


@given(
    rounds=st.lists(
        st.tuples(st.floats(0.0, 0.1), st.lists(st.floats(0.1, 10.0), min_size=6, max_size=6)),
        min_size=1,
        max_size=4,
        unique_by=str,
    ),
    preferred=st.sampled_from(["latency", "energy", "accuracy"]),
)
def test_whatever_was_measured_one_is_kept_and_no_other_beats_it_in_every_round_and_in_exactness(
    record: EngineRecord, rounds: list[tuple[float, list[float]]], preferred: Preference
) -> None:
    all_passed = [passed(record, error, taken) for error, taken in rounds]
    best, why = best_of(preferred, all_passed)
    assert best in all_passed
    assert len(why) == len(all_passed) - 1
    for other in all_passed:
        beats = all(a < b for a, b in zip(other.figures.p50_ms, best.figures.p50_ms, strict=True))
        assert not (beats and other.error < best.error)
        assert preferred != "accuracy" or best.error <= other.error
