"""The command prints a table for people and the manifest for programs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from devit_contract.artefacts.manifest import Bundle, Manifest
from devit_contract.artefacts.signing import signer_line, verify_bundle
from devit_contract.errors import InputError
from devit_contract.service.progress import Progress
from devit_export.cli import app, sign_app


def test_json_is_the_manifest_as_it_was_written(
    written: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, Path, int]] = []

    def export_bundle(
        models: Path, out: Path, *, serial: int, headroom: float, fp8: bool, progress: Progress
    ) -> Manifest:
        asked.append((models, out, serial))
        return written[1]

    monkeypatch.setattr("devit_export.bundle.export_bundle", export_bundle)
    result = CliRunner().invoke(app, ["models", "--out", "bundle", "--serial", "2", "--json"])
    assert result.exit_code == 0
    assert asked == [(Path("models"), Path("bundle"), 2)]
    assert msgspec.json.decode(result.stdout, type=Manifest) == Bundle(written[0]).manifest


@pytest.mark.parametrize("bundle", ["written", "written_assembled"])
def test_the_table_has_a_line_for_each_file_within_80_columns(
    bundle: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest: Manifest = request.getfixturevalue(bundle)[1]
    monkeypatch.setattr("devit_export.bundle.export_bundle", lambda *_args, **_options: manifest)
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for file in manifest.files:
        assert any(file.name in line for line in lines)
    assert any("baseline" in line for line in lines) == (manifest.baseline is not None)
    assert max(map(len, lines)) <= 80


def test_a_variant_that_was_left_out_is_told_with_the_reason(
    written: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, reason = written[1], "submodel-1.fp16.onnx: expected a cosine: the variant is left out"
    lame = msgspec.structs.replace(manifest.submodels[1], left_out={"fp16": reason})
    manifest = msgspec.structs.replace(manifest, submodels=(manifest.submodels[0], lame))
    asked: list[tuple[float, bool]] = []

    def export_bundle(_models: Path, _out: Path, *, headroom: float, fp8: bool, **_options: object) -> Manifest:
        asked.append((headroom, fp8))
        return manifest

    monkeypatch.setattr("devit_export.bundle.export_bundle", export_bundle)
    result = CliRunner().invoke(app, ["models", "--headroom", "2.5", "--fp8"])
    assert (result.exit_code, asked) == (0, [(2.5, True)])
    assert result.stderr.splitlines() == [reason]


def test_a_serial_below_one_is_wrong_usage(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, [str(tmp_path), "--serial", "0"]).exit_code == 2


def test_a_missing_models_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        CliRunner().invoke(app, [str(tmp_path / "absent"), "--out", str(tmp_path / "bundle")], catch_exceptions=False)


def test_help_tells_what_the_command_is_for() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "Turn trained models into an ONNX bundle" in result.stdout


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key of OpenSSH."""
    path = tmp_path / "desk"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, timeout=60)
    return path


@pytest.mark.system
def test_an_export_is_signed_at_once_and_says_how_devices_know_the_signer(
    models_folder: Path, tmp_path: Path, key: Path
) -> None:
    out, signers = tmp_path / "bundle", tmp_path / "signers"
    words = [str(models_folder), "--out", str(out), "--sign", str(key), "--identity", "lab", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert msgspec.json.decode(result.stdout, type=Manifest) == Bundle(out).manifest
    line = signer_line(out / "manifest.json.sig", "lab")
    assert f"signed; for a device's allowed signers: {line}\n" in result.stderr
    signers.write_text(f"{line}\n")
    assert verify_bundle(out, signers)[1] == "lab"


def test_a_written_bundle_is_signed_later(written: tuple[Path, Manifest], tmp_path: Path, key: Path) -> None:
    """Signed by another key before: the newer signature takes its place."""
    other = tmp_path / "other"
    key.rename(other)
    key.with_suffix(".pub").rename(other.with_suffix(".pub"))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=60)
    folder = shutil.copytree(written[0], tmp_path / "copy")
    for path in (other, key):
        result = CliRunner().invoke(sign_app, [str(folder), "--key", str(path), "--identity", "lab"])
        assert result.exit_code == 0
        public = " ".join(path.with_suffix(".pub").read_text().split()[:2])
        assert result.stdout == f'lab namespaces="devit-bundle" {public}\n'
    (tmp_path / "signers").write_text(result.stdout)
    assert verify_bundle(folder, tmp_path / "signers")[1] == "lab"


def test_a_key_that_is_not_there_is_named_before_the_long_work(models_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(InputError, match="absent: there is no such key file"):
        CliRunner().invoke(
            app, [str(models_folder), "--out", str(out), "--sign", str(tmp_path / "absent")], catch_exceptions=False
        )
    assert not out.exists()


def test_a_finished_bundle_is_replaced_only_with_force(
    written: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(written[0], tmp_path / "bundle")
    monkeypatch.setattr("devit_export.bundle.export_bundle", lambda *_args, **_options: written[1])
    refused = CliRunner().invoke(app, ["models", "--out", str(bundle)])
    assert str(refused.exception).startswith(
        f"{bundle}: what is there is finished: choose another --out, or add --force"
    )
    done = CliRunner().invoke(app, ["models", "--out", str(bundle), "--force"])
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].endswith(f": devit build {bundle}")
