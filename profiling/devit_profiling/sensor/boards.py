"""From samples to the total power of their board, by the rule of the table.

A board that is not in the table has no total: none is guessed from the rails' names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from devit_contract.errors import InputError
from devit_profiling.sensor.board_table import BOARDS, Board, Fingerprint
from devit_profiling.sensor.sample import Sample
from devit_profiling.sensor.tegrastats import SIMULATED


class BoardTotal:
    """Adds up the power of each sample of one board: the one that its model names, else the first that samples fit."""

    def __init__(self, model: str = "", board: Board | None = None) -> None:
        """Find the board by the text of ``/proc/device-tree/model``, where it is not known by other means."""
        self.board = board or board_of_model(model)
        self.is_guessed = False
        self.is_simulated = SIMULATED in model.upper()
        """Whether the model, or any sample so far, says that it is simulated."""

    def add(self, sample: Sample) -> int | None:
        """Give a sample's total in milliwatts; ``None`` for an unknown board or without a rail of its rule."""
        self.is_simulated = self.is_simulated or sample.is_simulated
        if self.board is None:
            self.board = guess_board(sample)
            self.is_guessed = self.board is not None
        return total_mw(self.board, sample.rails_mw) if self.board is not None else None


def board_of_key(key: str) -> Board:
    """Find a board by its short name.

    Raises:
        InputError: There is none of this name.
    """
    if key not in BOARDS:
        raise InputError(f"board {key!r}: expected one of {', '.join(BOARDS)}")
    return BOARDS[key]


def board_of_model(model: str) -> Board | None:
    r"""Find a board by the text of ``/proc/device-tree/model``; ``None`` if it is not in the table.

    >>> board_of_model("NVIDIA Jetson Orin Nano Developer Kit\0").key
    'orin-nano'
    """
    text = model.strip(" \0\n")
    fitting = (
        (len(prefix), board) for board in BOARDS.values() for prefix in board.model_prefixes if text.startswith(prefix)
    )
    _, board = max(fitting, key=lambda pair: pair[0], default=(0, None))
    return board


def guess_board(sample: Sample) -> Board | None:
    """Guess the board from one line, for logs that do not name theirs; say "guessed" where the result is shown.

    Rails, number of cores, memory size and zones must fit. An Orin NX of 8 GB whose zones CV0 to CV2 have no power
    passes for an Orin Nano; rule, scope and LSB of the two are the same.
    """
    fitting = (board for board in BOARDS.values() if any(_fits(sample, known) for known in board.fingerprints))
    return next(fitting, None)


def total_mw(board: Board, rails_mw: Mapping[str, int]) -> int | None:
    """Add the rails of the board's rule, in milliwatts; ``None`` without a rule or a rail, never a partial sum.

    >>> from devit_profiling.sensor.board_table import AGX_ORIN
    >>> total_mw(AGX_ORIN, {"VDD_GPU_SOC": 2801, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 4536, "VDDQ_VDD2_1V8AO": 604})
    7737
    >>> total_mw(AGX_ORIN, {"VDD_GPU_SOC": 2801}) is None
    True
    """
    if not board.total_rails or any(rail not in rails_mw for rail in board.total_rails):
        return None
    return sum(rails_mw[rail] for rail in board.total_rails)


def why_no_total(board: Board | None, model: str, rails: Iterable[str]) -> str:
    """Say why samples with these rails, of a board that calls itself ``model``, have no total."""
    found = ", ".join(rails) or "none"
    if board is None:
        return f"board {model!r} is not in the table, so no total is known; its rails: {found}"
    if not board.total_rails:
        return f"{board.title} has no power monitor"
    return f"expected the rails {', '.join(board.total_rails)} of {board.title}, found these: {found}"


def _fits(sample: Sample, known: Fingerprint) -> bool:
    smallest_mb, largest_mb = known.ram_total_mb
    return (
        known.rails <= sample.rails_mw.keys()
        and known.lacks.isdisjoint(sample.rails_mw)
        and bool(known.rails) == bool(sample.rails_mw)
        and sample.ram_total_mb is not None
        and smallest_mb <= sample.ram_total_mb <= largest_mb
        and (not sample.cpu or len(sample.cpu) in known.cores)
        and (not known.zones or any(zone.lower() in known.zones for zone in sample.temperatures_c))
    )
