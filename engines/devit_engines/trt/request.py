"""What one build is asked for and what it gives back: the caller and the build process share these structs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import read_bytes
from devit_contract.choices import Variant

Report = Callable[[float, str], None]
"""Called with the seconds since a build began and its current phase."""


class GraphFile(msgspec.Struct, frozen=True):
    """An ONNX file of the bundle."""

    path: str
    sha256: str
    """As the manifest has it."""

    def read(self) -> bytes:
        """Read the file and check its digest.

        Raises:
            InputError: It cannot be read.
            ManifestError: It has changed since the bundle was opened.
        """
        return read_bytes(Path(self.path), "copy the bundle again", sha256=self.sha256)


class BuildRequest(msgspec.Struct, frozen=True):
    """What an engine is built from."""

    name: str
    """For messages: ``submodel 0``."""
    variant: Variant
    graph: GraphFile
    """The variant's ONNX graph, whose types are its precision."""
    fp32_graph: GraphFile
    """The FP32 graph; what a TensorRT without strong typing builds, but for INT8."""
    fp32_nodes: tuple[str, ...]
    """Nodes of the FP32 graph that the variant keeps in FP32."""
    timing_cache: str
    """File that makes the next build faster."""
    temp_prefix: str
    """Path that temporary folders begin with, e.g. ``store/.key.``; the store sweeps away those of killed builds."""
    compute_capability: str = ""
    """Of this machine's GPU, ``sm_87``; something else where it is not known."""
    module: str = "tensorrt"
    """Python's name of the library."""
    targets: tuple[str, ...] = ()
    """``SM86`` and the like, for a TensorRT that builds for GPUs that are not there (TensorRT-RTX)."""


class Built(msgspec.Struct, frozen=True, tag=True):
    """An engine's file, and how it was built."""

    content: bytes
    precision_method: str = ""
    """``strongly typed``, or ``int8 and fp16 flags`` and the like; empty where there is one way alone."""
    warnings: tuple[str, ...] = ()
    """The library's about FP16, INT8 and normalisation, and ours about a build that had to be repeated."""
    timing_cache: bytes = b""
    """What the build has learned."""
