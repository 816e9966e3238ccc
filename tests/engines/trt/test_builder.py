"""The adapter on a strict double of each TensorRT, whose names are those of the real wheels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.engines.build_requests import graph_file, graph_of, tiny_request
from tests.engines.fakes.fake_tensorrt import TABLES, VERSIONS, make_module

from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import EngineError
from devit_engines.engine import CannotCompileError
from devit_engines.selftest import report
from devit_engines.trt.builder import LoadedPlan, Watch, build_plan, can_be_cancelled, merged_cache, node_of_layer
from devit_engines.trt.request import Built, GraphFile
from devit_export.int8.quantize import quantize
from devit_export.precision import lower_precision

SELFTEST = Path(report.__file__).with_name("bundle")
PLAN_HEAD = 32
"""Bytes of a plan's header, and of the length of the double's own."""


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest) -> ModuleType:
    return make_module(request.param)


def go_on(phase: str) -> bool:
    return True


def built(trt: ModuleType, watch: Watch = go_on, timing_cache: bytes = b"", **changes: object) -> Built:
    """Build submodel 0 of the tiny bundle."""
    return build_plan(trt, tiny_request(Path("not written"), **changes), 1 << 26, timing_cache, watch)


def test_the_double_has_no_name_that_the_table_lacks(trt: ModuleType) -> None:
    """Read with another pattern than the double itself uses."""
    text = (TABLES / f"trt_api_{trt.__version__}.txt").read_text()
    for name, kind in vars(trt).items():
        if not isinstance(kind, type) or hasattr(kind, "__members__") or name in ("ILogger", "IExecutionContext"):
            continue
        section = text.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert section, name
        for member in vars(kind):
            if not member.startswith("_"):
                assert re.search(rf"^  (@ )?{member}\b", section, re.MULTILINE), f"{name}.{member}"


@pytest.mark.parametrize(
    ("version", "kind", "member"),
    [
        ("11.4.0.106", "BuilderFlag", "FP16"),
        ("11.4.0.106", "BuilderFlag", "INT8"),
        ("11.4.0.106", "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
        ("10.3.0", "ICudaEngine", "num_bindings"),
        ("8.6.1", "NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
    ],
)
def test_a_name_that_a_version_lacks_is_an_attribute_error(version: str, kind: str, member: str) -> None:
    with pytest.raises(AttributeError):
        getattr(getattr(make_module(version), kind), member)


def test_every_version_builds_a_plan_of_batch_one_that_can_be_loaded(trt: ModuleType) -> None:
    plan = built(trt)
    assert plan.precision_method == ("fp16 flag" if trt.__version__.startswith("8.") else "strongly typed")
    assert plan.warnings == ()
    loaded = LoadedPlan(trt, plan.content, "submodel 0")
    assert loaded.signature() == (("UINT8", (1, 6, 8, 1)), ("FLOAT", (1, 6)))
    assert '"Layers"' in loaded.information()
    loaded.close()


def test_fp32_is_not_rounded_to_tf32_and_layers_can_be_looked_at(trt: ModuleType) -> None:
    plan = built(trt, variant="fp32", graph=graph_of("fp32"))
    assert plan.precision_method == ("no flags" if trt.__version__.startswith("8.") else "strongly typed")
    content = plan.content
    assert b'"tf32": false' in content
    assert b'"fp16_flag": false' in content
    assert f'"verbosity": {int(trt.ProfilingVerbosity.DETAILED)}'.encode() in content


def test_without_strong_typing_the_variants_nodes_are_pinned_one_by_one() -> None:
    """TensorRT 8.6: the FP32 graph, the flag, and FP32 for what the variant keeps."""
    trt = make_module("8.6.1")
    names = [node for node in _node_names(Path(graph_of("fp32").path).read_bytes())]
    plan = built(trt, fp32_nodes=(names[3], "not there"))
    assert f'"pinned": ["{names[3]}"]'.encode() in plan.content
    assert b'"fp16_flag": true' in plan.content
    assert plan.warnings == ("1 of 2 nodes that stay in FP32 have no layer of their name, not there among them",)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> GraphFile:
    """The self-test's submodel 0 with its products in INT8, its norms in FP32 and the rest in FP16."""
    bundle = Bundle(SELFTEST)
    plain = onnx.load(bundle.path("submodel", device=0, variant="fp32"))
    written = quantize(plain, bundle.golden()["images"][:32], (), "selftest", runtime="tensorrt")
    path = tmp_path_factory.mktemp("int8") / "int8-fp16.onnx"
    onnx.save(lower_precision(written, norms_of(plain), "selftest"), path)
    return graph_file(path)


