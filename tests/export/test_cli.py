"""The command prints a table for people and the manifest for programs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from devit_contract.errors import InputError
from devit_contract.manifest import Bundle, Manifest
from devit_export.cli import app


def test_json_is_the_manifest_as_it_was_written(models_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    result = CliRunner().invoke(app, [str(models_folder), "--out", str(out), "--serial", "2", "--json"])
    assert result.exit_code == 0
    assert msgspec.json.decode(result.stdout, type=Manifest) == Bundle(out).manifest
    assert Bundle(out).manifest.serial == 2


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


def test_a_serial_below_one_is_wrong_usage(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, [str(tmp_path), "--serial", "0"]).exit_code == 2


def test_a_missing_models_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        CliRunner().invoke(app, [str(tmp_path / "absent"), "--out", str(tmp_path / "bundle")], catch_exceptions=False)


def test_help_tells_what_the_command_is_for() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "Turn trained models into an ONNX bundle" in result.stdout
