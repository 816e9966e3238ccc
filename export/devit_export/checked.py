"""The variants of one graph that are what was trained, with their figures for the manifest."""

from __future__ import annotations

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.manifest import Parity
from devit_contract.choices import Variant
from devit_export.graph import ExportedGraph
from devit_export.parity import ParityError, measure, measure_half
from devit_export.variants import make_variant


class CheckedVariants:
    """What an export has made of one graph so far."""

    def __init__(self) -> None:
        """Start with none."""
        self.parity: list[Parity] = []
        self.fp32_nodes: dict[str, tuple[str, ...]] = {}
        self.left_out: dict[Variant, str] = {}
        """Why it is not there, by name."""

    def add(
        self,
        name: str,
        variant: Variant,
        graph: ExportedGraph,
        overflows: tuple[str, ...],
        images: UInt8Array,
        reference: Float32Array,
    ) -> bytes | None:
        """Make one variant and measure it against PyTorch; None where it is left out, not being what was trained.

        Raises:
            ExportError: It breaks a rule, or is the FP32 graph, of which all others are made, and not what was trained.
        """
        made = make_variant(graph, variant, overflows, name)
        compare = measure if variant == "fp32" else measure_half
        try:
            difference = compare(name, made.content, images, reference)
        except ParityError as err:
            if variant == "fp32":
                raise
            self.left_out[variant] = str(err)
            return None
        self.parity.append(
            Parity(
                variant=variant,
                max_abs_error=rounded(difference.max_abs, digits=2),
                mean_abs_error=rounded(difference.mean_abs, digits=2),
                nodes_before=graph.nodes_before,
                nodes_after=made.nodes,
                casts=made.casts,
                simplify_max_abs_error=rounded(graph.simplify_max_abs_error, digits=2),
            )
        )
        if variant != "fp32":
            self.fp32_nodes[variant] = made.fp32_nodes
        return made.content


def rounded(measured: float, *, digits: int) -> float:
    """Drop the digits that another kind of CPU or another number of threads gives otherwise."""
    return float(f"{measured:.{digits}g}")
