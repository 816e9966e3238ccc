"""The self-test as its user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.engines.changes import spoil

import devit_engines
from devit_contract.artefacts.manifest import Bundle
from devit_contract.service.progress import no_progress
from devit_engines.building.backends import DEFAULT_SETTINGS
from devit_engines.selftest.report import BUNDLE, as_markdown, run_selftest

RUN = """
from devit_contract.service.terminal import run
from devit_engines.selftest.cli import app
run(app, "devit selftest")
"""


def selftest(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, timeout=120)


def test_the_shipped_bundle_is_a_vit_of_every_variant_with_enough_golden_images() -> None:
    manifest = Bundle(BUNDLE).manifest
    for graph in (*manifest.submodels, manifest.baseline):
        assert graph is not None
        assert graph.variants == ("fp16", "fp16-attn32", "fp32")
    assert len(Bundle(BUNDLE).golden()["images"]) >= 256


def test_the_report_can_be_pasted_into_an_issue() -> None:
    done = selftest()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "### devit selftest: passed"
    rows = [line for line in lines if line.startswith(("| submodel", "| baseline"))]
    assert len(rows) == 3
    assert all("| fp32 |" in row and "| 0 of 260 |" in row for row in rows)
    assert any(line.startswith("| Python |") for line in lines)


def test_programs_get_json() -> None:
    done = selftest("--json", "--backend", "ort")
    found = json.loads(done.stdout)
    assert (done.returncode, found["failure"], len(found["tested"])) == (0, None, 3)


def test_a_device_that_computes_wrongly_fails_with_the_figures_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda outputs: outputs * np.float32(1.2))
    found, error = run_selftest([], "ort", "fp16", DEFAULT_SETTINGS, no_progress)
    assert error is not None
    assert found.failure is not None
    text = as_markdown(found)
    assert text.startswith("### devit selftest: FAILED")
    assert "relative L2 error 20.00%" in text


def test_no_tensorrt_is_a_report_too() -> None:
    done = selftest("--backend", "tensorrt")
    assert done.returncode == 1
    assert done.stdout.startswith("### devit selftest: FAILED")
    assert "TensorRT is not installed" in done.stderr
    assert msgspec.json.decode(selftest("--backend", "tensorrt", "--json").stdout)["tested"] == []


def test_the_bundle_is_where_the_package_is() -> None:
    assert (BUNDLE / "manifest.json").is_file()
    assert BUNDLE.is_relative_to(Path(devit_engines.__file__).parent)
