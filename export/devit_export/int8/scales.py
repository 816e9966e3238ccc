"""Chooses scales and zero points, and rounds: what of a number eight bits keep."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float32Array
from devit_export.int8.activations import Activation
from devit_export.int8.products import Product, Runtime, along, other_axes

WEIGHT_STEPS: dict[Runtime, int] = {"ort": 64, "tensorrt": 127, "tensorrt-fp8": 448}
"""Largest weight; of FP8 (E4M3 without infinities), the largest number that there is."""
LOWEST, HIGHEST = -128, 127
STORED: dict[Runtime, np.dtype[np.generic]] = {
    "ort": np.dtype(np.int8),
    "tensorrt": np.dtype(np.int8),
    "tensorrt-fp8": np.dtype(ml_dtypes.float8_e4m3fn),
}
"""Type of what is quantized."""
_SMALLEST: dict[Runtime, float] = {"ort": 2.0**-60, "tensorrt": 2.0**-14, "tensorrt-fp8": 2.0**-14}
"""Scale; the latter is the last that FP16 holds in full precision."""
_SHRINKS = np.linspace(1.0, 0.3, 15)
"""Of a range: how much of it is kept, the rest being cut off."""


def weight_scales(product: Product, runtime: Runtime) -> Float32Array:
    """Find the scale of each channel of the result, ``(channels,)``.

    A channel of zeros, or one tiny beside the largest, takes a share of the largest's: a scale of 0 is none.
    """
    peaks = np.abs(product.weight).max(axis=other_axes(product.weight, product.result_axis))
    largest = float(peaks.max()) or 1.0
    return _tidy(np.maximum(peaks, largest * 2.0**-24) / WEIGHT_STEPS[runtime], runtime)


def weight_steps(product: Product, scales: Float32Array, runtime: Runtime) -> npt.NDArray[np.generic]:
    """Count a weight in its scales, in the weight's shape and the type that is stored."""
    most = WEIGHT_STEPS[runtime]
    steps = product.weight / along(product.weight, product.result_axis, scales)
    return _rounded(steps, runtime, -most, most).astype(STORED[runtime])


def input_scale(activation: Activation, gains: Float32Array, runtime: Runtime) -> tuple[float, int]:
    """Choose the scale and the zero point of what comes in.

    A range that leaves out some rare large numbers is finer for all others. Of some ranges, that one is taken which
    makes the least squared error in the results, by the rows seen.

    Args:
        activation: What was seen of it.
        gains: How much each channel counts, ``(channels,)``.
        runtime: What it is for.
    """
    lowest, highest = min(float(activation.lowest.min()), 0.0), max(float(activation.highest.max()), 0.0)
    if runtime != "ort":
        highest = max(-lowest, highest)
        lowest = -highest
    if lowest == highest:
        return 1.0, 0
    tried = [_range(shrink * lowest, shrink * highest, runtime) for shrink in _SHRINKS]
    errors = [input_error(activation, gains, scale, zero, runtime) for scale, zero in tried]
    return tried[int(np.argmin(errors))]


def input_error(activation: Activation, gains: Float32Array, scale: float, zero: int, runtime: Runtime) -> float:
    """Estimate the squared error of a row of results that comes of rounding what comes in."""
    step = np.float32(scale)
    kept = _rounded(activation.rows / step, runtime, *(border - zero for border in _borders(runtime))) * step
    return float((np.square(kept - activation.rows).mean(axis=0, dtype=np.float64) * gains).sum())


def weight_error(activation: Activation, product: Product, runtime: Runtime) -> float:
    """Estimate the squared error of a row of results that comes of rounding the weight."""
    scales = weight_scales(product, runtime)
    steps = weight_steps(product, scales, runtime).astype(np.float32)
    errors = np.square(steps * along(product.weight, product.result_axis, scales) - product.weight).sum(
        axis=other_axes(product.weight, product.input_axis)
    )
    return float((np.square(activation.rows).mean(axis=0, dtype=np.float64) * errors).sum())


def _range(lowest: float, highest: float, runtime: Runtime) -> tuple[float, int]:
    if runtime != "ort":
        return float(_tidy(np.float32(highest / _borders(runtime)[1]), runtime)), 0
    scale = float(_tidy(np.float32((highest - lowest) / (HIGHEST - LOWEST)), runtime))
    return scale, int(np.clip(np.rint(LOWEST - lowest / scale), LOWEST, HIGHEST))


def _borders(runtime: Runtime) -> tuple[int, int]:
    """Give the smallest and the largest number of what comes in."""
    most = WEIGHT_STEPS["tensorrt-fp8"]
    return (-most, most) if runtime == "tensorrt-fp8" else (LOWEST, HIGHEST)


def _rounded(steps: Float32Array, runtime: Runtime, lowest: int, highest: int) -> Float32Array:
    """Round to what eight bits hold, to even where two are as near; what is beyond the borders is cut off.

    The cast to FP8 alone would make NaN of it.
    """
    clipped = np.clip(steps, lowest, highest)
    kept = clipped.astype(STORED[runtime]) if runtime == "tensorrt-fp8" else np.rint(clipped)
    found: Float32Array = kept.astype(np.float32)
    return found


def _tidy(scale: Float32Array | np.float32, runtime: Runtime) -> Float32Array:
    """Round scales to the 11 digits of FP16, which also hides the rounding of another CPU."""
    mantissa, exponent = np.frexp(scale)
    tidy: Float32Array = np.ldexp(np.rint(mantissa * 2048) / 2048, exponent).astype(np.float32)
    return np.maximum(tidy, np.float32(_SMALLEST[runtime]))
