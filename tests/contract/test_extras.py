"""What is installed, read without importlib.metadata."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

import pytest

from devit_contract.extras import package_version


def test_every_installed_package_has_the_version_of_its_metadata() -> None:
    found = {each.name: each.version for each in reversed(list(distributions()))}
    assert len(found) > 10
    assert {name: package_version(name) for name in found} == found


def test_what_is_not_installed_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brandnew.dist-info").mkdir()  # names no version
    (tmp_path / "old-1.2-py3.10.egg-info").touch()
    (tmp_path / "older-1.2.egg-info").touch()
    (tmp_path / "archive.zip").touch()
    for place in (tmp_path, tmp_path / "archive.zip", tmp_path / "nowhere"):
        monkeypatch.syspath_prepend(str(place))
    assert (package_version("brandnew"), package_version("brand")) == (None, None)
    assert (package_version("old"), package_version("older")) == ("1.2", "1.2")


def test_a_package_that_is_replaced_meanwhile_has_its_new_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "brand_new-1.0.dist-info").mkdir()
    assert package_version("Brand-New") == "1.0"
    (tmp_path / "brand_new-1.0.dist-info").rename(tmp_path / "brand_new-2.0.dist-info")
    assert package_version("Brand-New") == "2.0"