def norms_of(model: onnx.ModelProto) -> tuple[str, ...]:
    return tuple(node.name for node in model.graph.node if node.op_type == "LayerNormalization")


def test_int8_is_in_the_graph_and_in_the_flags_of_a_tensorrt_that_has_them(trt: ModuleType, int8: GraphFile) -> None:
    """TensorRT 8.6 parses the quantized graph too: the FP32 one has no scales, and a flag alone is refused."""
    norms = norms_of(onnx.load(int8.path))
    assert len(norms) == 5
    plan = built(trt, variant="int8-fp16", graph=int8, fp32_nodes=norms)
    assert b"QuantizeLinear" in plan.content
    assert plan.warnings == ()
    settings = settings_of(plan)
    is_old = trt.__version__.startswith("8.")
    assert (settings["int8_flag"], settings["fp16_flag"], settings["pinned"]) == (is_old, is_old, [*norms] * is_old)
    assert plan.precision_method == ("int8 and fp16 flags" if is_old else "strongly typed")
    loaded = LoadedPlan(trt, plan.content, "submodel 0")
    assert loaded.signature() == (("UINT8", (1, 28, 28, 1)), ("FLOAT", (1, 48)))
    loaded.close()


def test_int8_without_scales_is_refused_where_a_flag_asks_for_it() -> None:
    with pytest.raises(CannotCompileError, match=r"built no engine \(Calibration failure occurred"):
        built(make_module("8.6.1"), variant="int8-fp16", graph=graph_of("fp32"))


@pytest.mark.parametrize(
    ("zero", "text"),
    [
        (np.uint8(0), "Found invalid input type of UINT8"),
        (np.int8(3), "supports symmetric|Non-zero zero point"),
        (None, "invalid input type of UINT8|requires 3 inputs"),
    ],
)
def test_a_quantizer_that_is_not_symmetric_int8_is_refused_by_name(
    trt: ModuleType, int8: GraphFile, tmp_path: Path, zero: np.generic | None, text: str
) -> None:
    """Such as those that ONNX Runtime likes better."""
    model = onnx.load(int8.path)
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    if zero is None:
        del node.input[2]
    else:
        node.input[2] = "other"
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(zero), "other"))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CannotCompileError, match=rf"cannot read the graph of variant int8-fp16 .*({text})"):
        built(trt, variant="int8-fp16", graph=graph_file(tmp_path / "other.onnx"))


@pytest.mark.parametrize(("version", "flag"), [("10.3.0", "INT8"), ("10.13.3.9", "FP16")])
def test_a_precision_flag_beside_strong_typing_is_refused(version: str, flag: str, int8: GraphFile) -> None:
    """What the double has to be for: the adapter sets none."""
    trt = make_module(version)
    log: list[str] = []
    logger = SimpleNamespace(log=lambda severity, words: log.append(words))
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, logger).parse(int8.read())
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 26)
    config.set_flag(getattr(trt.BuilderFlag, flag))
    assert builder.build_serialized_network(network, config) is None
    assert log == [f"Parameter check failed, condition: !config.getFlag(BuilderFlag::k{flag})."]


def settings_of(plan: Built) -> dict[str, Any]:
    """What the double wrote into a plan."""
    found: dict[str, Any] = json.loads(plan.content[PLAN_HEAD:].partition(b"}")[0] + b"}")
    return found


