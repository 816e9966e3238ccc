"""Aligns a meter's log with a board's, whose clocks have nothing in common, by the steps of the load in both.

Every shift of the meter's clock is tried. The best is the one at which a straight line through the meter's power
explains most of the variance of the board's whole log; what the meter does not cover counts as unexplained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from devit_contract.arrays import Float64Array
from devit_contract.errors import EnergyError
from devit_profiling.calibrate.meter_log import MeterLog
from devit_profiling.record.calibration import Alignment

GRID_S = 0.1
_MIN_COVERED = 0.5
_MIN_EXPLAINED = 0.9
_MIN_LEAD = 0.02
_APART_S = 3.0


@dataclass(frozen=True)
class Aligned:
    """Both logs on the device's clock, every :data:`GRID_S`, where they overlap."""

    time_s: Float64Array
    """Shape ``(n,)``."""
    board_w: Float64Array
    meter_w: Float64Array
    """With the lag of the board's sensor."""
    alignment: Alignment


def align(board_w: Float64Array, time_s: Float64Array, meter: MeterLog, tau_s: float) -> Aligned:
    """Find the shift of the meter's clock.

    The board's readings and their rising clock have shape ``(n,)``. The meter gets the lag of the board's sensor, so
    that both show steps alike.

    Raises:
        EnergyError: The meter's log does not fit the board's, or fits at two shifts.
    """
    board_s, board = _on_grid(time_s, board_w)
    meter_s, plain = _on_grid(meter.time_s, meter.power_w)
    lagged = _averaged(plain, tau_s)
    first, scores, inside = _scores(board, lagged)
    best = int(np.argmax(scores))
    if scores[best] < _MIN_COVERED or inside[best] < _MIN_EXPLAINED:
        raise EnergyError(
            f"expected a meter's log that shows the steps of the board's, found {max(scores[best], 0.0):.0%} of the "
            "board's changes in it at the best shift of its clock: record both at the same time, or choose the device "
            "that the meter was on"
        )
    others = np.abs(np.arange(scores.size) - best) > _APART_S / GRID_S
    rival = float(np.max(scores[others], initial=-np.inf))
    if rival > scores[best] - _MIN_LEAD:
        raise EnergyError(
            f"expected one shift of the meter's clock that fits, found two: they explain {scores[best]:.1%} and "
            f"{rival:.1%} of the board's changes: record the meter for the whole run"
        )
    offset_s = float(meter_s[0] - board_s[0]) + (first + best + _peak(scores, best)) * GRID_S
    moved_s = meter_s - offset_s
    common = (board_s >= moved_s[0]) & (board_s <= moved_s[-1])
    return Aligned(
        time_s=board_s[common],
        board_w=board[common],
        meter_w=np.interp(board_s[common], moved_s, lagged),
        alignment=Alignment(
            offset_s=round(offset_s, 3),
            overlap_s=round(float(np.count_nonzero(common)) * GRID_S, 1),
            explained=round(float(inside[best]), 6),
        ),
    )


def _on_grid(time_s: Float64Array, power_w: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Interpolate on whole multiples of the grid's width after the first sample."""
    grid_s = time_s[0] + np.arange(int((time_s[-1] - time_s[0]) / GRID_S) + 1) * GRID_S
    return grid_s, np.interp(grid_s, time_s, power_w)


def _averaged(power_w: Float64Array, tau_s: float) -> Float64Array:
    """Let a first-order lag follow the power."""
    kept = np.exp(-GRID_S / tau_s) if tau_s > 0 else 0.0
    seen_w = np.empty_like(power_w)
    now_w = power_w[0]
    for place, true_w in enumerate(power_w):
        now_w = true_w + (now_w - true_w) * kept
        seen_w[place] = now_w
    return seen_w


def _scores(board: Float64Array, meter: Float64Array) -> tuple[int, Float64Array, Float64Array]:
    """Try every shift.

    Returns:
        Which place of the meter's log the first shift aligns with the board's first; for it and all that follow, the
        share of the board's variance that is explained, of the whole log and of the overlap. Shapes ``(shifts,)``.
    """
    board = board - board.mean()
    meter = meter - meter.mean()
    size = board.size + meter.size - 1
    ones_board, ones_meter = np.ones_like(board), np.ones_like(meter)

    def sums(one: Float64Array, other: Float64Array) -> Float64Array:
        """Sum the products over the overlap at each shift, from ``-(board.size - 1)`` on."""
        length = 1 << (size - 1).bit_length()
        spectrum = np.fft.rfft(other, length) * np.fft.rfft(one[::-1], length)
        return np.asarray(np.fft.irfft(spectrum, length)[:size], np.float64)

    count = np.maximum(np.rint(sums(ones_board, ones_meter)), 1.0)
    board_sum, meter_sum = sums(board, ones_meter), sums(ones_board, meter)
    board_square = sums(board**2, ones_meter) - board_sum**2 / count
    meter_square = sums(ones_board, meter**2) - meter_sum**2 / count
    product = sums(board, meter) - board_sum * meter_sum / count
    tiny = 1e-9 * float(board @ board)
    usable = (board_square > tiny) & (meter_square > 1e-9 * float(meter @ meter)) & (product > 0)
    inside = np.zeros(size)
    np.divide(product**2, board_square * meter_square, out=inside, where=usable)
    explained = inside * np.maximum(board_square, 0.0) / float(board @ board)
    return 1 - board.size, explained, inside


def _peak(scores: Float64Array, best: int) -> float:
    """Place of the maximum of the parabola through a score and its neighbours, in grid steps from it."""
    if not 0 < best < scores.size - 1:
        return 0.0
    left, top, right = scores[best - 1 : best + 2]
    bend = left - 2 * top + right
    return float((left - right) / (2 * bend)) if bend < 0 else 0.0
