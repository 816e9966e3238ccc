"""Which rails of a board add up to its power, and how finely and how fast its sensor tells it.

No Jetson says which rail is its total. On Orin Nano ``VDD_IN`` contains the other rails; AGX Orin has no such rail,
and there ``VDDQ_VDD2_1V8AO`` is fed from ``VIN_SYS_5V0``, so adding all rails would count it twice.
A board that is not in the table has no total: none is guessed from the rails' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from devit_profiling.tegrastats import Sample


@dataclass(frozen=True)
class Board:
    """What is known of one kind of Jetson; ``BOARDS`` lists them."""

    key: str
    """Short name for options and files."""
    title: str
    model_prefixes: tuple[str, ...]
    """How the text of ``/proc/device-tree/model`` may begin."""
    ram_total_mb: tuple[int, int]
    """Smallest and largest total that its memory sizes show in tegrastats."""
    total_rails: tuple[str, ...]
    """The rails to add for the total, each exactly once."""
    scope: str
    """What that total covers. Joules of different scopes are not comparable."""
    code_step_mw: Mapping[str, int]
    """Per rail: one step of the sensor's converter."""
    tau_s: float
    """Time constant of the sensor's averaging: after a step of power the reading lags as a first-order filter does."""
    idle_mw: Mapping[str, int]
    """Per rail, in the order of the board's lines: a measured idle line, for simulation only."""
    load_mw: Mapping[str, int]
    """Per rail: a fully loaded GPU, for simulation only."""

    @property
    def total_step_mw(self) -> tuple[int, ...]:
        """The converter step of each rail of the total, in milliwatts."""
        return tuple(self.code_step_mw[rail] for rail in self.total_rails)


def board_of_model(model: str) -> Board | None:
    r"""Find a board by the text of ``/proc/device-tree/model``; ``None`` if it is not in the table.

    >>> board_of_model("NVIDIA Jetson Orin Nano Developer Kit\0").key
    'orin-nano'
    """
    text = model.strip(" \0\n")
    for board in BOARDS.values():
        if text.startswith(board.model_prefixes):
            return board
    return None


def guess_board(sample: Sample) -> Board | None:
    """Guess the board from one line, for logs that do not name theirs; say "guessed" where the result is shown.

    Rails, memory size and the zone ``tj`` must fit: Xavier NX has the rails of Orin Nano, but not that zone.
    An Orin NX of 8 GB cannot be told from an Orin Nano; rule, scope and step of the two are the same.
    """
    if sample.ram_total_mb is None:
        return None
    zones = {zone.lower() for zone in sample.temperatures_c}
    for board in BOARDS.values():
        smallest_mb, largest_mb = board.ram_total_mb
        has_rails = all(rail in sample.rails_mw for rail in board.load_mw if rail not in _OPTIONAL_RAILS)
        if has_rails and smallest_mb <= sample.ram_total_mb <= largest_mb and _ORIN_ZONE in zones:
            return board
    return None


def total_mw(board: Board, rails_mw: Mapping[str, int]) -> int | None:
    """Add the rails of the board's rule, in milliwatts; ``None`` if one is missing, never a partial sum.

    >>> total_mw(AGX_ORIN, {"VDD_GPU_SOC": 2801, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 4536, "VDDQ_VDD2_1V8AO": 604})
    7737
    >>> total_mw(AGX_ORIN, {"VDD_GPU_SOC": 2801}) is None
    True
    """
    if any(rail not in rails_mw for rail in board.total_rails):
        return None
    return sum(rails_mw[rail] for rail in board.total_rails)


_ORIN_ZONE = "tj"
_OPTIONAL_RAILS = frozenset({"VDDQ_VDD2_1V8AO"})

# The lag was fitted to clean load steps of one 100 ms log of one Orin Nano (L4T 36.4.7): 0.39 to 0.41 s upwards,
# 0.45 to 0.52 s downwards. Other boards are unmeasured and take the same value.
_TAU_S = 0.43

ORIN_NANO = Board(
    key="orin-nano",
    title="Jetson Orin Nano",
    # Developer kits say "... Developer Kit" or "... Engineering Reference Developer Kit Super".
    model_prefixes=("NVIDIA Jetson Orin Nano", "Jetson Orin Nano"),
    ram_total_mb=(3000, 8192),
    total_rails=("VDD_IN",),
    # Jetson Linux developer guide R36, "Power and Performance": VDD_IN is the input of the module.
    scope="module input (VDD_IN)",
    # Distances between neighbouring readings in the recorded logs.
    code_step_mw=MappingProxyType({"VDD_IN": 40, "VDD_CPU_GPU_CV": 40, "VDD_SOC": 40}),
    tau_s=_TAU_S,
    # Median line of the recording orin_nano_l4t36_01_idle_log.
    idle_mw=MappingProxyType({"VDD_IN": 4287, "VDD_CPU_GPU_CV": 444, "VDD_SOC": 1375}),
    # Steady matrix products, public repository gwonxhj/jetson-orin-nano-internal-lab; orin_nano_l4t36_02_load_log.
    load_mw=MappingProxyType({"VDD_IN": 15479, "VDD_CPU_GPU_CV": 9474, "VDD_SOC": 2092}),
)

AGX_ORIN = Board(
    key="agx-orin",
    title="Jetson AGX Orin",
    model_prefixes=("NVIDIA Jetson AGX Orin", "Jetson AGX Orin"),
    ram_total_mb=(28000, 65536),
    total_rails=("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    # NVIDIA developer forum topic 223111: no parent rail, VDDQ_VDD2_1V8AO is a child of VIN_SYS_5V0. In 4111 recorded
    # samples VIN_SYS_5V0 rises by 1.56 mW per mW of it.
    scope="sum of 3 module rails",
    # Distances between neighbouring readings in the recorded logs.
    code_step_mw=MappingProxyType({"VDD_GPU_SOC": 400, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 101, "VDDQ_VDD2_1V8AO": 100}),
    tau_s=_TAU_S,
    # First line of the recording agx_orin_l4t36_02_log.
    idle_mw=MappingProxyType({"VDD_GPU_SOC": 2801, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 4536, "VDDQ_VDD2_1V8AO": 604}),
    # GPU_SOC and CPU_CV: stress test in the 50 W mode, NVIDIA developer forum topic 323456. The other two are the
    # highest readings of agx_orin_l4t36_02_log, whose GPU is at 44 %: an estimate.
    load_mw=MappingProxyType({"VDD_GPU_SOC": 18400, "VDD_CPU_CV": 6000, "VIN_SYS_5V0": 5140, "VDDQ_VDD2_1V8AO": 1008}),
)

BOARDS: Mapping[str, Board] = MappingProxyType({board.key: board for board in (ORIN_NANO, AGX_ORIN)})
"""All known boards by key."""
