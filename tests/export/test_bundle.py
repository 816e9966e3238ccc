"""A bundle says what decompose measured and torch answers, is the same twice, and is whole or absent."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import safetensors.numpy
import torch

from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.files import read_tensors
from devit_contract.artefacts.head import Fusion, FusionHead
from devit_contract.artefacts.manifest import Bundle, Manifest, Preprocess, SubsetAccuracy
from devit_contract.choices import VARIANTS
from devit_contract.errors import DevitError, EngineError, ExportError, InputError, ManifestError
from devit_contract.service.progress import no_progress
from devit_decompose.models.inference import run
from devit_decompose.models.model import Model
from devit_decompose.models_folder.decomposition import load_decomposition
from devit_decompose.training.objectives import Ensemble
from devit_engines.building.build_all import build_engines, load_engine
from devit_engines.building.store import Store
from devit_export.bundle import export_bundle
from devit_export.int8.products import Runtime
from devit_export.int8.quantize import quantizable
from devit_export.parity import run_graph
from devit_export.rules import Graph

USUAL = tuple(variant for variant in VARIANTS if variant != "fp8-fp16")
BASELINE = {f"baseline.{variant}.onnx" for variant in USUAL}
FILES = {f"submodel-{device}.{variant}.onnx" for device in (0, 1) for variant in USUAL} | BASELINE
FILES |= {"fusion.safetensors", "golden.safetensors", "calibration.safetensors", "manifest.json"}
FILES -= {"submodel-1.int8.onnx"}  # random weights do not bear it
Written = tuple[Path, Manifest]


@dataclass
class Replaced:
    """A bundle written over an older one that had a file more."""

    folder: Path
    calls: list[tuple[str, float, float, str]]
    """What progress was told: stage, done, total, note."""


@pytest.fixture(scope="module")
def replaced(written: Written, models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Replaced:
    folder = Path(shutil.copytree(written[0], tmp_path_factory.mktemp("replaced") / "bundle"))
    (folder / "submodel-7.fp32.onnx").write_bytes(b"of a bundle with more devices")
    calls: list[tuple[str, float, float, str]] = []
    export_bundle(models_folder, folder, serial=3, progress=lambda *call: calls.append(call))
    return Replaced(folder, calls)


@pytest.fixture
def models_copy(models_folder: Path, tmp_path: Path) -> Path:
    """A models folder that a test may damage."""
    return Path(shutil.copytree(models_folder, tmp_path / "models"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _change_tensor(models: Path, file: str, tensor: str, value: npt.NDArray[Any]) -> None:
    """Put another tensor into a file and the right digest into decomposition.json."""
    tensors = safetensors.numpy.load_file(models / file)
    (models / file).write_bytes(safetensors.numpy.save(tensors | {tensor: value}))
    record = models / "decomposition.json"
    raw = json.loads(record.read_text())
    for entry in raw["files"]:
        if entry["name"] == file:
            entry["sha256"] = hashlib.sha256((models / file).read_bytes()).hexdigest()
            entry["size_bytes"] = (models / file).stat().st_size
    record.write_text(json.dumps(raw))


def _refusal(models: Path, out: Path, kind: type[DevitError]) -> str:
    with pytest.raises(kind) as refused:
        export_bundle(models, out, progress=no_progress)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_bundle_can_be_read_back_and_holds_just_its_files(written: Written) -> None:
    folder, manifest = written
    assert Bundle(folder).manifest == manifest
    assert {path.name for path in folder.iterdir()} == FILES
    assert {file.name for file in manifest.files} == FILES - {"manifest.json"}


def test_the_manifest_says_what_devices_need(written: Written, preprocess: Preprocess) -> None:
    _, manifest = written
    assert (manifest.serial, manifest.name, manifest.opset) == (3, "animals", 17)
    assert manifest.labels == ("cat", "dog", "newt")
    assert manifest.preprocess == preprocess
    assert preprocess.resize_to == 20  # not what it would be by default
    assert [graph.output_dim for graph in manifest.submodels] == [2 * 16, 24]
    assert [graph.class_subset for graph in manifest.submodels] == [(0, 2), (1,)]
    assert manifest.baseline is not None
    assert manifest.baseline.output_dim == 3
    assert manifest.test_data == "Three animals, 30 test images"
    assert manifest.fp16_headroom == 4.0


GRAPHS = (("submodel", 0), ("submodel", 1), ("baseline", None))


def test_every_graph_has_all_variants_with_their_figures(written: Written) -> None:
    folder, manifest = written
    for role, device in GRAPHS:
        graph = manifest.graph(role, device)
        assert graph.variants == tuple(parity.variant for parity in graph.parity)
        assert graph.variants == tuple(variant for variant in USUAL if variant not in graph.left_out)
        assert {parity.nodes_before for parity in graph.parity} == {graph.parity[0].nodes_before}
        for parity in graph.parity:
            name = manifest.file(role, device=device, variant=parity.variant).name
            assert name.endswith(f".{parity.variant}.onnx")
            nodes = [node.op_type for node in onnx.load(folder / name).graph.node]
            assert (parity.nodes_after, parity.casts) == (len(nodes), nodes.count("Cast"))
            assert 0.0 <= parity.simplify_max_abs_error < 1e-5
            largest = {"fp32": 1e-5, "fp16": 0.05, "fp16-attn32": 0.05}.get(parity.variant, 3.0)
            assert 0.0 < parity.mean_abs_error < parity.max_abs_error < largest


def test_nodes_that_stay_in_fp32_are_named_as_in_the_fp32_graph(written: Written) -> None:
    """TensorRT 8.6 has no strong typing: it builds that graph and pins these nodes."""
    folder, manifest = written
    for role, device in GRAPHS:
        graph = manifest.graph(role, device)
        path = folder / manifest.file(role, device=device, variant="fp32").name
        kinds = {node.name: node.op_type for node in onnx.load(path).graph.node}
        assert graph.fp32_nodes.keys() == {"int8-fp16", "fp16", "fp16-attn32"}
        assert {kinds[name] for name in graph.fp32_nodes["int8-fp16"]} >= {"LayerNormalization"}
        assert {kinds[name] for name in graph.fp32_nodes["fp16"]} >= {"LayerNormalization"}
        assert {kinds[name] for name in graph.fp32_nodes["fp16-attn32"]} >= {"LayerNormalization", "MatMul", "Softmax"}
        assert set(graph.fp32_nodes["fp16"]) < set(graph.fp32_nodes["fp16-attn32"])


@pytest.mark.system
def test_a_bundle_has_fp8_where_it_is_asked_for(assembled_folder: Path, tmp_path: Path) -> None:
    told: list[tuple[float, float]] = []
    manifest = export_bundle(
        assembled_folder,
        tmp_path / "bundle",
        fp8=True,
        progress=lambda _stage, done, total, _note: told.append((done, total)),
    )
    assert told[-1] == (14, 14)  # six variants of two submodels, the fusion head, the manifest
    bundle = Bundle(tmp_path / "bundle")
    assert manifest.int8_accuracy is not None
    for device, graph in enumerate(manifest.submodels):
        assert graph.variants == tuple(variant for variant in VARIANTS if variant not in graph.left_out)
        assert graph.variants[0] == "fp8-fp16"
        products = quantizable(
            onnx.load(bundle.path("submodel", device=device, variant="fp32")), "x", runtime="tensorrt"
        )
        assert len(graph.kept_products["fp8-fp16"]) <= 0.75 * len(products)
        model = onnx.load(bundle.path("submodel", device=device, variant="fp8-fp16"))
        assert Graph(model, "x").opset == 19
    assert manifest.opset == 17
    assert "fp8-fp16" in manifest.int8_accuracy.fused


def test_products_that_stay_out_of_int8_are_named_and_all_others_are_in_it(written: Written) -> None:
    folder, manifest = written
    for role, device in GRAPHS:
        graph = manifest.graph(role, device)
        assert graph.kept_products.keys() == {"int8-fp16", "int8"} - graph.left_out.keys()
        plain = folder / manifest.file(role, device=device, variant="fp32").name
        for variant, kept in graph.kept_products.items():
            runtime: Runtime = "ort" if variant == "int8" else "tensorrt"
            products = set(quantizable(onnx.load(plain), "x", runtime=runtime))
            path = folder / manifest.file(role, device=device, variant=variant).name
            found = Graph(onnx.load(path), path.name)
            makers = {
                node.name: found.producers.get(found.uncast(node.input[1]))
                for node in found.nodes
                if len(node.input) > 1
            }
            in_int8 = {name for name in products if (made := makers[name]) and made.op_type == "DequantizeLinear"}
            assert products - in_int8 == set(kept)
            assert len(in_int8) >= max(1, round(0.25 * len(products)))


def test_the_cell_in_int8_is_measured_with_all_its_devices_on_images_that_are_not_golden(
    written: Written, models_folder: Path
) -> None:
    folder, manifest = written
    kept = read_tensors(models_folder / "quantization.safetensors", "")
    found = manifest.int8_accuracy
    assert found is not None
    assert found.images == len(kept["labels"]) == 30 - 12
    for variant, accuracy in (("fp32", found.fp32), *found.fused.items()):
        answers = _fused(folder, variant, kept["images"]).argmax(axis=1)
        assert accuracy == pytest.approx((answers == kept["labels"]).mean())
    assert all(found.fp32 - accuracy <= 0.003 for accuracy in found.fused.values())


def test_the_range_of_every_float_tensor_is_told_and_none_overflows(written: Written) -> None:
    folder, manifest = written
    for role, device in GRAPHS:
        graph = manifest.graph(role, device)
        path = folder / manifest.file(role, device=device, variant="fp32").name
        computed = {output for node in onnx.load(path).graph.node for output in node.output}
        assert graph.ranges.keys() == computed
        assert all(0.0 < largest < 65504.0 for largest in graph.ranges.values())
        assert graph.overflows == ()


def test_accuracies_and_costs_are_those_that_decompose_measured(written: Written, models_folder: Path) -> None:
    """Export measures no accuracy of its own, so it can contradict nobody."""
    _, manifest = written
    source = load_decomposition(models_folder)
    assert [(entry.mask, entry.validation_accuracy, entry.test_accuracy) for entry in manifest.subsets] == [
        (entry.mask, entry.validation_accuracy, entry.test_accuracy) for entry in source.subsets
    ]
    assert [entry.mask for entry in manifest.subsets] == [1, 2, 3]
    assert source.teacher_validation_accuracy is not None
    assert source.teacher_test_accuracy is not None
    assert manifest.baseline_accuracy == SubsetAccuracy(
        0, source.teacher_validation_accuracy, source.teacher_test_accuracy
    )
    assert [graph.macs for graph in manifest.submodels] == [model.macs for model in source.submodels]


def test_golden_features_are_exactly_those_of_torch(
    written: Written, submodels: tuple[Model, ...], teacher: Model
) -> None:
    """Taken from ONNX Runtime, or in single precision, they would carry an error into every later comparison."""
    golden = Bundle(written[0]).golden()
    for device, model in enumerate(map(copy.deepcopy, submodels)):
        np.testing.assert_array_equal(golden[f"features.{device}"], run(model.double().features, golden["images"]))
    np.testing.assert_array_equal(
        golden["baseline.logits"], run(copy.deepcopy(teacher).double(), golden["images"], batch=5)
    )


def test_golden_images_are_the_samples_of_the_models_folder(written: Written, models_folder: Path) -> None:
    golden = Bundle(written[0]).golden()
    samples = read_tensors(models_folder / "samples.safetensors", "")
    np.testing.assert_array_equal(golden["images"], samples["images"])
    np.testing.assert_array_equal(golden["labels"], samples["labels"])


def test_golden_logits_are_the_sum_over_all_devices(written: Written, models_folder: Path) -> None:
    golden = Bundle(written[0]).golden()
    head = read_tensors(models_folder / "fusion.safetensors", "")
    weights = np.split(head["weight"].astype(np.float64), [32], axis=1)
    expected = head["bias"] + sum(golden[f"features.{device}"] @ weights[device].T for device in (0, 1))
    assert golden["logits"].dtype == np.float32
    np.testing.assert_allclose(golden["logits"], expected, atol=1e-5)


def _fused(folder: Path, variant: str = "fp32", images: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.float32]:
    """What a node makes of what the graphs give to some images, or the golden ones, all devices present."""
    bundle = Bundle(folder)
    images = bundle.golden()["images"] if images is None else images
    features = []
    for device, graph in enumerate(bundle.manifest.submodels):
        taken = variant if variant in graph.variants else "fp32"
        features.append(run_graph("a submodel", bundle.read("submodel", device=device, variant=taken), images))
    head = FusionHead.load(bundle.path("fusion"))
    return Fusion(head).batch_logits(np.concatenate(features, axis=1), head.all_devices)


def test_a_deit_beside_a_cct_answers_as_the_trained_ensemble(written: Written, ensemble: Ensemble) -> None:
    """The node knows of one linear fusion; training had one for class tokens and one for distillation tokens."""
    expected = run(ensemble, Bundle(written[0]).golden()["images"])
    assert expected.std(axis=0).min() > 0.1  # images differ
    np.testing.assert_allclose(_fused(written[0]), expected, atol=1e-4)


def test_deits_alone_answer_as_the_trained_ensemble(written_assembled: Written, assembled: Ensemble) -> None:
    images = torch.from_numpy(Bundle(written_assembled[0]).golden()["images"])
    with torch.inference_mode():
        expected = assembled(images).numpy()
    assert expected.std(axis=0).min() > 0.1  # images differ
    np.testing.assert_allclose(_fused(written_assembled[0]), expected, atol=1e-4)


def test_what_a_models_folder_does_not_have_its_bundle_does_not_have_either(written_assembled: Written) -> None:
    folder, manifest = written_assembled
    assert Bundle(folder).manifest == manifest
    in_int8 = {f"submodel-{device}.{variant}.onnx" for device in (0, 1) for variant in ("int8-fp16", "int8")}
    assert {path.name for path in folder.iterdir()} == FILES - BASELINE - in_int8 - {"calibration.safetensors"}
    assert manifest.int8_accuracy is None
    (reason,) = manifest.left_out
    assert reason.endswith("found none: run devit evaluate MODELS --calibrate, then devit export again")
    assert (manifest.baseline, manifest.baseline_accuracy) == (None, None)
    assert "baseline.logits" not in Bundle(folder).golden()
    assert "baseline" not in (folder / "manifest.json").read_text()
    assert [graph.class_subset for graph in manifest.submodels] == [(0, 1), (2,)]


def test_a_device_builds_engines_of_a_bundle_without_a_baseline(written_assembled: Written, tmp_path: Path) -> None:
    bundle, store = Bundle(written_assembled[0]), Store(tmp_path)
    built = build_engines(bundle, store)
    assert [(engine.record.accuracy.images, engine.record.accuracy.flips) for engine in built] == [(12, 0)] * 2
    with pytest.raises(EngineError, match="has no baseline"):
        load_engine(bundle, store, "baseline")


@pytest.mark.parametrize("name", ["fusion.safetensors", "calibration.safetensors"])
def test_what_the_node_needs_travels_unchanged(written: Written, models_folder: Path, name: str) -> None:
    assert (written[0] / name).read_bytes() == (models_folder / name).read_bytes()


def test_a_node_reads_the_calibration_by_its_role(written: Written) -> None:
    bundle = Bundle(written[0])
    sha256 = bundle.manifest.file("calibration").sha256
    calibration = Calibration.load(bundle.path("calibration"), devices=2, sha256=sha256)
    assert (calibration.images, sorted(calibration.flips)) == (30, [0b01, 0b10])


@pytest.mark.system
def test_a_second_export_gives_the_same_bytes_in_every_file(written: Written, replaced: Replaced) -> None:
    """Engines are stored under the digest of the graph: a new digest would rebuild every engine of the fleet."""
    assert _contents(replaced.folder) == _contents(written[0])


EXPORT = """
import sys
from pathlib import Path
from devit_export.bundle import export_bundle
export_bundle(Path(sys.argv[1]), Path(sys.argv[2]), serial=3)
"""
OTHER_CPU = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
}
"""torch computes as on a CPU without AVX: sums in single precision come out otherwise."""


@pytest.mark.system
def test_another_kind_of_cpu_gives_the_same_graphs_and_golden_set(
    written: Written, models_folder: Path, tmp_path: Path
) -> None:
    """Else each desk that exports would have its own golden set, and devices would check all engines again."""
    out = tmp_path / "bundle"
    words = [sys.executable, "-c", EXPORT, models_folder, out]
    subprocess.run(words, check=True, capture_output=True, timeout=300, env=os.environ | OTHER_CPU)
    ours, theirs = _contents(written[0]), _contents(out)
    assert {name for name in ours if ours[name] != theirs[name]} <= {"manifest.json"}


@pytest.mark.system
def test_an_older_bundle_is_replaced_as_a_whole(replaced: Replaced) -> None:
    """A file of the older one that stayed would be served by nobody and doubted by everybody."""
    assert {path.name for path in replaced.folder.iterdir()} == FILES
    assert [path.name for path in replaced.folder.parent.iterdir()] == ["bundle"]


@pytest.mark.system
def test_progress_names_each_file_and_ends_at_its_total(replaced: Replaced) -> None:
    assert {stage for stage, *_ in replaced.calls} == {"exporting"}
    names = [name for *_, name in replaced.calls]
    assert {name for name in names if name.endswith(".onnx")} >= {name for name in FILES if name.endswith(".onnx")}
    assert [done for _, done, _, _ in replaced.calls] == sorted(done for _, done, _, _ in replaced.calls)
    assert replaced.calls[-1][1:3] == (17, 17)


@pytest.mark.system
def test_a_variant_that_does_not_hold_is_left_out_by_name_and_devices_build_the_next(
    assembled_folder: Path, tmp_path: Path
) -> None:
    """Weights of 1e-8 are zero in FP16, and this model's images are all alike then."""
    models = Path(shutil.copytree(assembled_folder, tmp_path / "models"))
    tensors = read_tensors(models / "submodel-0.safetensors", "")
    for name in ("tokenizer.layers.0.weight", "tokenizer.layers.0.bias", "positions", "prefix"):
        _change_tensor(models, "submodel-0.safetensors", name, tensors[name] * np.float32(1e-7))
    manifest = export_bundle(models, tmp_path / "bundle")
    assert manifest.submodels[0].variants[-1] == "fp32"
    assert manifest.submodels[0].left_out.keys() >= {"int8-fp16", "fp16", "fp16-attn32"}
    reason = manifest.submodels[0].left_out["fp16"]
    words = r"submodel-0\.fp16\.onnx: expected what was trained, found smallest cosine .*: the variant is left out.*"
    assert re.fullmatch(words, reason)
    assert manifest.submodels[1].variants == USUAL
    assert manifest.submodels[1].left_out == {}
    assert not (tmp_path / "bundle" / "submodel-0.fp16.onnx").exists()
    built = build_engines(Bundle(tmp_path / "bundle"), Store(tmp_path / "store"))
    assert [engine.record.accuracy.flips_above_margin for engine in built] == [0, 0]


