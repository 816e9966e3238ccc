"""Which JetPack a Jetson Linux release belongs to, and what that JetPack brings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JetPack:
    """One row of NVIDIA's archive of releases."""

    l4t: str
    """As many parts of the release as decide: ``36.4.3`` is more exact than ``36.4``."""
    version: str
    python: str
    cuda: str
    """Highest CUDA that its driver speaks."""
    tensorrt: str
    is_confirmed: bool = True
    """Whether users' reports or NVIDIA's own pages state this row's CUDA and TensorRT."""

    @property
    def is_supported(self) -> bool:
        """Whether its Python and TensorRT suffice: LayerNormalization came with TensorRT 8.6, JetPack 6.0."""
        return int(self.l4t.partition(".")[0]) >= 36


JETPACKS = (
    # gist.github.com/Tiryoh/2b5dc1f8 (4.x); jetson_stats, jetson_variables.py, and jetson-containers, l4t_version.py.
    JetPack("32", "4", "3.6", "10.2", "8.2 or older"),
    JetPack("32.6", "4.6", "3.6", "10.2", "8.0"),
    JetPack("32.7", "4.6.x", "3.6", "10.2", "8.2"),
    JetPack("34", "5.0 preview", "3.8", "11.4", "8.4", is_confirmed=False),
    JetPack("35", "5.1.x", "3.8", "11.4", "8.5"),
    JetPack("35.1", "5.0.2", "3.8", "11.4", "8.4", is_confirmed=False),
    # dusty-nv/jetson-inference issue 1920.
    JetPack("36", "6.x", "3.10", "12.6", "10.3", is_confirmed=False),
    JetPack("36.2", "6.0 preview", "3.10", "12.2", "8.6"),
    JetPack("36.3", "6.0", "3.10", "12.2", "8.6"),
    # docs.pytorch.org/TensorRT/getting_started/jetpack
    JetPack("36.4", "6.1", "3.10", "12.6", "10.3"),
    JetPack("36.4.3", "6.2", "3.10", "12.6", "10.3"),
    JetPack("36.4.4", "6.2.1", "3.10", "12.6", "10.3"),
    JetPack("36.4.7", "6.2.1", "3.10", "12.6", "10.3"),
    JetPack("36.5", "6.2.2", "3.10", "12.6", "10.3"),
    # developer.nvidia.com/embedded/jetpack/downloads/archive-7.0.md and archive-7.1.md; the TensorRT is hearsay.
    JetPack("38.2", "7.0", "3.12", "13.0", "10.13", is_confirmed=False),
    JetPack("38.4", "7.1", "3.12", "13.0", "10.13", is_confirmed=False),
    # wyoming-whisper-trt issue 1038, frigate pull request 23582. The step from 7.2 on may install TensorRT 11.4.
    JetPack("39.2", "7.2.x", "3.12", "13.2", "10.16", is_confirmed=False),
    JetPack("39.2.0", "7.2", "3.12", "13.2", "10.16", is_confirmed=False),
    JetPack("39.2.1", "7.2.1", "3.12", "13.2", "10.16", is_confirmed=False),
)


def jetpack_of(l4t: str) -> JetPack | None:
    """Find the row that fits a release best, or None for a release that is newer than the table.

    >>> jetpack_of("36.4.3").version, jetpack_of("36.4.0").version, jetpack_of("36.9").version, jetpack_of("40.1")
    ('6.2', '6.1', '6.x', None)
    """
    fitting = [row for row in JETPACKS if f"{l4t}.".startswith(f"{row.l4t}.")]
    return max(fitting, key=lambda row: len(row.l4t), default=None)
