"""The headline's benchmark runs on small stand-ins. How fast anything was is never judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.headline import models
from benchmarks.headline.sides import photo

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import decode_image
from devit_contract.errors import InputError

ROOT = Path(__file__).parents[2]
needs_export = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="exporting needs onnxsim, which has no wheel below Python 3.11"
)


def test_the_picture_is_as_large_as_a_photograph_and_shows_the_image() -> None:
    image, picture = photo((224, 224, 3))
    assert 10_000 < len(picture) < 40_000
    decoded = decode_image(picture, Preprocess(224, 224, "rgb"), "picture")
    assert abs(decoded.astype(int) - image).mean() < 8


def test_a_model_that_cannot_be_made_here_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "timm" else object())
    with pytest.raises(InputError, match=r"MobileViT-S: exporting it, once, needs timm: pip install"):
        models.single(models.SINGLES[0], models.SMALL)


@needs_export
@pytest.mark.timeout(660)
@pytest.mark.nightly(part="endurance")
def test_a_family_is_held_against_its_undivided_model_and_models_of_one_device(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.headline.run", "--small", "--family", "DeDeiTs"]
    done = subprocess.run(
        [*command, "--duration", "0.4", "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    rows: list[Any] = json.loads(done.stdout)["rows"]
    ours = "4 x DeiT-Ti"

    def found(end: str) -> dict[str, Any]:
        return {row["side"]: row for row in rows if row["figure"].endswith(end)}

    alone = found("each agent alone on a core, picture to answer")[ours]
    lone = found("one device, picture to answer")
    assert lone.keys() == {"DeiT-B", "MobileViT-S", "EfficientFormerV2-S2", "DeiT-S"}
    for row in (alone, *lone.values()):
        assert row["p50_interval"][0] <= row["p50"] <= row["p50_interval"][1]
        assert row["p50"] <= row["p99"]
    for row in lone.values():
        assert row["against"] == ours
        assert row["ratio"] == pytest.approx(row["p50"] / alone["p50"])
    macs = found("MACs of one device")
    over = found("each agent alone on a core: latency ratio over MAC ratio")[ours]
    assert over["p50"] == pytest.approx(lone["DeiT-B"]["ratio"] / macs["DeiT-B"]["ratio"])
    # torch's counter and ours agree: 16 patches and a class token, 12 blocks, DeiT-Ti's widths.
    tokens, width = 17, 192
    block = tokens * width * (4 * width + 2 * 4 * width) + 2 * tokens**2 * width
    assert macs["DeiT-S"]["p50"] * 1e9 == pytest.approx(16 * 16**2 * 3 * width + 12 * block + width * 1000)
    memory = found("resident memory of one device")
    assert memory["DeiT-B"]["p50"] > memory["DeiT-S"]["p50"] > 30
    assert not any(row["holds"] for row in rows)  # nothing is wanted of stand-ins