def test_a_flipped_bit_in_a_checkpoint_is_refused(models_copy: Path, tmp_path: Path) -> None:
    path = models_copy / "submodel-1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = _refusal(models_copy, tmp_path / "bundle", ManifestError)
    assert message.startswith(f"{path}: expected sha256")
    assert not (tmp_path / "bundle").exists()


def test_weights_of_another_model_are_refused(models_copy: Path, tmp_path: Path) -> None:
    """The digest holds, the shapes do not."""
    _change_tensor(models_copy, "submodel-0.safetensors", "norm.weight", np.ones(8, np.float32))
    message = _refusal(models_copy, tmp_path / "bundle", ManifestError)
    assert "tensor norm.weight: expected shape (16,), found (8,)" in message


def test_samples_of_another_size_are_refused(models_copy: Path, tmp_path: Path) -> None:
    _change_tensor(models_copy, "samples.safetensors", "images", np.zeros((12, 9, 9, 3), np.uint8))
    assert "samples.safetensors: expected tensors" in _refusal(models_copy, tmp_path / "bundle", ManifestError)


def test_a_fusion_head_for_other_submodels_is_refused(models_copy: Path, tmp_path: Path) -> None:
    _change_tensor(models_copy, "fusion.safetensors", "dims", np.array([24, 32], np.int64))
    message = _refusal(models_copy, tmp_path / "bundle", ManifestError)
    assert "expected feature dims and classes ((32, 24), 3), found ((24, 32), 3)" in message


