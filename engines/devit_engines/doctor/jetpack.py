"""Which JetPack a Jetson Linux release belongs to, and what that JetPack brings."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class JetPack:
    """One row of NVIDIA's archive of releases."""

    l4t: str
    """As many parts of the release as decide: ``36.4.3`` is more exact than ``36.4``; ``36`` stands for the rest."""
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
    # gist.github.com/Tiryoh/2b5dc1f8 (4.x); jetson_stats 7.2.0, jetson_variables.py; jetson-containers, l4t_version.py.
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
    JetPack("36.5", "6.2.x", "3.10", "12.6", "10.3", is_confirmed=False),
    JetPack("36.5.0", "6.2.2", "3.10", "12.6", "10.3"),
    # OE4T/meta-tegra d133bad0, release notes: kernel 5.15.199, nothing new in CUDA and TensorRT.
    JetPack("36.5.2", "6.2.3", "3.10", "12.6", "10.3"),
    JetPack("38", "7.x for Thor", "3.12", "13.0", "10.13", is_confirmed=False),
    # developer.nvidia.com/embedded/jetpack/downloads/archive-7.0.md names no TensorRT; archive-7.1.md 10.13.3.9, which
    # jetson_stats issue 820 shows on a Thor.
    JetPack("38.2", "7.0", "3.12", "13.0", "10.13", is_confirmed=False),
    JetPack("38.4", "7.1", "3.12", "13.0", "10.13"),
    JetPack("39", "7.x", "3.12", "13.2", "10.16", is_confirmed=False),
    # jetson_stats 7.2.0 has the number, and nobody a list of its packages.
    JetPack("39.0", "7.2 early access", "3.12", "13.2", "10.16", is_confirmed=False),
    JetPack("39.2", "7.2.x", "3.12", "13.2", "10.16", is_confirmed=False),
    # roboflow/inference pull request 2478, read off a Thor; OE4T/meta-tegra, recipe of tensorrt-core 10.16.2.10.
    JetPack("39.2.0", "7.2", "3.12", "13.2", "10.16"),
    # OE4T/meta-tegra 7f4b0eee and c6318926.
    JetPack("39.2.1", "7.2.1", "3.12", "13.2", "10.16"),
    # TensorRT's pages name this JetPack, no file its release: its number continues the two rows above.
    JetPack("39.2.2", "7.2.2", "3.12", "13.2", "10.16", is_confirmed=False),
)
_BOARDS = {
    # NVIDIA's archive of Jetson Linux: R32 is the last one for Nano and TX2, R35 for Xavier, R38 for Thor alone.
    "32": ("sm_53", "sm_62", "sm_72"),
    "34": ("sm_72", "sm_87"),
    "35": ("sm_72", "sm_87"),
    "36": ("sm_87",),
    "38": ("sm_110",),
    # OE4T/meta-tegra b03c2793, roboflow/inference pull request 2651: Orin and Thor.
    "39": ("sm_87", "sm_110"),
}
TENSORRT_11 = "11.4.1"
"""First TensorRT 11 that supports a Jetson, by NVIDIA's package for servers (SBSA): TensorRT 11.4.1, "Migrating from
10.x to 11.x on Jetson". It names AGX Orin and Thor, not Orin Nano and NX, and JetPack 7.2.2 or later."""
_FIRST_WITH_TENSORRT_11 = (39, 2, 2)


def jetpack_of(l4t: str) -> JetPack | None:
    """Find the row that fits a release best, or None for a release that is newer than the table.

    >>> jetpack_of("36.4.3").version, jetpack_of("36.4.0").version, jetpack_of("39.3.0").version, jetpack_of("40.1")
    ('6.2', '6.1', '7.x', None)
    """
    fitting = [row for row in JETPACKS if f"{l4t}.".startswith(f"{row.l4t}.")]
    return max(fitting, key=lambda row: len(row.l4t), default=None)


def release_boards(l4t: str) -> tuple[str, ...]:
    """List the GPUs that a release of the table supports.

    >>> release_boards("39.2.1")
    ('sm_87', 'sm_110')
    """
    return _BOARDS[l4t.partition(".")[0]]


def takes_tensorrt_11(l4t: str, board: str, compatible: tuple[str, ...]) -> bool:
    """Whether NVIDIA supports :data:`TENSORRT_11` on this release and this board.

    ``board`` is the model's text and ``compatible`` the device tree's, where another maker's carrier names the module.

    >>> takes_tensorrt_11("39.2.2", "NVIDIA Jetson AGX Orin Developer Kit", ())
    True
    >>> takes_tensorrt_11("39.2.1", "NVIDIA Jetson AGX Orin Developer Kit", ())
    False
    """
    is_named = "AGX Orin" in board or "Thor" in board or any(re.search("p3701|tegra264", word) for word in compatible)
    parts = tuple(int(part) for part in l4t.split(".") if part.isdecimal())
    return is_named and "IGX" not in board and parts >= _FIRST_WITH_TENSORRT_11
