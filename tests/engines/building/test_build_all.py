"""From the tiny bundle to engines, and what is refused on the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.engines.changes import fewer_images, rewrite, spoil, with_golden
from tests.support.opened import opened_files

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import EngineError, InputError, ManifestError, NotBuiltError
from devit_engines import ort
from devit_engines.board import Board
from devit_engines.building import backends
from devit_engines.building.backends import RunSettings
from devit_engines.building.build_all import build_engines, load_engine
from devit_engines.building.store import Store
from devit_engines.trt.request import BuildRequest, Built, Report


def test_every_submodel_and_the_baseline_are_built_then_found(tiny: Bundle, store: Store, board: Board) -> None:
    first = build_engines(tiny, store, baseline=True, board=board)
    assert [(engine.model, engine.was_cached) for engine in first] == [(0, False), (1, False), ("baseline", False)]
    second = build_engines(tiny, store, baseline=True, board=board)
    assert [(engine.model, engine.was_cached) for engine in second] == [(0, True), (1, True), ("baseline", True)]
    assert [engine.digest for engine in first] == [engine.digest for engine in second]
    assert len({engine.digest for engine in first}) == 3


def test_a_loaded_engine_gives_the_golden_features(tiny: Bundle, store: Store, board: Board) -> None:
    build_engines(tiny, store, baseline=True, board=board)
    golden = tiny.golden()
    for device, name in ((0, "features.0"), (1, "features.1"), ("baseline", "baseline.logits")):
        with load_engine(tiny, store, device, board=board) as engine:
            np.testing.assert_allclose(engine.features(golden["images"]), golden[name], atol=1e-5)
            assert engine.output_dim == golden[name].shape[1]
            assert engine.image_shape == (6, 8, 1)


def test_the_revision_is_the_head_of_the_key(tiny: Bundle, store: Store, board: Board) -> None:
    (built,) = build_engines(tiny, store, submodels=[1], board=board)
    with load_engine(tiny, store, 1, board=board) as engine:
        assert engine.revision == int(built.digest[:8], 16)
        assert 0 <= engine.revision < 1 << 32


def test_only_what_was_asked_for_is_built(tiny: Bundle, store: Store, board: Board) -> None:
    assert [engine.model for engine in build_engines(tiny, store, submodels=[1], board=board)] == [1]
    (baseline,) = build_engines(tiny, store, submodels=[], baseline=True, board=board)
    assert baseline.model == "baseline"


def test_onnx_runtime_takes_the_fp32_variant_though_fp16_stands_first(tiny: Bundle, store: Store, board: Board) -> None:
    assert tiny.manifest.submodels[0].variants[0] == "fp16"
    (built,) = build_engines(tiny, store, submodels=[0], board=board)
    assert built.record.key.variant == "fp32"
    graph = tiny.path("submodel", device=0, variant="fp32")
    assert (store.folder / built.digest / "model.onnx").read_bytes() == graph.read_bytes()


def test_a_bundle_without_a_variant_for_the_back_end_is_refused(tiny: Bundle, store: Store, board: Board) -> None:
    only_half = tuple(
        msgspec.structs.replace(record, variants=("fp16",), fp32_nodes={}) for record in tiny.manifest.submodels
    )
    with pytest.raises(ManifestError, match="ort takes fp32, the bundle holds fp16"):
        build_engines(rewrite(tiny, submodels=only_half), store, board=board)


def test_a_submodel_that_is_not_there_is_refused_before_any_is_built(tiny: Bundle, store: Store, board: Board) -> None:
    for wrong in (2, -1):
        with pytest.raises(EngineError, match=f"submodel {wrong}: expected 0 to 1"):
            build_engines(tiny, store, submodels=[0, wrong], board=board)
    assert store.entries() == []


def test_a_baseline_that_is_not_there_is_refused(tiny: Bundle, store: Store, board: Board) -> None:
    without = rewrite(tiny, baseline=None, baseline_accuracy=None)
    with pytest.raises(EngineError, match="leave --baseline out"):
        build_engines(without, store, baseline=True, board=board)
    with pytest.raises(EngineError, match="has no baseline"):
        load_engine(without, store, "baseline", board=board)


def test_an_unknown_back_end_is_refused_with_those_there_are(tiny: Bundle, store: Store, board: Board) -> None:
    with pytest.raises(InputError, match="unknown back end abacus: choose one of auto, tensorrt, ort"):
        build_engines(tiny, store, backend="abacus", board=board)


def test_a_missing_back_end_says_how_to_install_it(
    tiny: Bundle, store: Store, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "package_version", lambda package: None)
    with pytest.raises(EngineError, match="run pip install onnxruntime"):
        build_engines(tiny, store, board=board)


@pytest.mark.parametrize(
    ("change", "figure"),
    [
        (lambda outputs: outputs * np.float32(1.05), r"relative L2 error 5.00%, expected at most 3%"),
        (lambda outputs: outputs[::-1].copy(), r"smallest cosine .*answers flipped"),
        (lambda outputs: np.where(outputs > 1.0, np.float32(np.nan), outputs), r"\d+ output numbers are NaN"),
        (lambda outputs: np.full_like(outputs, np.inf), r"384 output numbers are NaN or infinite"),
    ],
    ids=["scaled", "swapped images", "some NaN", "infinite"],
)
def test_an_engine_that_computes_wrongly_is_never_stored(
    tiny: Bundle,
    store: Store,
    board: Board,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Float32Array], Float32Array],
    figure: str,
) -> None:
    spoil(monkeypatch, change)
    with pytest.raises(
        EngineError, match=f"submodel 0: no variant passes on this device .*fp32: .*{figure}.*nothing was stored"
    ):
        build_engines(tiny, store, board=board)
    assert store.entries() == []
    assert store.leftovers() == []


def test_an_engine_that_turns_bad_after_its_build_does_not_answer_silently(
    tiny: Bundle, store: Store, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engines(tiny, store, submodels=[0], board=board)
    spoil(monkeypatch, lambda outputs: np.full_like(outputs, np.nan))
    with pytest.raises(NotBuiltError, match="96 output numbers are NaN or infinite"):
        load_engine(tiny, store, 0, board=board)


def test_an_engine_that_was_not_built_is_an_error_with_the_command(tiny: Bundle, store: Store, board: Board) -> None:
    command = f"run devit build {tiny.folder} --submodels 1 --store {store.folder}"
    with pytest.raises(EngineError, match=command):
        load_engine(tiny, store, 1, board=board)
    with pytest.raises(EngineError, match=f"run devit build {tiny.folder} --baseline"):
        load_engine(tiny, store, "baseline", board=board)


def test_an_engine_of_another_device_is_named_and_not_loaded(tiny: Bundle, store: Store, board: Board) -> None:
    build_engines(tiny, store, submodels=[0], board=Board("Jetson A", "sm_87", "36.4.3"))
    with pytest.raises(
        NotBuiltError, match=r"one of ort .* for Jetson A on sm_87, this is ort .* for test machine on cpu"
    ):
        load_engine(tiny, store, 0, board=board)


def test_an_engine_of_another_version_of_the_back_end_is_built_again(
    tiny: Bundle, store: Store, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engines(tiny, store, submodels=[0], board=board)
    newer = replace(backends.BACKENDS["ort"], version=lambda: "99.0")
    monkeypatch.setitem(backends.BACKENDS, "ort", newer)
    with pytest.raises(EngineError, match=r"this is ort 99\.0"):
        load_engine(tiny, store, 0, board=board)
    (built,) = build_engines(tiny, store, submodels=[0], board=board)
    assert not built.was_cached
    assert len(store.entries()) == 2


def test_a_flipped_bit_is_refused_by_load_and_built_again_by_build(tiny: Bundle, store: Store, board: Board) -> None:
    (built,) = build_engines(tiny, store, submodels=[0], board=board)
    path = store.folder / built.digest / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:700] + bytes([whole[700] ^ 0x10]) + whole[701:])
    with pytest.raises(
        EngineError, match=r"expected sha256 \w+, found \w+: run devit build .* --submodels 0"
    ) as caught:
        load_engine(tiny, store, 0, board=board)
    assert "\n" not in str(caught.value)
    (again,) = build_engines(tiny, store, submodels=[0], board=board)
    assert (again.digest, again.was_cached) == (built.digest, False)
    assert path.read_bytes() == whole


def test_new_golden_images_judge_the_stored_engine_again(
    tiny: Bundle, store: Store, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same graph in a new bundle need not be built again, but what it passed were other images."""
    build_engines(tiny, store, submodels=[0], board=board)
    newer = with_golden(tiny, fewer_images(48))
    with pytest.raises(EngineError, match=r"was not validated with the golden images of .*: run devit build"):
        load_engine(newer, store, 0, board=board)

    def never(request: BuildRequest, report: Report) -> Built:
        raise AssertionError("built again")

    monkeypatch.setitem(backends.BACKENDS, "ort", replace(backends.BACKENDS["ort"], build=never))
    (judged,) = build_engines(newer, store, submodels=[0], board=board)
    assert (judged.was_cached, judged.record.accuracy.images) == (False, 48)
    load_engine(newer, store, 0, board=board).close()