@pytest.mark.parametrize("tells", [True, False])
def test_every_node_that_a_shipped_variant_keeps_has_its_layer(tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not tells:
        monkeypatch.setenv("FAKE_TRT_NO_METADATA", "1")
    manifest = Bundle(SELFTEST).manifest
    for variant in ("fp16", "fp16-attn32"):
        graph, plain = (graph_file(SELFTEST / f"submodel-0.{each}.onnx") for each in (variant, "fp32"))
        nodes = manifest.submodels[0].fp32_nodes[variant]
        plan = built(make_module("8.6.1"), graph=graph, fp32_graph=plain, fp32_nodes=nodes)
        assert plan.warnings == ()
        pinned = settings_of(plan)["pinned"]
        assert set(pinned) >= set(nodes)
        if tells:
            assert set(pinned) == set(nodes)


def test_a_timing_cache_that_does_not_fit_is_started_anew(trt: ModuleType) -> None:
    plan = built(trt, timing_cache=b'{"version": "7.0", "entries": [1, 2]}')
    assert json.loads(plan.timing_cache) == {
        "version": trt.__version__,
        "entries": json.loads(plan.timing_cache)["entries"],
    }
    assert len(json.loads(plan.timing_cache)["entries"]) == 1


def test_a_layer_belongs_to_the_node_that_its_metadata_names_else_to_one_of_its_name() -> None:
    """Names as exporter and parser give them: ``node_matmul`` and ``node_matmul_1`` are two nodes."""
    nodes = ("node_matmul", "Gemm_3")

    def node_of(name: str, metadata: str = "") -> str | None:
        return node_of_layer(name, metadata, nodes)

    assert node_of("node_matmul_1", "[ONNX Layer: node_matmul_1]") is None
    assert node_of("node_matmul", "[ONNX Layer: node_matmul]") == "node_matmul"
    assert node_of("Gemm_3_48", "[ONNX Layer: Gemm_3]") == "Gemm_3"
    assert node_of("node_matmul") == "node_matmul"
    assert node_of("node_matmul_1") == "node_matmul"  # rather one too many
    assert node_of("node_matmul2") is None
    assert node_of("ONNXTRT_Broadcast_3") is None


def test_the_loggers_last_errors_stand_in_the_exception(trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRT_FAIL", "no kernel image\nfor this device")
    with pytest.raises(EngineError, match=r"built no engine \(no kernel image for this device\)"):
        built(trt)


def test_warnings_about_fp16_are_kept(trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "Detected layernorm nodes in FP16"
    monkeypatch.setenv("FAKE_TRT_WARN", words)
    assert built(trt).warnings == (words,)
    monkeypatch.setenv("FAKE_TRT_WARN", "something about the weather")
    assert built(trt).warnings == ()


def test_a_graph_that_is_none_is_refused_in_the_parsers_words(trt: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "none.onnx").write_bytes(b"no graph")
    none = graph_file(tmp_path / "none.onnx")
    with pytest.raises(EngineError, match=r"cannot read the graph of variant fp16 \(node 0: failed to parse"):
        built(trt, graph=none, fp32_graph=none)


def test_a_build_is_cancelled_where_there_is_a_monitor(trt: ModuleType) -> None:
    phases: list[str] = []

    def stop(phase: str) -> bool:
        phases.append(phase)
        return False

    if not can_be_cancelled(trt):
        assert trt.__version__ == "8.6.1"
        built(trt, stop)
        return
    with pytest.raises(EngineError, match="cancelled"):
        built(trt, stop)
    assert set(phases) == {"Tactic Selection"}


def test_timing_caches_of_one_version_are_merged_and_of_two_the_newer_is_taken(trt: ModuleType) -> None:
    first, second = (built(trt).timing_cache for _ in range(2))
    assert merged_cache(trt, b"", first) == first
    assert merged_cache(trt, first, second).count(b",") == first.count(b",") + 1
    assert merged_cache(trt, b'{"version": "7.0", "entries": [1]}', second) == second
    assert merged_cache(trt, b"damaged", second) == second


def test_a_plan_of_another_version_is_refused_in_tensorrts_words(trt: ModuleType) -> None:
    other = make_module(next(version for version in VERSIONS if version != trt.__version__))
    content = built(other).content
    with pytest.raises(EngineError, match=r"refuses the plan.*Version tag does not match"):
        LoadedPlan(trt, content, "submodel 0")


def test_a_module_that_is_not_tensorrt_is_named() -> None:
    with pytest.raises(EngineError, match="expected TensorRT's Python module, found elsewhere"):
        built(_hollow())


def _hollow() -> ModuleType:
    module = ModuleType("elsewhere")
    module.NetworkDefinitionCreationFlag = object()  # type: ignore[attr-defined]
    return module


def _node_names(model: bytes) -> list[str]:
    import onnx

    return [node.name for node in onnx.load_from_string(model).graph.node]
