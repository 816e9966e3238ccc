"""Real TensorRT wheels, without a GPU: the double has no name that they lack.

They need an environment of their own, made from the package index.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
from tests.engines.fakes.fake_tensorrt import VERSIONS

HERE = Path(__file__).parents[1]
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
