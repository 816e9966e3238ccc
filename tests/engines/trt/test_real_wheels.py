"""Real TensorRT wheels, without a GPU: the double has no name that they lack, NVIDIA's compiler takes our graphs.

Both need an environment of their own, made from the package index.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
import torch
from tests.engines.fakes.fake_tensorrt import VERSIONS

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import VARIANTS
from devit_decompose.models.model import Model, StemLayer, uniform_config
from devit_export.graph import export_features
from devit_export.variants import make_variant

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
DEADLINE_S = 900
pytestmark = [pytest.mark.nightly(part="installs"), pytest.mark.timeout(DEADLINE_S)]

STUBS = """
#include <stddef.h>
void *createInferBuilder_INTERNAL(void *l, int v) { return NULL; }
void *createInferRuntime_INTERNAL(void *l, int v) { return NULL; }
void *createInferRefitter_INTERNAL(void *e, void *l, int v) { return NULL; }
void *createNvOnnxParser_INTERNAL(void *n, void *l, int v) { return NULL; }
void *createNvOnnxParserRefitter_INTERNAL(void *r, void *l, int v) { return NULL; }
void *getBuilderPluginRegistry(int c) { return NULL; }
void *getPluginRegistry(void) { return NULL; }
int getNvOnnxParserVersion(void) { return 0; }
_Bool initLibNvInferPlugins(void *l, const char *n) { return 1; }
"""
"""The functions that the bindings need to be imported."""
PACKAGES = {
    "8.6.1": ("tensorrt-bindings==8.6.1",),
    "10.3.0": ("tensorrt-cu12-bindings==10.3.0",),
    "10.13.3.9": ("tensorrt-cu12-bindings==10.13.3.9",),
    "11.4.0.106": ("tensorrt-cu12-bindings==11.4.0.106",),
}
CHECK = """
import importlib, sys
sys.path.insert(0, {fakes!r})
import fake_tensorrt
double = fake_tensorrt.make_module({version!r})
real = importlib.import_module({module!r})
assert real.__version__ == {version!r}, real.__version__
checked = 0
for name, kind in vars(double).items():
    if not isinstance(kind, type):
        continue
    other = getattr(real, name)
    members = getattr(kind, "__members__", None)
    if members is not None:
        for member, value in members.items():
            assert int(getattr(other, member)) == int(value), (name, member)
            checked += 1
        continue
    for member in vars(kind):
        if not member.startswith("_"):
            assert hasattr(other, member), (name, member)
            checked += 1
print(checked, "names checked")
"""


def environment(folder: Path, *packages: str) -> Path:
    """Make a virtual environment with some packages; skip where the index has none of them."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    words = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *packages]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode != 0:
        pytest.skip(f"cannot install {', '.join(packages)}: {done.stderr.strip().splitlines()[-1]}")
    return python


def uff_and_caffe(folder: Path) -> str:
    """C functions of the names that the bindings of 8.6 want of libnvparsers, mangled as they are."""
    (binding,) = folder.glob("lib/python*/site-packages/tensorrt_bindings/tensorrt.so")
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(binding)], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    wanted = [name for name in names if re.search("nvuffparser|nvcaffeparser|UffParser|CaffeParser", name)]
    return "\n".join(f"void *{name}(void) {{ return 0; }}" for name in wanted)


