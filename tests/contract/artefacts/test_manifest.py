"""A bundle is used as a whole and unchanged, or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.opened import opened_files

from devit_contract.artefacts.file_list import describe_file
from devit_contract.artefacts.files import write_tensors
from devit_contract.artefacts.manifest import Bundle, write_manifest, write_part
from devit_contract.errors import InputError, ManifestError

TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"
FILES = sorted(path.name for path in TINY.iterdir() if path.name != "manifest.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return shutil.copytree(TINY, tmp_path / "bundle")


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    change(raw)
    (folder / "manifest.json").write_text(json.dumps(raw))


def test_the_tiny_bundle_opens_and_its_golden_set_is_complete() -> None:
    bundle = Bundle(TINY)
    golden = bundle.golden()
    count = len(golden["images"])
    assert golden["images"].shape == (count, *bundle.manifest.preprocess.shape)
    for device, record in enumerate(bundle.manifest.submodels):
        assert golden[f"features.{device}"].shape == (count, record.output_dim)
    assert golden["logits"].shape == (count, len(bundle.manifest.labels))
    assert {path.name for path in TINY.iterdir()} == {file.name for file in bundle.manifest.files} | {"manifest.json"}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_in_any_file_is_refused_with_both_digests(folder: Path, name: str) -> None:
    damage(folder / name)
    expected = next(file.sha256 for file in Bundle(TINY).manifest.files if file.name == name)
    with pytest.raises(
        ManifestError, match=f"{re.escape(name)}: expected sha256 {expected[:12]}, found [0-9a-f]{{12}}"
    ):
        Bundle(folder).verify()


def test_each_file_is_refused_when_it_is_read_and_the_others_are_not(folder: Path) -> None:
    """A damaged file of another submodel must not keep this one from its work."""
    damaged = folder / "submodel-1.fp32.onnx"
    damage(damaged)
    bundle = Bundle(folder)
    assert bundle.read("submodel", device=0, variant="fp32") == (TINY / "submodel-0.fp32.onnx").read_bytes()
    assert bundle.fusion_head().dims == (6, 4)
    assert len(bundle.golden()["images"]) > 0
    with pytest.raises(ManifestError, match=f"{damaged}: expected sha256"):
        bundle.read("submodel", device=1, variant="fp32")
    for name in ("fusion.safetensors", "golden.safetensors"):
        damage(folder / name)
    with pytest.raises(ManifestError, match=r"fusion\.safetensors: expected sha256"):
        bundle.fusion_head()
    with pytest.raises(ManifestError, match=r"golden\.safetensors: expected sha256"):
        bundle.golden()


def test_a_file_that_changes_after_the_bundle_was_opened_is_refused(folder: Path) -> None:
    bundle = Bundle(folder)
    bundle.verify()
    damage(folder / "submodel-0.fp16.onnx")
    with pytest.raises(ManifestError, match="expected sha256"):
        bundle.read("submodel", device=0, variant="fp16")


def test_opening_reads_the_manifest_and_reading_one_file_reads_that_one(folder: Path) -> None:
    with opened_files(folder) as opened:
        bundle = Bundle(folder)
        assert opened == ["manifest.json"]
        bundle.read("submodel", device=1, variant="fp16")
        assert opened[1:] == ["submodel-1.fp16.onnx"]
        bundle.fusion_head()
        assert opened[2:] == ["fusion.safetensors"]
        bundle.verify()
        assert sorted(opened[3:]) == FILES


def test_a_file_of_another_size_is_refused_without_reading_it(folder: Path) -> None:
    path = folder / "submodel-1.fp32.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        ManifestError, match=f"expected {len(content)} bytes, found {len(content) - 1}: copy the bundle"
    ):
        Bundle(folder)


def test_a_note_beside_the_files_does_no_harm(folder: Path) -> None:
    """Only listed files are ever read."""
    (folder / "NOTES.md").touch()
    assert Bundle(folder).golden().keys()


def test_a_file_that_is_listed_twice_is_refused(folder: Path) -> None:
    edit(folder, lambda raw: raw["files"].append(raw["files"][0]))
    with pytest.raises(ManifestError, match="listed more than once"):
        Bundle(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "fusion.safetensors").unlink()
    with pytest.raises(InputError, match=r"fusion\.safetensors: cannot be read"):
        Bundle(folder)


def test_a_part_for_one_device_opens_without_what_the_others_need_and_names_what_it_lacks(folder: Path) -> None:
    write_part(folder, (1,))
    for file in Bundle(TINY).manifest.files:
        if file.role in ("baseline", "calibration") or file.device == 0:
            (folder / file.name).unlink()
    bundle = Bundle(folder)
    bundle.verify()
    assert bundle.read("submodel", device=1, variant="fp32")
    assert bundle.golden()["images"].size
    assert bundle.calibration() is None
    with pytest.raises(InputError, match=r"submodel-0.fp32.onnx: cannot be read .*: copy the bundle again"):
        bundle.read("submodel", device=0, variant="fp32")
    (folder / "submodel-1.fp32.onnx").unlink()
    with pytest.raises(InputError, match=r"submodel-1.fp32.onnx: cannot be read"):
        Bundle(folder)
    (folder / "part.json").write_text('{"schema": 1}')
    with pytest.raises(ManifestError, match=r"part\.json: field"):
        Bundle(folder)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a/b/c", "..", ".", "", ".hidden", "a\\b", "a\n"])
def test_names_that_lead_out_of_the_bundle_are_refused(folder: Path, name: str) -> None:
    edit(folder, lambda raw: raw["files"][0].update(name=name))
    with pytest.raises(ManifestError, match=r"manifest\.json: field files\[0\]: name: expected a plain file name"):
        Bundle(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.update(schema=1), "field schema: expected 3, found 1"),
        (lambda raw: raw.update(missing="zeros"), "expected conditional-mean, found 'zeros'"),
        (lambda raw: raw.update(submodels=[]), "submodels: expected 1 to 64, found 0"),
        (lambda raw: raw.update(surprise=1), "unknown field `surprise`"),
        (lambda raw: raw.pop("labels"), "missing required field `labels`"),
        (
            lambda raw: raw["files"][0].update(role="virus"),
            "expected baseline, calibration, fusion, golden, quantization, samples, submodel or teacher, found 'virus'",
        ),
        (
            lambda raw: raw["files"][0].update(variant="int4"),
            "field files[0].variant: expected fp16, fp16-attn32, fp32, fp8-fp16, int8 or int8-fp16, found 'int4'",
        ),
        (
            lambda raw: raw["submodels"][0].update(variants=["int4"]),
            "field submodels[0].variants[0]: expected fp16, fp16-attn32, fp32, fp8-fp16, int8 or int8-fp16, "
            "found 'int4'",
        ),
        (
            lambda raw: raw["submodels"][0]["fp32_nodes"].update(fast=[]),
            "fp32_nodes: expected variants fp16, fp16-attn32",
        ),
        (lambda raw: raw["submodels"][1].pop("ranges"), "missing required field `ranges`"),
        (lambda raw: raw["preprocess"].update(colour="cmyk"), "colour: expected gray or rgb, found 'cmyk'"),
        (
            lambda raw: raw["preprocess"].update(interpolation="magic"),
            "interpolation: expected bicubic, bilinear or nearest, found 'magic'",
        ),
        (lambda raw: raw["preprocess"].update(height=0), "height and width: expected 1 to 4096"),
        (lambda raw: raw.update(labels=["one"]), "labels: expected at least 2 classes, found 1"),
        (lambda raw: raw["submodels"][1].update(output_dim=0), "output_dim: expected 1 or more, found 0"),
        (lambda raw: raw["preprocess"].update(resize_to=7), "resize_to: expected 0, or from the crop's longer side"),
    ],
)
def test_a_manifest_that_later_code_could_not_use_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    edit(folder, change)
    with pytest.raises(ManifestError, match=re.escape(said)) as error:
        Bundle(folder)
    assert str(error.value).startswith(f"{folder / 'manifest.json'}: ")
    assert str(error.value).endswith("make the bundle again with devit export")


@pytest.mark.parametrize("name", ["images", "labels", "logits", "features.1"])
def test_a_golden_set_without_one_of_its_tensors_is_refused(folder: Path, name: str) -> None:
    tensors = Bundle(folder).golden()
    del tensors[name]
    replace_golden(folder, tensors)
    with pytest.raises(ManifestError, match=rf"golden\.safetensors: expected {re.escape(name)} .*, found none"):
        Bundle(folder).golden()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("labels", lambda tensor: tensor[:-1]),
        ("images", lambda tensor: tensor[..., 0]),
        ("images", lambda tensor: tensor.astype(np.float32)),
        ("features.1", lambda tensor: tensor[:, :3]),
        ("features.0", np.ravel),
        ("logits", lambda tensor: tensor[0, 0]),
        ("baseline.logits", lambda tensor: tensor[:, :1]),
    ],
)
def test_a_golden_set_of_other_shapes_is_refused(
    folder: Path, name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> None:
    tensors = Bundle(folder).golden()
    replace_golden(folder, tensors | {name: np.asarray(change(tensors[name]))})
    with pytest.raises(
        ManifestError, match=r"golden\.safetensors: expected .* \('\w+', 64.*\), found \('\w+'"
    ) as caught:
        Bundle(folder).golden()
    assert "\n" not in str(caught.value)


def test_golden_images_that_are_one_number_are_refused(folder: Path) -> None:
    replace_golden(folder, Bundle(folder).golden() | {"images": np.asarray(np.uint8(1))})
    with pytest.raises(ManifestError, match=r"expected images \('uint8', 0, 6, 8, 1\), found \('uint8',\)"):
        Bundle(folder).golden()


@pytest.mark.parametrize("name", ["features.0", "logits", "baseline.logits"])
def test_a_golden_number_that_is_not_finite_is_refused(folder: Path, name: str) -> None:
    tensors = Bundle(folder).golden()
    tensors[name] = tensors[name].copy()
    tensors[name][5, 2] = np.nan
    replace_golden(folder, tensors)
    with pytest.raises(ManifestError, match=rf"expected finite numbers in {re.escape(name)}, found others"):
        Bundle(folder).golden()


def test_files_and_graphs_that_are_not_there_are_named() -> None:
    manifest = Bundle(TINY).manifest
    with pytest.raises(ManifestError, match="lists no file of role submodel, device 7, variant fp32"):
        manifest.file("submodel", device=7, variant="fp32")
    with pytest.raises(ManifestError, match="expected a submodel 7, found submodels 0 to 1"):
        manifest.graph("submodel", 7)
    assert manifest.graph("submodel", 1).output_dim == 4
    assert manifest.graph("baseline", None).output_dim == 4


def replace_golden(folder: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    write_tensors(folder / "golden.safetensors", tensors)
    entry = describe_file(folder, "golden.safetensors", "golden")
    edit(folder, lambda raw: raw["files"][-1].update(sha256=entry.sha256, size_bytes=entry.size_bytes))


def test_a_manifest_is_written_with_the_same_bytes_again(tmp_path: Path) -> None:
    write_manifest(tmp_path, Bundle(TINY).manifest)
    assert (tmp_path / "manifest.json").read_bytes() == (TINY / "manifest.json").read_bytes()
