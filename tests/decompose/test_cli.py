"""What the commands do around the work: finished models are kept, and what comes next is said."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner, Result

from devit_contract.errors import InputError
from devit_decompose.cli import app, assemble_app
from devit_decompose.models_folder.decomposition import load_decomposition

FINISHED = '{"schema": 1, "code_version": "0", "files": []}'


def decompose(recipe: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, [str(recipe), "--out", str(out), *options])


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "decomposition.json").write_text(FINISHED)
    return folder


@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_finished_models_are_not_trained_over(small_path: Path, finished: Path, options: list[str]) -> None:
    error = decompose(small_path, finished, *options).exception
    assert isinstance(error, InputError)
    assert str(error) == f"{finished}: what is there is finished: choose another --out, or add --force to replace it"
    assert (finished / "decomposition.json").read_text() == FINISHED


def test_finished_models_are_not_assembled_over(finished: Path) -> None:
    words = ["--models", "vit_tiny_patch16_224", "--data", "absent", "--out", str(finished)]
    assert "add --force" in str(CliRunner().invoke(assemble_app, words).exception)


def test_with_force_they_are_replaced_and_the_next_command_is_said(
    small_path: Path, finished: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devit_decompose.stages.decompose", lambda *_, **__: load_decomposition(models))
    done = decompose(small_path, finished, "--force")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"next: devit export {finished} --out bundle"


def test_ctrl_c_says_how_to_go_on(small_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("devit_decompose.stages.decompose", interrupted)
    done = decompose(small_path, tmp_path / "models")
    assert done.exit_code == 130
    assert done.stderr == "stopped: run the same command with --resume: it goes on after the last finished epoch\n"
