"""What a line of agent.toml gives to GStreamer: values as they were written, frames in true proportions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.errors import InputError
from devit_edge_agent.sources.pipeline import parse_pipeline

CAMERAS = (
    "rtsp://viewer:p%40ss@192.0.2.8:554/live",
    "rtsp://viewer:p+ss@192.0.2.8:554/live",
    "rtsp://viewer:wow%21@192.0.2.8/live",
    "rtsp://viewer:wow!it's@192.0.2.8/live",
    "rtsp://192.0.2.8:554/cam/realmonitor?channel=1&subtype=0",
    "rtsps://192.0.2.8/axis-media/media.amp?resolution=1280x720&fps=15",
    "rtsp://192.0.2.8/a?size=4&url=rtsp://other/b&c=%26",
    "rtsp://[2001:db8::8]:554/h264;profile=1#part",
)


@pytest.mark.parametrize("url", CAMERAS)
@pytest.mark.parametrize(
    ("line", "size", "latency"),
    [
        ("rtsp?url={}", "640,height=480", "200"),
        ("rtsp?url={}&size=320x240", "320,height=240", "200"),
        ("rtsp?url={}&latency=50&size=320x240", "320,height=240", "50"),
        ("rtsp?size=320x240&latency=50&url={}", "320,height=240", "50"),
        ("rtsp?latency=50&url={}&size=320x240", "320,height=240", "50"),
    ],
)
def test_a_url_reaches_rtspsrc_as_it_was_written(url: str, line: str, size: str, latency: str) -> None:
    words = parse_pipeline(line.format(url), base=Path()).words
    assert words[:3] == ("rtspsrc", f"location={url}", f"latency={latency}")
    assert words[-1] == f"video/x-raw,format=RGB,width={size}"


def test_parameters_before_a_url_leave_it_parameters_of_the_same_name() -> None:
    url = "rtsp://192.0.2.8/a?b=1&size=high&latency=low"
    assert parse_pipeline(f"rtsp?size=32x24&latency=0&url={url}", base=Path()).words[1] == f"location={url}"


@examples(3)
@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"\\'), max_size=30))
def test_any_url_survives_unless_it_ends_in_a_parameter_of_ours(rest: str) -> None:
    url = f"rtsp://192.0.2.8/{rest}"
    line = f"rtsp?size=32x24&latency=0&url={url}"
    assert parse_pipeline(line, base=Path()).words[1] == f"location={url}"


@pytest.mark.parametrize("name", ["a+b.mp4", "50%25.mp4", "a&b=c.mp4", "it's new!.mp4", "two words.mp4", "grün.mp4"])
def test_a_file_is_found_under_the_name_that_was_written(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    for line in (f"file?path={name}", f"file?path={name}&size=32x24", f"file?size=32x24&path={name}"):
        assert parse_pipeline(line, base=tmp_path).words[:2] == ("filesrc", f"location={tmp_path}/{name}")


@pytest.mark.parametrize("name", ['a"b.mp4', "a\\b.mp4", "a\tb.mp4"])
def test_a_name_that_gst_launch_would_take_apart_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="path: expected no"):
        parse_pipeline(f"file?path={name}", base=tmp_path)


@pytest.mark.parametrize("url", ["rtsp://a b", 'rtsp://a"b', "rtsp://a\\b", "http://a", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="url: expected rtsp://HOST/PATH, found"):
        parse_pipeline(f"rtsp?url={url}", base=Path())


def test_only_frames_that_are_scaled_are_cut_to_the_shape_that_is_wanted(tmp_path: Path) -> None:
    """A camera is asked for frames of its size: what is cut from those, preprocessing decides."""
    (tmp_path / "clip.mp4").touch()
    for line in ("rtsp?url=rtsp://cam", "file?path=clip.mp4", "videotestsrc"):
        pipeline = parse_pipeline(line, base=tmp_path, default_size=(50, 40))
        assert "aspect-ratio=50/40" in pipeline.words
        assert (pipeline.width, pipeline.height) == (50, 40)
        assert (
            "aspect-ratio=33/17"
            in parse_pipeline(
                f"{line.replace('?', '?size=33x17&', 1)}" if "?" in line else f"{line} ?size=33x17", base=tmp_path
            ).words
        )
    for line in ("csi", "v4l2"):
        assert "aspectratiocrop" not in parse_pipeline(line, base=tmp_path, default_size=(50, 40)).words


@pytest.mark.parametrize("line", ["v4l2", "rtsp?url=rtsp://cam", "videotestsrc ! jpegenc ! decodebin"])
def test_a_decoder_may_leave_its_frames_in_a_jetsons_own_memory(line: str) -> None:
    pipeline = parse_pipeline(line, base=Path())
    out_of_nvmm = ["!", "nvvidconv", "!", "video/x-raw,format=RGBA"]
    at = pipeline.words_for_nvmm.index("nvvidconv") - 1
    assert list(pipeline.words_for_nvmm[at : at + 4]) == out_of_nvmm
    assert pipeline.words_for_nvmm[:at] + pipeline.words_for_nvmm[at + 4 :] == pipeline.words


def test_a_csi_camera_has_one_way_out_of_that_memory() -> None:
    pipeline = parse_pipeline("csi", base=Path())
    assert pipeline.words.count("nvvidconv") == 1
    assert pipeline.words_for_nvmm == ()
    assert pipeline.is_csi
    assert parse_pipeline("nvarguscamerasrc ! nvvidconv", base=Path()).is_csi
    assert not parse_pipeline("v4l2", base=Path()).is_csi
