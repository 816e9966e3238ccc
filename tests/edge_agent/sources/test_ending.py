"""What a child printed becomes one line: the element, GStreamer's reason, and a cure where one is needed."""

from __future__ import annotations

import pytest

from devit_edge_agent.sources.ending import Ending, Output

# GStreamer 1.22.0.
NOT_LINKED = """\
ERROR: from element /GstPipeline:pipeline0/GstDecodeBin:decodebin0/GstMatroskaDemux:matroskademux0: \
Internal data stream error.
Additional debug info:
../gst/matroska/matroska-demux.c(6101): gst_matroska_demux_loop (): /GstPipeline:pipeline0/GstDecodeBin:decodebin0/\
GstMatroskaDemux:matroskademux0:
streaming stopped, reason not-linked (-1)
ERROR: pipeline doesn't want to preroll.
"""
REFUSED = """\
ERROR: from element /GstPipeline:pipeline0/GstRTSPSrc:rtspsrc0: Could not open resource for reading and writing.
Additional debug info:
../gst/rtsp/gstrtspsrc.c(8139): gst_rtspsrc_retrieve_sdp (): /GstPipeline:pipeline0/GstRTSPSrc:rtspsrc0:
Failed to connect. (Generic error)
ERROR: pipeline doesn't want to preroll.
"""
MISSING = 'WARNING: erroneous pipeline: no element "nosuchelement"\n'
# L4T 32 to 36, from reports of users; the program ends with exit code 0.
ARGUS = """\
(Argus) Error FileOperationFailed: Connecting to nvargus-daemon failed: Connection refused (in SocketClientDispatch.cpp)
(Argus) Error FileOperationFailed: Cannot create camera provider (in SocketClientDispatch.cpp)
Error generated. /dvs/git/gstnvarguscamerasrc.cpp, execute:751 Failed to create CameraProvider
"""


def ending(text: str, otherwise: str = "", *, is_error: bool = True) -> Ending:
    output = Output()
    for line in text.splitlines():
        output.take(line)
    return output.ending(otherwise, is_error=is_error)


def test_the_reason_stands_behind_the_element_and_what_it_says() -> None:
    found = ending(NOT_LINKED)
    assert found.text == (
        "ERROR: from element /GstPipeline:pipeline0/GstDecodeBin:decodebin0/GstMatroskaDemux:matroskademux0: "
        "Internal data stream error (streaming stopped, reason not-linked (-1))"
    )
    assert "nvvidconv" in found.cure


def test_a_camera_that_is_away_may_come_back() -> None:
    found = ending(REFUSED)
    assert found.text.endswith(
        "rtspsrc0: Could not open resource for reading and writing (Failed to connect. (Generic error))"
    )
    assert found.cure == ""


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        (MISSING, "install the package"),
        ('WARNING: erroneous pipeline: no property "x" in element "videotestsrc"', "correct the source"),
        ("WARNING: erroneous pipeline: could not link videotestsrc0 to fdsink0", "correct the source"),
        (NOT_LINKED.replace("not-linked (-1)", "not-negotiated (-4)"), "correct size and fps"),
        ("ERROR: from element /GstPipeline:pipeline0: Your GStreamer installation is missing a plug-in.", "install"),
        ("ERROR: from element decodebin0: Could not determine type of stream.", "give a video file"),
    ],
)
def test_what_another_try_only_repeats_has_a_cure(text: str, cure: str) -> None:
    assert cure in ending(text).cure


def test_what_a_jetsons_camera_says_counts_though_the_program_ends_well() -> None:
    found = ending(ARGUS, is_error=False)
    assert found.text.startswith(
        "(Argus) Error FileOperationFailed: Connecting to nvargus-daemon failed: Connection refused"
    )
    assert found.cure == ""


def test_an_end_without_a_word_is_told_by_the_caller_and_a_last_line_only_after_an_error() -> None:
    assert ending("", "exit code 3") == Ending("exit code 3")
    assert ending("some notice", "exit code 3") == Ending("some notice")
    assert ending("some notice", "", is_error=False) == Ending("")
