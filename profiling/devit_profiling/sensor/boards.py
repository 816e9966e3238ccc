"""Finds the board that lines came from, and adds up its power by the rule of the table.

A board that is not in the table has no total: none is guessed from the rails' names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from devit_contract.errors import InputError
from devit_profiling.sensor.board_table import BOARDS, Board, Look
from devit_profiling.sensor.sample import Sample


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
    passes for an Orin Nano; rule, scope and step of the two are the same.
    """
    fitting = (board for board in BOARDS.values() if any(_fits(sample, look) for look in board.looks))
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


def _fits(sample: Sample, look: Look) -> bool:
    smallest_mb, largest_mb = look.ram_total_mb
    return (
        look.rails <= sample.rails_mw.keys()
        and look.lacks.isdisjoint(sample.rails_mw)
        and bool(look.rails) == bool(sample.rails_mw)
        and sample.ram_total_mb is not None
        and smallest_mb <= sample.ram_total_mb <= largest_mb
        and (not sample.cpu or len(sample.cpu) in look.cores)
        and (not look.zones or any(zone.lower() in look.zones for zone in sample.temperatures_c))
    )
