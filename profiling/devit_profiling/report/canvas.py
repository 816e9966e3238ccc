"""A figure as SVG text that can stand in a page beside others.

Text stays text, identifiers are made unique, and the same data gives the same bytes.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_IN = 6.6
"""A phone shows it at about 0.6 of its size, and can still be read."""


class Canvas:
    """A figure of axes below each other, drawn without any of matplotlib's global state; a context manager."""

    def __init__(self, name: str, height_in: float, rows: int = 1) -> None:
        """Open it.

        Args:
            name: Unique in the page; identifiers begin with it.
            height_in: Of the whole figure, in inches.
            rows: Axes; they share the horizontal one.
        """
        from matplotlib import style
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._name = name
        # Whoever has a matplotlibrc gets the same picture. Names are no formulas; text is drawn by the browser.
        rules = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
        self._rules = style.context(["default", rules])
        self._rules.__enter__()
        self._figure: Figure = Figure(figsize=(_WIDTH_IN, height_in))
        FigureCanvasSVG(self._figure)
        self.rows: list[Axes] = list(self._figure.subplots(rows, squeeze=False, sharex=True)[:, 0])
        for axes in self.rows:
            axes.spines[["top", "right"]].set_visible(False)
        self.axes = self.rows[0]

    def __enter__(self) -> Canvas:
        """Draw in a ``with`` block: the rules of style hold in it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leave matplotlib as it was."""
        self._rules.__exit__(None, None, None)

    def space_rows(self, share: float) -> None:
        """Leave room between the axes, as a share of their height."""
        self._figure.subplots_adjust(hspace=share)

    def svg(self) -> str:
        """Give the picture without prolog and metadata, scaled by its box, with identifiers of its own."""
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self._figure.savefig(text, format="svg", metadata=nothing, bbox_inches="tight", pad_inches=0.05)
        svg = text.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r'(?<=<svg) ([^>]*?)width="[^"]*" height="[^"]*"', r' role="img" \1', svg, count=1)
        svg = re.sub(r'\bid="', f'id="{self._name}-', svg)
        return re.sub(r'(href="#|url\(#)', rf"\g<1>{self._name}-", svg)
