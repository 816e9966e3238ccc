"""The variants of one graph that are what was trained, with their figures for the manifest."""

from __future__ import annotations

from devit_contract.artefacts.manifest import Parity
from devit_contract.choices import EIGHT_BIT_VARIANTS, VARIANTS, Variant
from devit_export.graph import ExportedGraph
from devit_export.parity import ParityError
from devit_export.trained import TrainedCell
from devit_export.variants import make_variant

_UNCALIBRATED = (
    "variants in eight bits: expected validation images in the models folder to calibrate them by, found none: run "
    "devit evaluate MODELS --calibrate, then devit export again"
)


class CheckedVariants:
    """What an export has made of one graph so far; ``device`` is the index of a submodel, or ``None``."""

    def __init__(self, graph: ExportedGraph, cell: TrainedCell, device: int | None, overflows: tuple[str, ...]) -> None:
        """Start with none."""
        self.graph, self.cell, self.device, self.overflows = graph, cell, device, overflows
        self.parities: dict[Variant, Parity] = {}
        self.fp32_nodes: dict[str, tuple[str, ...]] = {}
        self.kept_products: dict[Variant, tuple[str, ...]] = {}
        self.left_out: dict[Variant, str] = {}
        """Why it is not there, by name."""

    @property
    def parity(self) -> tuple[Parity, ...]:
        """Give the figures in the order in which devices try the variants."""
        return tuple(self.parities[variant] for variant in VARIANTS if variant in self.parities)

    def add(self, name: str, variant: Variant) -> bytes | None:
        """Make one variant and hold it against PyTorch; None where it is left out, not being what was trained.

        Raises:
            ExportError: It breaks a rule, or is the FP32 graph, of which all others are made, and not what was trained.
        """
        graph, images = self.graph, self.cell.kept_images(self.device)
        if variant in EIGHT_BIT_VARIANTS and images is None:
            self.left_out[variant] = _UNCALIBRATED
            return None
        refusals: list[ParityError] = []

        def accept(content: bytes) -> bool:
            try:
                self.cell.check(name, variant, self.device, content)
            except ParityError as err:
                refusals.append(err)
                return False
            return True

        try:
            made = make_variant(graph, variant, self.overflows, name, images, accept)
            difference = self.cell.check(name, variant, self.device, made.content)
        except ParityError as err:
            if variant == "fp32":
                raise
            self.left_out[variant] = str(refusals[-1] if refusals else err)  # what was wrong with the last one tried
            return None
        self.parities[variant] = Parity(
            variant=variant,
            max_abs_error=rounded(difference.max_abs, digits=2),
            mean_abs_error=rounded(difference.mean_abs, digits=2),
            nodes_before=graph.nodes_before,
            nodes_after=made.nodes,
            casts=made.casts,
            simplify_max_abs_error=rounded(graph.simplify_max_abs_error, digits=2),
        )
        if "fp16" in variant:
            self.fp32_nodes[variant] = made.fp32_nodes
        if variant in EIGHT_BIT_VARIANTS:
            self.kept_products[variant] = made.kept_products
        return made.content


def rounded(measured: float, *, digits: int) -> float:
    """Drop the digits that another kind of CPU or another number of threads gives otherwise."""
    return float(f"{measured:.{digits}g}")
