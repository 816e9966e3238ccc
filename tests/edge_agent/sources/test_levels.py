"""A camera's picture is as bright as the same picture of a client, by the real GStreamer."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tests.edge_agent.sources.turning import wait_for

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.manifest import Preprocess
from devit_edge_agent.sources.gstreamer import GstSource
from devit_edge_agent.sources.pipeline import Pipeline, parse_pipeline

WIDTH, HEIGHT = 512, 96
SIZE = f"size={WIDTH}x{HEIGHT}"
WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
"""Of red and blue in luma, ITU-R BT.601 and BT.709."""
AS_IT_IS = Preprocess(height=HEIGHT, width=WIDTH, colour="rgb")

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def grays() -> UInt8Array:
    """Mid-gray above, a ramp below."""
    levels = np.tile((np.arange(WIDTH) // 2).astype(np.uint8), (HEIGHT, 1))
    levels[: HEIGHT // 2] = 128
    return np.repeat(levels[..., np.newaxis], 3, axis=2)


def colours() -> UInt8Array:
    """Ramps of red, green, blue and what two of them make."""
    ramp, pixels = np.arange(WIDTH) // 2, np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for row, channels in enumerate(([0], [1], [2], [0, 1], [1, 2], [0, 2])):
        pixels[row * 16 : row * 16 + 16, :, channels] = ramp[:, np.newaxis]
    return pixels


def limited(pixels: UInt8Array, colorimetry: str) -> bytes:
    """YUY2, luma from 16 to 235, each number rounded to the nearest."""
    of_red, of_blue = WEIGHTS[colorimetry]
    red, green, blue = pixels.astype(float).transpose(2, 0, 1)
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    blueness, redness = (blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red)
    made = np.empty((HEIGHT, WIDTH, 2))
    made[..., 0] = 16 + luma * 219 / 255
    for first, chroma in ((0, blueness), (1, redness)):
        made[:, first::2, 1] = 128 + chroma.reshape(HEIGHT, WIDTH // 2, 2).mean(2) * 224 / 255
    return made.round().astype(np.uint8).tobytes()


def jpeg(pixels: UInt8Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling="4:2:2")
    return file.getvalue()


def behind(head: str, line: str) -> Pipeline:
    """A source with other elements at its head, where a camera's would stand, or ``HEAD``."""
    pipeline = parse_pipeline(line, base=Path())
    words = pipeline.words
    rest = words[1:] if words[0] == "HEAD" else words[words.index("!") :]
    return replace(pipeline, words=(*head.split(), *rest))


def taken(pipeline: Pipeline) -> npt.NDArray[np.int_]:
    source = GstSource(pipeline, AS_IT_IS)
    try:
        return wait_for(source, source.take_new).image.astype(int)
    finally:
        source.close()


@pytest.mark.parametrize("picture", [grays, colours])
@pytest.mark.parametrize("colorimetry", WEIGHTS)
@pytest.mark.parametrize("line", [f"v4l2?{SIZE}", f"HEAD ?{SIZE}", "file?path=clip.mkv"])
def test_limited_range_comes_within_one_level(
    line: str, colorimetry: str, picture: Callable[[], UInt8Array], tmp_path: Path
) -> None:
    """What USB cameras give raw, and most videos are: 0.0 to 0.7 too bright; the short way was 2.3 too dark."""
    pixels = picture()
    (tmp_path / "raw").write_bytes(limited(pixels, colorimetry))
    size = f"width={WIDTH} height={HEIGHT} framerate=10/1 colorimetry={colorimetry}"
    head = f"filesrc location={tmp_path}/raw blocksize={WIDTH * HEIGHT * 2} ! rawvideoparse format=yuy2 {size}"
    if line.startswith("file"):
        clip = [*head.split(), "!", "matroskamux", "!", "filesink", f"location={tmp_path}/clip.mkv"]
        subprocess.run(["gst-launch-1.0", "-q", *clip], check=True, timeout=60)
        pipeline = parse_pipeline(f"{line}&{SIZE}", base=tmp_path)
    else:
        pipeline = behind(head, line)
    error = taken(pipeline) - pixels
    print(f"{line} {colorimetry} {picture.__name__}: {error.mean():+.2f} levels, {np.abs(error).mean():.2f} on average")
    assert abs(error.mean()) < 1
    assert np.abs(error).mean() < 1


@pytest.mark.parametrize("picture", [grays, colours])
@pytest.mark.parametrize("line", [f"v4l2?{SIZE}", f"HEAD ! decodebin ?{SIZE}"])
def test_jpeg_comes_within_one_level_of_what_a_client_decodes(
    line: str, picture: Callable[[], UInt8Array], tmp_path: Path
) -> None:
    content = jpeg(picture())
    (tmp_path / "p.jpg").write_bytes(content)
    size = f"width={WIDTH},height={HEIGHT},framerate=10/1"
    head = f"multifilesrc location={tmp_path}/p.jpg loop=true caps=image/jpeg,{size}"
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    error = taken(behind(head, line)) - expected
    print(f"{line} {picture.__name__}: {error.mean():+.2f} levels, {np.abs(error).mean():.2f} on average")
    assert abs(error.mean()) < 1
    assert np.abs(error).mean() < 1.5
