"""Closed sets of words that files, options and signatures share."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal["submodel", "baseline", "teacher", "fusion", "golden", "samples", "calibration", "quantization"]
"""What a file of a bundle or of a models folder is for."""
Variant = Literal["fp8-fp16", "int8-fp16", "int8", "fp16", "fp16-attn32", "fp32"]
"""Precision variants from fast to exact. The products in FP8, and the rest as in ``fp16``; the same in INT8; the
products in INT8, and the rest in FP32; FP16, with every LayerNorm in FP32; every attention in FP32 too; everything."""
VARIANTS: tuple[Variant, ...] = get_args(Variant)
EIGHT_BIT_VARIANTS: tuple[Variant, ...] = ("fp8-fp16", "int8-fp16", "int8")
"""They are calibrated, and judged by the answers of the whole cell."""
BackendChoice = Literal["auto", "tensorrt", "ort"]
"""Back end of an engine; ``auto``: TensorRT if it is installed."""
Precision = Literal["fp8", "int8", "fp16", "fp32"]
"""The lowest precision that an engine may have; of those above it, the first variant that passed on this device. FP8
has 4 significant bits, INT8 up to 7."""
Preference = Literal["latency", "energy", "accuracy"]
"""What decides between the variants that pass on a device: the shortest p50, the fewest joules an answer, or the
smallest error."""
CudaChoice = Literal["auto", "pycuda", "cuda-bindings", "ctypes"]
"""Python's way to CUDA."""
HostMemory = Literal["pinned", "mapped"]
"""``pinned``: images and features are copied; ``mapped``: the GPU reads and writes host memory, which saves the copies
where both share it, as on a Jetson."""
FeatureDtype = Literal["float32", "float16"]
"""What features travel as: ``float16`` halves their bytes, and rounds them."""
ImageCoding = Literal["raw", "jpeg", "lossless"]
"""What an image of the model's shape travels as: its bytes; a JPEG file, which rounds it; a WebP file of exactly it."""
IMAGE_CODINGS: dict[str, ImageCoding] = {word: word for word in get_args(ImageCoding)}
ImageChoice = Literal["auto", "raw", "jpeg", "lossless"]
"""What clients send large images as; ``auto``: ``raw`` or ``jpeg``, whichever reaches the devices sooner."""
BoardChoice = Literal[
    "auto",
    "tx1",
    "nano",
    "nano-2gb",
    "tx2",
    "tx2-nx",
    "xavier-nx",
    "agx-xavier",
    "orin-nx",
    "orin-nano",
    "agx-orin",
    "agx-thor",
    "thor",
    "igx-orin",
    "igx-thor",
    "drive-orin",
]
"""Which board a device is, for the total of its power; ``auto``: by its device tree, else guessed from its samples."""
Policy = Literal["all", "certain", "single", "replica"]
"""Which devices a frame asks: ``all``; ``certain``: some, then others until its answer is certain; ``single``: the best
one; ``replica``: the idlest one."""
Order = Literal["rotating", "best", "cost"]
"""Which devices come first under ``certain``: the idlest, by turns; the most accurate; the fastest."""
LiarChoice = Literal["off", "warn", "exclude"]
"""What becomes of a device whose features do not fit those of the others."""
Views = Literal["same", "own"]
"""What the devices of a cell see of a scene: ``same``: all the same image; ``own``: each what its own camera shows."""
Colour = Literal["gray", "rgb"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
"""As Pillow names them."""


def is_at_least(variant: Variant, precision: Precision) -> bool:
    """Tell whether no part of a variant is computed in a lower precision than this one.

    >>> is_at_least("fp16-attn32", "fp16"), is_at_least("int8", "fp16")
    (True, False)
    """
    ladder = get_args(Precision)
    return ladder.index(variant.partition("-")[0]) >= ladder.index(precision)
