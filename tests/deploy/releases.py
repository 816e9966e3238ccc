"""What is rolled out in tests: devit's own wheel, whole or with a broken agent, and a signed Fashion-MNIST bundle."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import zipfile
from pathlib import Path

import msgspec
import onnx

from devit_contract.artefacts.file_list import describe_file
from devit_contract.artefacts.files import read_tensors, write_tensors
from devit_contract.artefacts.manifest import Bundle, write_manifest
from devit_contract.artefacts.signing import SIGNATURE_NAME, sign_manifest, signer_line

ROOT = Path(__file__).parents[2]
FASHION = ROOT / "pipeline/devit_pipeline/fashion_mnist/bundle"
WRONG_FEATURES = """

from devit_engines.ort import OrtEngine as _Engine

_features = _Engine.features
_Engine.features = lambda self, images: -_features(self, images)
"""
"""At the end of ``loading.py``: the agent starts, is accepted, and answers nonsense."""


def lighten_wheel(wheel: Path, folder: Path) -> Path:
    """Copy this repository's wheel, without the demo's bundle, and with a file that shows the test environment.

    So five hosts need not install ONNX Runtime each; devit itself comes from the wheel.
    """
    with zipfile.ZipFile(wheel) as built, zipfile.ZipFile(folder / wheel.name, "w") as ours:
        for name in built.namelist():
            if not name.startswith("devit_pipeline/fashion_mnist/bundle/"):
                ours.writestr(name, built.read(name))
        ours.writestr("devit_test_environment.pth", sysconfig.get_path("purelib") + "\n")
    return folder / wheel.name


def break_agent(wheel: Path, folder: Path) -> Path:
    """Copy a wheel whose agent computes wrong features, though the engine that it loads is good."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as good, zipfile.ZipFile(folder / wheel.name, "w") as bad:
        for name in good.namelist():
            more = WRONG_FEATURES.encode() if name == "devit_edge_agent/engine/loading.py" else b""
            bad.writestr(name, good.read(name) + more)
    return folder / wheel.name


def signing_key(folder: Path) -> Path:
    """Make a key to sign bundles with."""
    key = folder / "signer"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key


def make_bundle(folder: Path, serial: int, key: Path | None, *, kind: str = "good") -> Path:
    """Copy the Fashion-MNIST bundle under another serial, without its baseline, and sign it if there is a key.

    Of kind ``untrue``, its golden features are not what submodel 0 computes; of kind ``other``, its graphs have other
    digests, as those of a new training would.
    """
    shutil.copytree(FASHION, folder, ignore=shutil.ignore_patterns("baseline.*"))
    whole = Bundle(FASHION).manifest
    files = tuple(file for file in whole.files if file.role != "baseline")
    manifest = msgspec.structs.replace(whole, serial=serial, files=files, baseline=None, baseline_accuracy=None)
    if kind == "untrue":
        path = folder / manifest.file("golden").name
        tensors = read_tensors(path, "")
        tensors["features.0"] = -tensors["features.0"]
        write_tensors(path, tensors)
    if kind == "other":
        for file in manifest.files:
            if file.role == "submodel":
                graph = onnx.load(folder / file.name)
                graph.doc_string = "another"
                onnx.save(graph, folder / file.name)
    files = tuple(
        describe_file(folder, file.name, file.role, device=file.device, variant=file.variant) for file in manifest.files
    )
    write_manifest(folder, msgspec.structs.replace(manifest, files=files))
    if key is not None:
        sign_manifest(folder, key, "desk")
    return folder


def allowed_signers(bundle: Path, path: Path) -> Path:
    """Write the file that believes whoever signed this bundle."""
    path.write_text(signer_line(bundle / SIGNATURE_NAME, "desk") + "\n")
    return path
