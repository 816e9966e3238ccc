"""What one inference gave: a feature, as it was computed and as it is sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float32Array
from devit_contract.errors import EngineError


@dataclass(frozen=True)
class Inference:
    """A feature, and the time that its frame waited for it."""

    feature: Float32Array
    """Shape ``(dim,)``."""
    decode_us: int
    inference_us: int
    """Both 0 if the feature was there before the trigger."""
    captured_ns: int = 0
    """From an own source: when its image was captured."""

    def as_sent(self, dtype: str) -> npt.NDArray[np.floating]:
        """Round the feature to the type that the node wants.

        Raises:
            EngineError: FP16 does not hold one of its numbers.
        """
        if dtype == "float32":
            return self.feature
        with np.errstate(over="ignore"):
            half = self.feature.astype(np.float16)
        if not np.isfinite(half).all():
            raise EngineError(
                f"expected a feature that float16 holds, found a number of {np.abs(self.feature).max():.3g}: "
                'set feature_dtype = "float32" in fleet.toml'
            )
        return half
