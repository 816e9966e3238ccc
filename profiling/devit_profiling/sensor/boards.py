"""From samples to the total power of their board, by the rule of the table.

A board that is not in the table has no total: none is guessed from the rails' names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from devit_contract.errors import InputError
from devit_profiling.sensor.board_table import BOARDS, Board, Fingerprint
from devit_profiling.sensor.sample import Sample, StampedSample
from devit_profiling.sensor.tegrastats import SIMULATED

if TYPE_CHECKING:
    from devit_contract.wire.messages import Description


class BoardTotal:
    """Adds up the power of each sample of one board: the one that is named, else the first that samples fit."""

    def __init__(self, about: Description | None = None, board: Board | None = None) -> None:
        """Take this board; without one, that which the device's description names."""
        self.board = board or (board_of(about) if about is not None else None)
        self.is_guessed = False
        self.is_simulated = about is not None and SIMULATED in about.board_model.upper()
        """Whether the model, or any sample so far, says that it is simulated."""
        self.note = ""
        """Why the total is not that of the named board, a sentence; empty where it is."""
        self._is_settled = False

    def add(self, sample: Sample | StampedSample) -> int | None:
        """Give a sample's total in milliwatts; ``None`` for an unknown board or without a rail of its rule."""
        self.is_simulated = self.is_simulated or sample.is_simulated
        if not self._is_settled:
            self._settle(sample)
        return total_mw(self.board, sample.rails_mw) if self.board is not None else None

    def _settle(self, sample: Sample | StampedSample) -> None:
        """Choose the rule by the first sample that has all rails of one: no later one may change the scope."""
        if self.board is None:
            self.board = guess_board(sample)
            self.is_guessed = self.board is not None
        board, rails_mw = self.board, sample.rails_mw
        if board is None:
            return
        other = board.fallback
        if total_mw(board, rails_mw) is None and other is not None and total_mw(other, rails_mw) is not None:
            missing = ", ".join(rail for rail in board.total_rails if rail not in rails_mw)
            self.note = f"the samples of {board.title} lack {missing}, so the total is the {other.scope}"
            self.board = board = other
        self._is_settled = total_mw(board, rails_mw) is not None


def board_of(about: Description) -> Board | None:
    """Find a board by what its device says: the setting, the part numbers in its tree, the model's text.

    A text that names a board without a total goes before the numbers: an IGX may have the module of a Jetson.
    """
    named = board_of_model(about.board_model)
    if named is not None and named.is_total_unknown:
        return BOARDS.get(about.board_choice, named)
    return BOARDS.get(about.board_choice) or board_of_compatible(about.compatible) or named


def board_of_key(key: str) -> Board:
    """Find a board by its short name.

    Raises:
        InputError: There is none of this name.
    """
    if key not in BOARDS:
        raise InputError(f"board {key!r}: expected one of {', '.join(BOARDS)}")
    return BOARDS[key]


def board_of_compatible(compatible: Iterable[str]) -> Board | None:
    """Find a board by the part numbers in the device tree's ``compatible``; ``None`` if none is in the table.

    >>> board_of_compatible(["nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"]).key
    'orin-nano'
    """
    text = " ".join(compatible)
    return _longest((module, board) for board in BOARDS.values() for module in board.modules if module in text)


def board_of_model(model: str) -> Board | None:
    r"""Find a board by the text of ``/proc/device-tree/model``; ``None`` if it is not in the table.

    >>> board_of_model("NVIDIA Jetson Orin Nano Developer Kit\0").key
    'orin-nano'
    """
    text = model.strip(" \0\n")
    return _longest(
        (prefix, board) for board in BOARDS.values() for prefix in board.model_prefixes if text.startswith(prefix)
    )


def guess_board(sample: Sample | StampedSample) -> Board | None:
    """Guess the board from one line, for logs that do not name theirs; say "guessed" where the result is shown.

    Rails, number of cores, memory size and zones must fit. An Orin NX of 8 GB whose zones CV0 to CV2 have no power
    passes for an Orin Nano; rule, scope and LSB of the two are the same. Lines of the power chips have rails alone.
    """
    if sample.ram_total_mb is None:
        return _guess_by_rails(sample.rails_mw)
    fitting = (board for board in BOARDS.values() if any(_fits(sample, known) for known in board.fingerprints))
    return next(fitting, None)


def _guess_by_rails(rails_mw: Mapping[str, int]) -> Board | None:
    """Name all boards that have most of these rails; ``None`` where their rules differ."""
    found = [
        (len(known.rails), board)
        for board in BOARDS.values()
        for known in board.fingerprints
        if known.rails and known.rails <= rails_mw.keys() and known.lacks.isdisjoint(rails_mw)
    ]
    most = max((rails for rails, _ in found), default=0)
    boards = list({board.key: board for rails, board in found if rails == most}.values())
    if not boards or any(_rule(board) != _rule(boards[0]) for board in boards):
        return None
    titles = " or ".join(board.title.removeprefix("Jetson ") for board in boards)
    return boards[0] if len(boards) == 1 else replace(boards[-1], title=f"Jetson {titles}")


def _rule(board: Board) -> tuple[object, ...]:
    return board.total_rails, board.scope, board.lsb_mw, board.tau_s


def _longest(found: Iterable[tuple[str, Board]]) -> Board | None:
    return max(found, key=lambda pair: len(pair[0]), default=("", None))[1]


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
        return (
            f"board {model!r} is not in the table, so no total is known; its rails: {found}: if it is one of the "
            "table, name it by board in agent.toml, or by --board"
        )
    if board.is_total_unknown:
        return f"nobody has shown which rails of {board.title} add up to its power; its rails: {found}"
    if not board.total_rails:
        return f"{board.title} has no power monitor"
    return f"expected the rails {', '.join(board.total_rails)} of {board.title}, found these: {found}"


def _fits(sample: Sample | StampedSample, known: Fingerprint) -> bool:
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
