"""Chooses scales and zero points: how large the steps of INT8 are, and what they are counted from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float32Array
from devit_export.int8.activations import Activation
from devit_export.int8.products import Product, Runtime, along, other_axes

WEIGHT_STEPS: dict[Runtime, int] = {"ort": 64, "tensorrt": 127}
"""Largest weight."""
LOWEST, HIGHEST = -128, 127
_SMALLEST: dict[Runtime, float] = {"ort": 2.0**-60, "tensorrt": 2.0**-14}
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


def weight_steps(product: Product, scales: Float32Array, runtime: Runtime) -> npt.NDArray[np.int8]:
    """Count a weight in steps of its scales, in the weight's shape."""
    most = WEIGHT_STEPS[runtime]
    steps = np.rint(product.weight / along(product.weight, product.result_axis, scales))
    clipped: npt.NDArray[np.int8] = np.clip(steps, -most, most).astype(np.int8)
    return clipped


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
    if runtime == "tensorrt":
        highest = max(-lowest, highest)
        lowest = -highest
    if lowest == highest:
        return 1.0, 0
    tried = [_range(shrink * lowest, shrink * highest, runtime) for shrink in _SHRINKS]
    errors = [input_error(activation, gains, scale, zero) for scale, zero in tried]
    return tried[int(np.argmin(errors))]


def input_error(activation: Activation, gains: Float32Array, scale: float, zero: int) -> float:
    """Estimate the squared error of a row of results that comes of rounding what comes in."""
    step = np.float32(scale)
    rounded = np.clip(np.rint(activation.rows / step), LOWEST - zero, HIGHEST - zero) * step
    return float((np.square(rounded - activation.rows).mean(axis=0, dtype=np.float64) * gains).sum())


def weight_error(activation: Activation, product: Product, runtime: Runtime) -> float:
    """Estimate the squared error of a row of results that comes of rounding the weight."""
    scales = weight_scales(product, runtime)
    rounded = weight_steps(product, scales, runtime) * along(product.weight, product.result_axis, scales)
    errors = np.square(rounded - product.weight).sum(axis=other_axes(product.weight, product.input_axis))
    return float((np.square(activation.rows).mean(axis=0, dtype=np.float64) * errors).sum())


def _range(lowest: float, highest: float, runtime: Runtime) -> tuple[float, int]:
    if runtime == "tensorrt":
        return float(_tidy(np.float32(highest / HIGHEST), runtime)), 0
    scale = float(_tidy(np.float32((highest - lowest) / (HIGHEST - LOWEST)), runtime))
    return scale, int(np.clip(np.rint(LOWEST - lowest / scale), LOWEST, HIGHEST))


def _tidy(scale: Float32Array | np.float32, runtime: Runtime) -> Float32Array:
    """Round scales to the 11 digits of FP16, which also hides the rounding of another CPU."""
    mantissa, exponent = np.frexp(scale)
    tidy: Float32Array = np.ldexp(np.rint(mantissa * 2048) / 2048, exponent).astype(np.float32)
    return np.maximum(tidy, np.float32(_SMALLEST[runtime]))