def test_an_agent_of_the_older_bundle_may_start_while_the_new_one_is_rolled_out(
    tiny: Bundle, store: Store, board: Board, tmp_path: Path
) -> None:
    """Only its golden images differ, so both have the same graph, and one key."""
    newer = with_golden(Bundle(Path(shutil.copytree(tiny.folder, tmp_path / "newer"))), fewer_images(48))
    for bundle, verdicts in ((tiny, 1), (newer, 2), (tiny, 2)):
        (built,) = build_engines(bundle, store, submodels=[0], board=board)
        assert len(built.record.validated_against) == verdicts
    for bundle in (tiny, newer):
        load_engine(bundle, store, 0, board=board).close()


def test_golden_features_that_do_not_fit_the_submodels_are_refused(tiny: Bundle, store: Store, board: Board) -> None:
    broken = with_golden(tiny, lambda tensors: {**tensors, "features.1": tensors["features.1"][:, :3]})
    with pytest.raises(ManifestError, match=r"expected features\.1 \('float32', 64, 4\), found \('float32', 64, 3\)"):
        build_engines(broken, store, submodels=[0], board=board)


def test_a_golden_set_without_images_or_baseline_is_refused(tiny: Bundle, store: Store, board: Board) -> None:
    bare = with_golden(
        tiny, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "baseline.logits"}
    )
    with pytest.raises(ManifestError, match=r"there is no baseline\.logits"):
        build_engines(bare, store, submodels=[], baseline=True, board=board)
    empty = with_golden(tiny, fewer_images(0))
    with pytest.raises(ManifestError, match="there are no images"):
        build_engines(empty, store, board=board)


