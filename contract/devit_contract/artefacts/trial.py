"""The trial: what every calibrated subset answers to images of the validation part, for plans to be simulated on.

``calibration.safetensors`` may hold it beside the thresholds' scores. A node does not need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float32Array, Int64Array
from devit_contract.artefacts.files import Tensors
from devit_contract.errors import ManifestError

RIGHT, FLIP = 1, 2
"""Bits of a mark: the answer is the label; it is not the answer of all devices."""
MAX_MARKS = 100_000
"""Images times subsets: 300 kB. Of more images, every so many-th is kept."""
_LARGEST_SCORE = 60_000.0
"""As far as float16 goes."""


@dataclass(frozen=True)
class Trial:
    """Images answered by subsets of devices; columns are subsets, and the last one is the whole cell."""

    masks: tuple[int, ...]
    scores: npt.NDArray[np.float16]
    """Shape ``(n, subsets)``; those of the whole cell mean nothing."""
    marks: npt.NDArray[np.uint8]
    """Shape ``(n, subsets)``: :data:`RIGHT` and :data:`FLIP`."""

    @classmethod
    def of(
        cls, scores: Mapping[int, Float32Array], answers: Mapping[int, Int64Array], labels: Int64Array, whole: int
    ) -> Trial:
        """Mark what subsets answer ``(n,)``, by mask; ``whole`` is that of all devices, and has no scores."""
        masks = (*scores, whole)
        kept = slice(None, None, -(-len(labels) * len(masks) // MAX_MARKS))
        columns = [np.minimum(column, _LARGEST_SCORE) for column in scores.values()]
        marks = [RIGHT * (answers[mask] == labels) + FLIP * (answers[mask] != answers[whole]) for mask in masks]
        return cls(
            masks,
            np.stack([*columns, np.zeros(len(labels))], 1)[kept].astype(np.float16),
            np.stack(marks, 1)[kept].astype(np.uint8),
        )

    @classmethod
    def from_tensors(cls, tensors: Tensors, devices: int) -> Trial | None:
        """Take it from a file's tensors; ``None`` where they hold none.

        Raises:
            ManifestError: They hold something else.
        """
        parts = {name: tensors[f"trial.{name}"] for name in ("masks", "scores", "marks") if f"trial.{name}" in tensors}
        if not parts:
            return None
        if len(parts) < 3:
            raise ManifestError(f"expected trial.masks, trial.scores and trial.marks, found {', '.join(parts)}")
        masks, scores, marks = parts.values()
        shape = marks.shape
        is_sound = masks.dtype == np.int64 and scores.dtype == np.float16 and marks.dtype == np.uint8
        is_sound = is_sound and scores.shape == shape and len(shape) == 2 and shape[0] > 0 and masks.shape == shape[1:]
        is_sound = is_sound and bool(np.isfinite(scores).all() and (marks <= RIGHT | FLIP).all())
        whole = (1 << devices) - 1
        if not (is_sound and masks[-1] == whole and len({*masks.tolist()}) == len(masks) and masks.min() > 0):
            raise ManifestError(f"expected a trial of {devices} devices, found another one")
        return cls(tuple(masks.tolist()), scores, marks)

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.marks)

    def tensors(self) -> Tensors:
        """Give what a file keeps."""
        masks = np.asarray(self.masks, np.int64)
        return {"trial.masks": masks, "trial.scores": self.scores, "trial.marks": self.marks}

    def column(self, mask: int) -> int:
        """Find the column of a subset; a :class:`ManifestError` names an unknown one."""
        if mask not in self.masks:
            raise ManifestError(f"subset {mask:#b} of the devices was not calibrated: plan with fewer lost devices")
        return self.masks.index(mask)

    def accuracy(self, mask: int) -> float:
        """Give the share of images that a subset answers rightly."""
        return float((self.marks[:, self.column(mask)] & RIGHT > 0).mean())
