"""Links of the README lead somewhere, and it stays short; its blocks are run by test_console_blocks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_readme_fits_a_few_screens() -> None:
    assert len(README.splitlines()) <= 120


def test_links_of_the_readme_lead_somewhere() -> None:
    for target, place in re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
        if place and target.endswith(".md"):
            headings = re.findall(r"^#+ (.+)$", (ROOT / target).read_text(), re.MULTILINE)
            assert place in [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings], target