def run(python: Path, *words: str, **settings: str) -> str:
    done = subprocess.run(
        [str(python), *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={"PATH": "/usr/bin:/bin", **settings},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed: apt install gcc")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_double_has_no_name_that_the_real_bindings_lack(tmp_path: Path, version: str) -> None:
    python = environment(tmp_path / "venv", *PACKAGES[version], f"numpy=={'1.26.4' if version == '8.6.1' else '2.2.6'}")
    major = version.partition(".")[0]
    (tmp_path / "stubs.c").write_text(STUBS)
    (tmp_path / "nvparsers.c").write_text(uff_and_caffe(tmp_path / "venv"))
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin", "nvparsers"):
        source = "nvparsers.c" if name == "nvparsers" else "stubs.c"
        words = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,lib{name}.so.{major}", "-o", f"lib{name}.so.{major}", source]
        subprocess.run(words, cwd=tmp_path, check=True, timeout=60)
    script = CHECK.format(fakes=str(HERE / "fakes"), version=version, module="tensorrt_bindings")
    print(version, run(python, "-c", script, LD_LIBRARY_PATH=str(tmp_path)).strip())


RTX = (
    "tensorrt-rtx-cu13==1.7.1.116",
    "tensorrt-rtx-cu13-libs==1.7.1.116",
    "tensorrt-rtx-cu13-bindings==1.7.1.116",
    "numpy==2.2.6",
    "msgspec",
    "safetensors",
)
COMPILE = """
import hashlib, json, sys, time
from pathlib import Path
from devit_engines.trt.builder import node_of_layer
from devit_engines.trt.child import build_in_child
from devit_engines.trt.request import BuildRequest, GraphFile
import tensorrt_rtx as trt
folder = Path(sys.argv[1])
log = trt.Logger()
builder = trt.Builder(log)
network = builder.create_network(0)
assert trt.OnnxParser(network, log).parse((folder / "vit.fp32.onnx").read_bytes())
layers = [network.get_layer(index) for index in range(network.num_layers)]
norms = [layer for layer in layers if layer.type == trt.LayerType.NORMALIZATION]
assert norms and all(type(layer) is trt.ILayer for layer in norms)  # as the double has it
norms[0].__class__ = trt.INormalizationLayer
assert norms[0].epsilon > 0  # a setting of normalisation alone
network = builder.create_network(0)
assert trt.OnnxParser(network, log).parse((folder / "selftest.fp32.onnx").read_bytes())
layers = [network.get_layer(index) for index in range(network.num_layers)]
nodes = tuple(json.loads((folder / "nodes.json").read_text()))
assert {node_of_layer(layer.name, layer.metadata, nodes) for layer in layers} == {*nodes, None}
assert builder.create_builder_config().get_timing_cache() is None  # as the double has it
for path in sorted(folder.glob("*.onnx")):
    start_s = time.monotonic()
    graph = GraphFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    places = str(folder / "timing.cache"), str(folder / ".draft.")
    order = BuildRequest(path.stem, "fp32", graph, graph, (), *places, module="tensorrt_rtx", targets=("SM86",))
    phases = set()
    plan = build_in_child(order, lambda elapsed_s, phase: phases.add(phase), 1 << 28)
    assert plan.content[:4] == b"vtrt", plan.content[:4]  # ftrt in the product for Jetsons
    assert list(plan.content[24:28]) == [1, 7, 1, 116], list(plan.content[24:28])
    assert "Building engine" in phases, phases
    print(f"{path.name}: {len(plan.content) / 1e6:.2f} MB in {time.monotonic() - start_s:.1f} s", *plan.warnings)
"""
SELFTEST = ROOT / "engines" / "devit_engines" / "selftest" / "bundle"
SHIPPED = ROOT / "pipeline" / "devit_pipeline" / "fashion_mnist" / "bundle"


def write_variants(folder: Path) -> int:
    """Every variant of a small ViT, DeiT and CCT, and of the shipped bundle; how many."""
    for backbone, stem in (
        ("vit", (StemLayer(64, 8, 8, batch_norm=False),)),
        ("deit", (StemLayer(64, 8, 8, batch_norm=False),)),
        ("cct", (StemLayer(32, 3, 2), StemLayer(64, 3, 2))),
    ):
        config = uniform_config(
            backbone=backbone,
            image_size=(32, 32, 3),
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            stem=stem,
            depth=3,
            heads=4,
            mlp_ratio=2.0,
            classes=(0, 1, 2),
        )
        torch.manual_seed(1)
        graph = export_features(Model(config).eval(), backbone)
        for variant in VARIANTS:
            (folder / f"{backbone}.{variant}.onnx").write_bytes(make_variant(graph, variant, (), backbone).content)
    graph = Bundle(SELFTEST).manifest.submodels[0]
    (folder / "nodes.json").write_text(json.dumps(graph.fp32_nodes["fp16-attn32"]))
    shutil.copy(SELFTEST / "submodel-0.fp32.onnx", folder / "selftest.fp32.onnx")
    for path in SHIPPED.glob("*.onnx"):
        shutil.copy(path, folder / f"shipped-{path.name}")
    return len(list(folder.glob("*.onnx")))


def test_nvidias_compiler_builds_every_variant_through_the_adapter(tmp_path: Path) -> None:
    """TensorRT-RTX compiles for a GPU that is not there; nothing runs."""
    count = write_variants(tmp_path)
    assert count >= 9
    python = environment(tmp_path / "venv", *RTX)
    path = f"{ROOT / 'engines'}:{ROOT / 'contract'}"
    printed = run(python, "-c", COMPILE, str(tmp_path), PYTHONPATH=path)
    print(printed)
    assert len(printed.splitlines()) == count