def test_a_build_reads_its_own_graph_alone_and_loading_reads_none(tiny: Bundle, store: Store, board: Board) -> None:
    """A damaged graph of another submodel stops neither."""
    for variant in ("fp16", "fp32"):
        path = tiny.path("submodel", device=1, variant=variant)
        path.write_bytes(bytes(path.stat().st_size))
    with opened_files(tiny.folder) as opened:
        build_engines(Bundle(tiny.folder), store, submodels=[0], board=board)
        graphs = {name for name in opened if name.endswith(".onnx")}
        assert graphs == {"submodel-0.fp32.onnx"}
        opened.clear()
        load_engine(Bundle(tiny.folder), store, 0, board=board).close()
        assert sorted(opened) == ["fusion.safetensors", "golden.safetensors", "manifest.json"]
    with pytest.raises(ManifestError, match=r"submodel-1\.fp32\.onnx: expected sha256"):
        build_engines(Bundle(tiny.folder), store, submodels=[1], board=board)


def test_a_model_that_changed_behind_the_open_bundle_is_refused(tiny: Bundle, store: Store, board: Board) -> None:
    tiny.path("submodel", device=0, variant="fp32").write_bytes(
        tiny.path("submodel", device=1, variant="fp32").read_bytes()
    )
    with pytest.raises(ManifestError, match="copy the bundle again"):
        build_engines(tiny, store, submodels=[0], board=board)


def test_figures_of_other_run_options_are_measured_again_and_the_engine_is_kept(
    tiny: Bundle, store: Store, board: Board
) -> None:
    records = []
    for threads in (2, 1, 1):
        (engine,) = build_engines(tiny, store, submodels=[0], board=board, settings=RunSettings(threads=threads))
        records.append((engine.was_cached, engine.record))
    assert [(cached, record.latency.run_options) for cached, record in records] == [
        (False, ("threads=2",)),
        (True, ("threads=1",)),
        (True, ("threads=1",)),
    ]
    assert records[0][1].latency != records[1][1].latency
    assert records[1][1] == records[2][1] == store.read(engine.digest)[0]


def test_progress_names_the_graph_and_ends_at_the_last_image(tiny: Bundle, store: Store, board: Board) -> None:
    seen: list[tuple[str, float, float]] = []
    build_engines(
        tiny,
        store,
        submodels=[0],
        board=board,
        progress=lambda stage, done, total, note="": seen.append((stage, done, total)),
    )
    assert seen[0] == ("submodel 0", 0.0, 1.0)
    assert seen[-1] == ("submodel 0", 64.0, 64.0)


def test_the_record_says_how_the_engine_came_about(tiny: Bundle, store: Store) -> None:
    (built,) = build_engines(tiny, store, submodels=[0], board=Board("Jetson A", "sm_87", "36.4.3"))
    record, _ = store.read(built.digest)
    assert record.title == "submodel 0 of tiny"
    assert (record.key.backend, record.key.backend_version) == ("ort", ort.installed_version())
    assert record.l4t == "36.4.3"
    assert record == built.record
    assert 0 < record.latency.p50_ms <= record.latency.p99_ms
    assert record.created.endswith("Z")


def test_the_next_build_of_a_model_knows_how_long_the_last_one_took(
    tiny: Bundle, store: Store, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []

    def report(stage: str, done: float, total: float, note: str = "") -> None:
        notes.append(note)

    build_engines(tiny, store, submodels=[0], board=board, progress=report)
    assert not any("of about" in note for note in notes)
    newer = replace(backends.BACKENDS["ort"], version=lambda: "99.0")
    monkeypatch.setitem(backends.BACKENDS, "ort", newer)
    build_engines(tiny, store, submodels=[0], board=board, progress=report)
    assert any(note.startswith("building fp32: 0 s of about 0 s") for note in notes)
