"""Sphinx: ``make docs`` renders this folder into ``docs/_build/html``; nothing is fetched from a network."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "DeViT Edge"
author = copyright = "The DeViT Edge developers"
version = release = version_of("devit")

extensions = ["myst_parser", "generated"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
smartquotes = False
html_theme = "furo"
html_title = f"DeViT Edge {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