def test_a_model_of_other_images_than_its_preprocessing_gives_is_refused(models_copy: Path, tmp_path: Path) -> None:
    """Torch would name two numbers of tokens, and no file."""
    record = models_copy / "decomposition.json"
    raw = json.loads(record.read_text())
    raw["submodels"][1]["config"]["image_size"] = [12, 14, 3]
    record.write_text(json.dumps(raw))
    message = _refusal(models_copy, tmp_path / "bundle", ManifestError)
    assert "expected models of images (10, 14, 3) as in preprocess, found one of (12, 14, 3)" in message


def test_a_failure_in_the_middle_leaves_the_older_bundle_and_nothing_else(
    written: Written, models_copy: Path, tmp_path: Path
) -> None:
    """The first submodel is written by then; the second answers infinity."""
    old = Path(shutil.copytree(written[0], tmp_path / "bundle"))
    _change_tensor(models_copy, "submodel-1.safetensors", "norm.weight", np.full(24, 3e38, np.float32))
    assert "submodel-1.safetensors: expected finite outputs" in _refusal(models_copy, old, ExportError)
    assert _contents(old) == _contents(written[0])
    assert {path.name for path in tmp_path.iterdir()} == {"models", "bundle"}


def test_a_folder_that_is_no_bundle_is_never_replaced(models_copy: Path) -> None:
    """A slip of the hand, --out on the models folder, would remove two hours of training."""
    before = _contents(models_copy)
    assert "expected no folder, an empty one or an older one with manifest.json" in _refusal(
        models_copy, models_copy, InputError
    )
    assert _contents(models_copy) == before


def test_a_serial_below_one_is_refused(models_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="serial: expected 1 or more, found 0"):
        export_bundle(models_folder, tmp_path / "bundle", serial=0)


@pytest.mark.parametrize("headroom", [0.9, math.nan, math.inf])
def test_a_headroom_that_is_no_factor_is_refused(models_folder: Path, tmp_path: Path, headroom: float) -> None:
    with pytest.raises(InputError, match="headroom: expected 1 or more, found"):
        export_bundle(models_folder, tmp_path / "bundle", headroom=headroom)
