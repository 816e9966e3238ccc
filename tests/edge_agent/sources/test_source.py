"""Own images of a device: the newest frame of a real pipeline, whatever the child process behind it does."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from PIL import Image
from tests.edge_agent.sources.turning import problem_of, wait_for

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import load_image
from devit_contract.errors import InputError, SourceLostError
from devit_edge_agent.sources import gstreamer as source_gst
from devit_edge_agent.sources.folder import FolderSource
from devit_edge_agent.sources.gstreamer import next_pause_ns
from devit_edge_agent.sources.open import open_source
from devit_edge_agent.sources.pipeline import Pipeline, parse_pipeline
from devit_edge_agent.sources.source import Captured, Source

RGB = Preprocess(height=3, width=5, colour="rgb")
GRAY = Preprocess(height=3, width=5, colour="gray")
NEWEST_ONLY = ["queue", "leaky=downstream", "max-size-buffers=1", "max-size-bytes=0", "max-size-time=0"]
TAIL = ["!", "videoconvert", "!", "videoscale", "!"]
EXACTLY = "video/x-raw,format={RGB,RGBA,RGBx,BGR,BGRA,BGRx,Y444_12LE};video/x-raw,colorimetry=1:4:0:0"
TO_RGB = ["videoconvert", "!", EXACTLY, "!", "videoconvert", "!"]
SIMULATED = """#!{python} -S
# SIMULATED gst-launch-1.0: a real process that writes real bytes to the pipe it is given.
import os, signal, sys, time
fd = int(next(word[3:] for word in sys.argv if word.startswith("fd=")))
def frame(value, size=48):
    os.write(fd, bytes([value]) * size)
def tell():
    with open("{folder}/told", "wb", buffering=0) as told:
        told.write(b"x")
with open("{folder}/runs", "a+") as file:
    file.write(str(os.getpid()) + "\\n")
    file.seek(0)
    run = len(file.readlines())
{body}
"""


class Simulated:
    """Put a SIMULATED gst-launch-1.0 in front of PATH, and see what it does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "gst-launch-1.0"
        os.mkfifo(folder / "told")
        self._told = os.open(folder / "told", os.O_RDWR)

    def does(self, body: str) -> None:
        self.program.write_text(SIMULATED.format(python=sys.executable, folder=self.folder, body=body))
        self.program.chmod(0o755)

    def wait_until_told(self) -> None:
        assert select.select([self._told], [], [], 30.0)[0], "the child said nothing"
        os.read(self._told, 1)

    def pids(self) -> list[int]:
        runs = self.folder / "runs"
        return [int(line) for line in runs.read_text().split()] if runs.exists() else []

    def close(self) -> None:
        os.close(self._told)


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulated]:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    made = Simulated(tmp_path)
    yield made
    made.close()


def wait_for_death(pid: int, seconds: float = 20.0) -> None:
    """Wait for the end of a process that is no child of this one."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], seconds)[0], f"process {pid} lives on"
    finally:
        os.close(descriptor)


def children_of(pid: int) -> list[int]:
    return [int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in path.read_text().split()]


# The line in agent.toml.


def scaled(shape: str) -> list[str]:
    fit = f"! videoconvert ! aspectratiocrop aspect-ratio={shape} ! videoscale add-borders=false method=lanczos !"
    return [*fit.split(), *TO_RGB]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "csi?sensor=1&size=640x480&fps=60",
            [
                *["nvarguscamerasrc", "sensor-id=1", "!"],
                "video/x-raw(memory:NVMM),format=NV12,width=640,height=480,framerate=60/1",
                *["!", "nvvidconv", "!", "video/x-raw,format=RGBA", "!", *NEWEST_ONLY, *TAIL],
                "video/x-raw,format=RGB,width=640,height=480",
            ],
        ),
        (
            "v4l2?device=/dev/video2&fps=30",
            [
                *["v4l2src", "device=/dev/video2", "!"],
                "video/x-raw,width=640,height=480,framerate=30/1;image/jpeg,width=640,height=480,framerate=30/1",
                *["!", "decodebin", "!", *NEWEST_ONLY, *TAIL, *TO_RGB, "video/x-raw,format=RGB,width=640,height=480"],
            ],
        ),
        (
            "rtsp?url=rtsp://u:p@cam/live?a=1&b=2&size=320x240",
            [
                *["rtspsrc", "location=rtsp://u:p@cam/live?a=1&b=2", "latency=200"],
                *["!", "application/x-rtp,media=video", "!", "decodebin", "!", *NEWEST_ONLY, *scaled("320/240")],
                "video/x-raw,format=RGB,width=320,height=240",
            ],
        ),
        (
            "videotestsrc is-live=true ! video/x-raw,framerate='5/1' ?size=32x24",
            [
                *["videotestsrc", "is-live=true", "!", "video/x-raw,framerate=5/1", *scaled("32/24")],
                "video/x-raw,format=RGB,width=32,height=24",
            ],
        ),
    ],
)
def test_a_line_becomes_these_words_and_no_shell_reads_them(text: str, words: list[str]) -> None:
    assert list(parse_pipeline(text, base=Path()).words) == words


def test_a_camera_has_a_default_device_and_size_and_sets_its_own_pace() -> None:
    pipeline = parse_pipeline("v4l2", base=Path())
    assert pipeline.words[-1] == "video/x-raw,format=RGB,width=640,height=480"
    assert "device=/dev/video0" in pipeline.words
    assert not pipeline.is_paced


def test_a_video_file_is_found_from_the_base_and_played_at_its_own_speed(tmp_path: Path) -> None:
    (tmp_path / "clip.avi").touch()
    pipeline = parse_pipeline("file?path=clip.avi", base=tmp_path)
    assert pipeline.words[:4] == ("filesrc", f"location={tmp_path}/clip.avi", "!", "decodebin")
    assert "leaky=downstream" not in pipeline.words
    assert pipeline.is_paced


@pytest.mark.parametrize(("width", "stride_bytes"), [(5, 16), (4, 12), (33, 100), (1, 4), (2, 8), (640, 1920)])
def test_a_row_is_padded_to_four_bytes(width: int, stride_bytes: int) -> None:
    assert Pipeline((), False, width, 1).stride_bytes == stride_bytes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("camera:0", "source: expected folder:DIR or gst:PIPELINE, found 'camera:0'"),
        ("folder:", "expected folder:DIR or gst:PIPELINE"),
        ("gst: ", "expected folder:DIR or gst:PIPELINE"),
        ("gst:v4l2?device=/dev/video0 ! filesink location=/etc/passwd", "device: expected no space"),
        ("gst:v4l2?device=/dev/video0!filesink", "device: expected no space"),
        ("gst:v4l2?device=/dev/v%21", "device: expected no space"),
        ("gst:v4l2?device=/dev/v%09", "device: expected no space"),
        ("gst:v4l2?device=/dev/v%00", "device: expected no space"),
        ("gst:v4l2?device=%22x%22", "device: expected no space"),
        ("gst:v4l2?device=a+b", "device: expected no space"),
        ("gst:v4l2?device=", "device: expected no space"),
        ("gst:v4l2?devise=/dev/video0", "expected some of device, size, fps, found 'devise'"),
        ("gst:v4l2?device", "expected parameters as name=value&name=value, found 'device'"),
        ("gst:v4l2?fps=thirty", "fps: expected a whole number, found 'thirty'"),
        ("gst:csi?sensor=-1", "sensor: expected a whole number, found '-1'"),
        ("gst:csi?size=640*480", "size: expected WIDTHxHEIGHT such as 640x480, found '640*480'"),
        ("gst:csi?size=0x480", "size: expected WIDTHxHEIGHT"),
        ("gst:csi?size=9999x9999", "size: expected WIDTHxHEIGHT"),
        ("gst:rtsp", "url: expected rtsp://HOST/PATH, found ''"),
        ("gst:rtsp?url=file:///etc/passwd", "url: expected rtsp://HOST/PATH"),
        ("gst:file", "expected path=FILE, found none"),
        ("gst:file?path=absent.mp4", "absent.mp4: expected a video file, found none"),
        ("gst:videotestsrc ! identity ?size=big", "size: expected WIDTHxHEIGHT such as 640x480, found 'big'"),
        ("gst:videotestsrc name='x", "expected a pipeline of gst-launch-1.0"),
    ],
)
def test_a_line_that_is_not_usable_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        open_source(text, RGB, base=tmp_path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_without_gstreamer_the_packages_to_install_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError) as error:
        open_source("gst:v4l2", RGB, base=tmp_path)
    assert str(error.value) == (
        "gst-launch-1.0 is not installed: "
        "apt-get install gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
    )


# A folder of pictures.


def write_picture(path: Path, level: int) -> None:
    Image.fromarray(np.full((6, 7, 3), level, np.uint8)).save(path, path.suffix.lstrip(".").replace("JPG", "jpeg"))


def levels(source: Source, count: int) -> list[int]:
    found = [source.take_new() for _ in range(count)]
    return [int(one.image[0, 0, 0]) for one in found if one is not None]


def test_a_folder_is_handed_out_in_the_order_of_names_round_and_round(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, level in (("b.png", 2), ("a.png", 1), ("c.bmp", 3)):
        write_picture(tmp_path / "in" / name, level)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    source = open_source("folder:in", RGB, base=tmp_path)
    assert source.fileno() == -1
    source.pump()
    before_ns = time.monotonic_ns()
    first = source.newest(1)
    assert first is not None
    assert before_ns <= first.captured_ns <= time.monotonic_ns()
    np.testing.assert_array_equal(first.image, load_image(tmp_path / "in" / "a.png", RGB))
    assert levels(source, 5) == [2, 3, 1, 2, 3]
    source.close()


def test_a_picture_that_comes_later_is_there_in_the_next_round(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 1)
    source = FolderSource(tmp_path, RGB)
    assert levels(source, 1) == [1]
    write_picture(tmp_path / "b.PNG", 2)
    assert levels(source, 3) == [1, 2, 1]


def test_a_picture_that_cannot_be_decoded_is_passed_over_and_counted(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_text("no picture")
    write_picture(tmp_path / "c.png", 3)
    source = FolderSource(tmp_path, RGB)
    assert levels(source, 4) == [1, 3, 1, 3]
    assert source.skipped == 2
    assert source.problem == ""


def test_folders_stay_in_step_by_the_numbers_of_frames(tmp_path: Path) -> None:
    """Whatever frames a device misses, it takes the picture that all others take."""
    for name, level in zip("abc", (1, 2, 3), strict=True):
        write_picture(tmp_path / f"{name}.png", level)
    source = FolderSource(tmp_path, RGB)
    found = [source.newest(frame_id) for frame_id in (1, 2, 5, 5, 7, 6)]
    assert [int(captured.image[0, 0, 0]) for captured in found if captured is not None] == [1, 2, 2, 2, 1, 3]


def test_a_folder_of_damaged_pictures_gives_none_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    source = FolderSource(tmp_path, RGB)
    assert source.newest(1) is None
    assert "a.png: expected a picture" in source.problem
    write_picture(tmp_path / "a.png", 9)
    assert levels(source, 1) == [9]
    assert source.problem == ""
    (tmp_path / "a.png").unlink()
    assert source.newest(1) is None
    assert source.problem.endswith("expected pictures, found none")


@pytest.mark.parametrize("name", ["empty", "absent", "file"])
def test_a_folder_without_pictures_is_refused_at_the_start(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"expected (pictures .*, found none|a folder of pictures, found)"):
        open_source(f"folder:{name}", RGB, base=tmp_path)


# The child, SIMULATED: what no real camera does on demand.


def test_bytes_that_pad_rows_are_no_pixels(simulated: Simulated, opened: Callable[..., Source]) -> None:
    """Five pixels of three bytes are rows of 16: without the last one the picture would lean."""
    simulated.does(
        "rows = [bytes(range(16 * row, 16 * row + 15)) + bytes([255]) for row in range(3)]\n"
        "os.write(fd, b''.join(rows))\nsignal.pause()"
    )
    source = opened("gst:anything ?size=5x3")
    image = wait_for(source, source.take_new).image
    expected = np.arange(48, dtype=np.uint8).reshape(3, 16)[:, :15].reshape(3, 5, 3)
    np.testing.assert_array_equal(image, expected)


def test_a_gray_graph_gets_gray_of_colours_as_training_does(
    simulated: Simulated, opened: Callable[..., Source]
) -> None:
    """Red is 0.299 of white."""
    simulated.does("os.write(fd, (bytes([255, 0, 0]) * 5 + b'-') * 3)\nsignal.pause()")
    source = opened("gst:anything ?size=5x3", GRAY)
    np.testing.assert_array_equal(wait_for(source, source.take_new).image, np.full((3, 5, 1), 76, np.uint8))


def test_a_frame_of_another_size_is_scaled_as_a_picture_file_is(
    simulated: Simulated, opened: Callable[..., Source], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    (tmp_path / "pixels").write_bytes(pixels.tobytes())
    Image.fromarray(pixels).save(tmp_path / "p.png")
    simulated.does(f"os.write(fd, open('{tmp_path}/pixels', 'rb').read())\nsignal.pause()")
    source = opened("gst:anything ?size=20x12")
    np.testing.assert_array_equal(wait_for(source, source.take_new).image, load_image(tmp_path / "p.png", RGB))


def test_the_latest_frame_wins_however_long_nobody_asks(simulated: Simulated, opened: Callable[..., Source]) -> None:
    """250 frames of 0.9 MB go through while this side does nothing: the child is never held up."""
    simulated.does(
        "for value in range(250):\n"
        "    data = memoryview(bytes([value]) * 921600)\n"
        "    while data:\n"
        "        data = data[os.write(fd, data):]\n"
        "tell()\nsignal.pause()"
    )
    source = opened("gst:anything ?size=640x480")
    simulated.wait_until_told()
    found = wait_for(source, lambda: (image := source.newest()) and (image if (image.image == 249).all() else None))
    assert source.newest() is found
    assert source.take_new() is None


def test_each_frame_is_handed_out_once_and_stays_the_newest(
    simulated: Simulated, opened: Callable[..., Source]
) -> None:
    simulated.does("frame(1)\nsignal.sigwait([signal.SIGUSR1])\nframe(2)\nsignal.pause()")
    simulated.program.write_text(
        simulated.program.read_text().replace("fd = int", "signal.pthread_sigmask(0, [signal.SIGUSR1])\nfd = int")
    )
    source = opened("gst:anything ?size=5x3")
    before_ns = time.monotonic_ns()
    first = wait_for(source, source.take_new)
    assert before_ns < first.captured_ns < time.monotonic_ns()
    assert source.take_new() is None
    assert source.newest() is first
    os.kill(simulated.pids()[0], signal.SIGUSR1)
    second = wait_for(source, source.take_new)
    assert (second.image == 2).all()
    assert second.captured_ns > first.captured_ns
    assert (first.image == 1).all(), "an image that was handed out stays as it is"


def test_the_agents_poller_wakes_for_a_frame_and_rests_after_it(
    simulated: Simulated, opened: Callable[..., Source]
) -> None:
    simulated.does("frame(1)\nsignal.pause()")
    source = opened("gst:anything ?size=5x3")
    poller = zmq.Poller()
    poller.register(source.fileno(), zmq.POLLIN)
    assert poller.poll(30_000)
    source.pump()
    assert source.take_new() is not None
    assert poller.poll(0) == []


def test_half_a_frame_of_a_child_that_died_shifts_nothing(
    simulated: Simulated, opened: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_gst, "FIRST_PAUSE_NS", 1)
    simulated.does("frame(run)\nframe(99, 30)\nsys.exit(1) if run == 1 else signal.pause()")
    source = opened("gst:anything ?size=5x3")
    for value in (1, 2):
        assert (wait_for(source, source.take_new).image == value).all()


def test_the_first_error_is_the_problem_until_frames_come_again(
    simulated: Simulated, opened: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gst-launch prints it; what NVIDIA's elements print to standard output is no part of a frame."""
    monkeypatch.setattr(source_gst, "FIRST_PAUSE_NS", 300_000_000)
    simulated.does(
        "print('GST_ARGUS: Creating output stream', flush=True)\n"
        "if run == 1:\n"
        "    sys.stderr.write('ERROR: from element v4l2src0: Cannot\\tidentify \\x1b device\\n')\n"
        "    sys.stderr.write('Failed to set pipeline to PAUSED.\\n')\n"
        "    sys.exit(1)\n"
        "frame(7)\nsignal.pause()"
    )
    source = opened("gst:anything ?size=5x3")
    said = wait_for(source, lambda: problem_of(source))
    assert said == "ERROR: from element v4l2src0: Cannot identify \\x1b device; trying again"
    assert (wait_for(source, source.take_new).image == 7).all()
    source.pump()  # the frame may have come after the last turn had looked
    assert source.problem == ""


NOT_LINKED = (
    "print('ERROR: from element /GstPipeline:pipeline0/GstAviDemux:avidemux0: Internal data stream error.\\n'\n"
    "      'Additional debug info:\\n../gst/avi/gstavidemux.c(5804): loop (): /avidemux0:\\n'\n"
    "      'streaming stopped, reason not-linked (-1)', file=sys.stderr)\n"
    "sys.exit(1)"
)


def test_a_decoder_with_a_jetsons_own_memory_costs_no_pause_and_is_remembered(
    simulated: Simulated, opened: Callable[..., Source]
) -> None:
    simulated.does(f"if 'nvvidconv' in sys.argv:\n    frame(run)\n    sys.exit(0)\n{NOT_LINKED}")
    start_s = time.monotonic()
    source = opened("gst:anything ?size=5x3")
    assert (wait_for(source, source.take_new).image == 2).all()
    assert (wait_for(source, source.take_new).image == 3).all(), "the way that works comes first now"
    print(f"two starts and a pause of one second: {time.monotonic() - start_s:.1f} s")


def test_a_stream_that_can_never_start_says_why_and_what_helps_and_waits_long(
    simulated: Simulated, opened: Callable[..., Source]
) -> None:
    missing = "print('WARNING: erroneous pipeline: no element \"nvvidconv\"')\n    sys.exit(1)"
    simulated.does(f"if 'nvvidconv' in sys.argv:\n    {missing}\n{NOT_LINKED}")
    source = opened("gst:anything ?size=5x3")
    said = wait_for(source, lambda: problem_of(source))
    assert said.startswith(
        "cannot start: ERROR: from element /GstPipeline:pipeline0/GstAviDemux:avidemux0: Internal data stream error "
        "(streaming stopped, reason not-linked (-1)): its elements do not fit together"
    )
    assert len(simulated.pids()) == 2
    assert isinstance(source, source_gst.GstSource)
    assert source._pause_ns == source_gst.LONGEST_PAUSE_NS


@pytest.mark.parametrize(
    "body",
    [
        "print('(Argus) Error FileOperationFailed: Connecting to nvargus-daemon failed', flush=True)\nsys.exit(0)",
        "print('(Argus) Error FileOperationFailed: Connecting to nvargus-daemon failed', flush=True)\nsignal.pause()",
    ],
    ids=["ends", "hangs"],
)
def test_a_csi_camera_that_stays_silent_is_lost_to_this_process(
    body: str, simulated: Simulated, opened: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket of the camera service that a systemd unit sees is that of the agent's start."""
    monkeypatch.setattr(source_gst, "CSI_SILENCE_NS", 2_000_000_000)
    monkeypatch.setattr(source_gst, "SILENCE_NS", 500_000_000)
    simulated.does(body)
    source = opened("gst:csi")
    with pytest.raises(SourceLostError, match=r"silent \(.*Connecting to nvargus-daemon failed; trying again\)"):
        wait_for(source, source.take_new)


@pytest.mark.parametrize("text", ["gst:csi", "gst:v4l2"])
def test_a_csi_camera_that_cannot_start_is_not_lost_nor_is_any_other(
    text: str, simulated: Simulated, opened: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new process would meet the same."""
    simulated.does("print('WARNING: erroneous pipeline: no element \"nvarguscamerasrc\"')\nsys.exit(1)")
    source = opened(text)
    wait_for(source, lambda: problem_of(source))
    monkeypatch.setattr(source_gst, "CSI_SILENCE_NS", 1)
    source.pump()
    assert "no element" in source.problem


def test_pauses_double_from_one_second_to_thirty() -> None:
    pauses_s, pause_ns = [], 0
    for _ in range(7):
        pause_ns = next_pause_ns(pause_ns)
        pauses_s.append(pause_ns / 1e9)
    assert pauses_s == [1, 2, 4, 8, 16, 30, 30]


def test_a_child_that_dies_at_once_is_started_anew_after_one_second_and_then_two(
    simulated: Simulated, opened: Callable[..., Source]
) -> None:
    simulated.does("sys.exit(3)")
    start_s = time.monotonic()
    source = opened("gst:anything")
    starts_s: list[float] = []

    def third() -> float | None:
        if len(simulated.pids()) > len(starts_s):
            starts_s.append(time.monotonic() - start_s)
        return starts_s[2] if len(starts_s) == 3 else None

    wait_for(source, third, 20.0)
    assert starts_s[1] >= 1.0
    assert starts_s[2] >= 2.9  # the second one may be seen late
    assert source.problem == "gst-launch-1.0 ended with exit code 3; trying again"


def test_a_child_that_hangs_is_killed_and_its_last_image_is_no_answer(
    simulated: Simulated, opened: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera that froze must not be answered for with an old picture."""
    monkeypatch.setattr(source_gst, "SILENCE_NS", 1_000_000_000)
    monkeypatch.setattr(source_gst, "FIRST_PAUSE_NS", 1_500_000_000)
    simulated.does("signal.signal(signal.SIGINT, signal.SIG_IGN)\nif run == 1: frame(1)\nsignal.pause()")
    source = opened("gst:anything ?size=5x3")
    assert wait_for(source, source.newest) is not None
    assert wait_for(source, lambda: problem_of(source)) == "no frame for 1 s"
    wait_for_death(simulated.pids()[0])
    assert source.newest() is None
    wait_for(source, lambda: True if len(simulated.pids()) == 2 else None)


def test_a_child_that_does_not_want_to_end_is_ended(
    simulated: Simulated, opened: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_gst, "_SHUTDOWN_TIMEOUT_S", 0.2)
    simulated.does("signal.signal(signal.SIGINT, signal.SIG_IGN)\nframe(1)\nsignal.pause()")
    source = opened("gst:anything ?size=5x3")
    wait_for(source, source.take_new)
    start_s = time.monotonic()
    source.close()
    assert time.monotonic() - start_s < 5.0
    wait_for_death(simulated.pids()[0])


def test_a_child_is_asked_first(simulated: Simulated, opened: Callable[..., Source]) -> None:
    """Killed outright, a Jetson's camera element leaves the camera service stuck."""
    told = "try:\n    frame(1)\n    signal.pause()\nexcept KeyboardInterrupt:\n"
    simulated.does(f"{told}    open('{simulated.folder}/asked', 'w')")
    source = opened("gst:anything ?size=5x3")
    wait_for(source, source.take_new)
    source.close()
    assert (simulated.folder / "asked").exists()


def test_a_program_that_cannot_be_started_is_a_problem_and_no_crash(
    simulated: Simulated, opened: Callable[..., Source]
) -> None:
    simulated.program.write_bytes(b"\x7fELF of another machine")
    simulated.program.chmod(0o755)
    source = opened("gst:anything")
    assert "cannot be started: Exec format error; trying again" in source.problem
    assert source.newest() is None


def test_twenty_runs_leave_no_descriptor_behind(
    simulated: Simulated, opened: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_gst, "FIRST_PAUSE_NS", 1)
    simulated.does("frame(run)")
    before = len(list(Path("/proc/self/fd").iterdir()))
    source = opened("gst:anything ?size=5x3")
    wait_for(source, lambda: True if len(simulated.pids()) >= 20 else None)
    source.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


READER = """
import sys
from pathlib import Path
from devit_contract.artefacts.manifest import Preprocess
from devit_edge_agent.sources.open import open_source
source = open_source(sys.argv[1], Preprocess(height=3, width=5, colour="rgb"), base=Path())
import select
while source.take_new() is None:
    select.select([source.fileno()], [], [], 0.2)
    source.pump()
print("reading", flush=True)
while True:
    select.select([source.fileno()], [], [], 0.2)
    source.pump()
"""


def kill_a_reader(text: str) -> list[int]:
    """Start a process that reads a source, kill it outright, and give the processes that it had started."""
    reader = subprocess.Popen([sys.executable, "-c", READER, text], stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        children = children_of(reader.pid)
    finally:
        reader.kill()
        reader.wait(10)
        if reader.stdout is not None:
            reader.stdout.close()
    assert children
    return children


def test_the_child_does_not_outlive_an_agent_that_was_killed(simulated: Simulated) -> None:
    simulated.does("while True: frame(1)")
    for pid in kill_a_reader("gst:anything ?size=5x3"):
        wait_for_death(pid)


# The real GStreamer.

real = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """One second of blue, 64 x 48."""
    path = tmp_path / "with space" / "clip.avi"
    path.parent.mkdir()
    pipeline = "videotestsrc num-buffers=20 pattern=blue ! video/x-raw,width=64,height=48,framerate=20/1"
    words = [*f"{pipeline} ! jpegenc ! avimux !".split(), "filesink", f"location={path}"]
    subprocess.run(["gst-launch-1.0", "-q", *words], check=True, timeout=60)
    return path


class TestRealGStreamer:
    pytestmark = real

    @pytest.mark.parametrize("size", ["5x3", "8x4", "33x17", "640x480"])
    def test_a_colour_arrives_exactly(self, size: str, opened: Callable[..., Source]) -> None:
        colour = "videotestsrc is-live=true pattern=solid-color foreground-color=0xff3366cc ! video/x-raw,format=RGB"
        source = opened(f"gst:{colour} ?size={size}")
        assert (wait_for(source, source.take_new).image == (0x33, 0x66, 0xCC)).all()

    @pytest.mark.parametrize(("pattern", "level"), [("white", 255), ("black", 0)])
    def test_gray_levels_arrive_at_full_range(self, pattern: str, level: int, opened: Callable[..., Source]) -> None:
        source = opened(f"gst:videotestsrc is-live=true pattern={pattern} ?size=33x17", GRAY)
        assert np.abs(wait_for(source, source.take_new).image.astype(int) - level).max() <= 1

    @pytest.mark.parametrize("width", [69, 70, 71, 72])
    def test_bars_stand_upright_at_any_width(self, width: int, opened: Callable[..., Source]) -> None:
        """SMPTE's bars: gray, yellow, cyan, green, magenta, red, blue; a wrong stride would let them lean."""
        spec = Preprocess(height=30, width=width, colour="rgb")
        source = opened(f"gst:videotestsrc is-live=true pattern=smpte ! video/x-raw,format=RGB ?size={width}x30", spec)
        image = wait_for(source, source.take_new).image
        bars = [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1)]
        for index, bar in enumerate(bars):
            column = image[:19, round((index + 0.5) * width / 7)] > 96
            np.testing.assert_array_equal(column, np.tile(np.array(bar, bool), (19, 1)), str(index))

    def test_a_file_plays_at_its_own_speed_and_starts_again(self, clip: Path, opened: Callable[..., Source]) -> None:
        before = set(children_of(os.getpid()))
        source = opened("gst:file?path=clip.avi&size=64x48", base=clip.parent)
        first_child = set(children_of(os.getpid())) - before
        start_s, frames = time.monotonic(), 0

        def plays_again() -> bool | None:
            nonlocal frames
            captured = source.take_new()
            if captured is not None:
                frames += 1
                red, green, blue = captured.image[1, 2].astype(int)
                assert blue > 200
                assert max(red, green) < 60
            return True if frames >= 25 else None

        wait_for(source, plays_again)
        assert time.monotonic() - start_s >= 1.0, "20 frames a second"
        assert not first_child & set(children_of(os.getpid()))
        assert source.problem == ""

    def test_after_a_second_of_other_work_the_image_is_fresh(self, opened: Callable[..., Source]) -> None:
        """Not the frame that was under way when the work began."""
        source = opened("gst:videotestsrc is-live=true ! video/x-raw,width=640,height=480,framerate=50/1")
        wait_for(source, source.take_new)
        ages_s = []
        for _ in range(3):
            begun_s = time.monotonic()
            while time.monotonic() - begun_s < 1.0:
                np.linalg.norm(np.ones(1000))
            source.pump()
            captured = source.take_new()
            assert captured is not None
            ages_s.append(time.monotonic() - captured.captured_ns / 1e9)
        print(f"age after 1 s of work: {[f'{age * 1000:.0f} ms' for age in ages_s]}")
        assert max(ages_s) < 0.5

    def test_a_child_that_is_killed_comes_back(self, opened: Callable[..., Source]) -> None:
        before = set(children_of(os.getpid()))
        source = opened("gst:videotestsrc is-live=true ?size=64x48")
        wait_for(source, source.take_new)
        [child] = set(children_of(os.getpid())) - before
        os.kill(child, signal.SIGKILL)
        assert wait_for(source, lambda: problem_of(source)) == "gst-launch-1.0 ended with exit code -9"
        gone_ns = time.monotonic_ns()
        image = wait_for(source, lambda: (new := source.newest()) and (new if new.captured_ns > gone_ns else None))
        assert isinstance(image, Captured)
        source.pump()  # the frame may have come after the last turn had looked
        assert source.problem == ""

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("gst:v4l2?device=/dev/video-none", "Cannot identify device '/dev/video-none'"),
            ("gst:nosuchelement", 'no element "nosuchelement"'),
            ("gst:rtsp?url=rtsp://127.0.0.1:9/cam", "Could not open resource"),
        ],
    )
    def test_what_gstreamer_says_is_the_problem(self, text: str, said: str, opened: Callable[..., Source]) -> None:
        source = opened(text)
        assert said in wait_for(source, lambda: problem_of(source))
        assert source.newest() is None

    def test_gst_launch_does_not_outlive_an_agent_that_was_killed(self) -> None:
        for pid in kill_a_reader("gst:videotestsrc is-live=true ?size=64x48"):
            wait_for_death(pid)

    def test_memory_stays_flat_over_hundreds_of_frames(self, opened: Callable[..., Source]) -> None:
        source = opened("gst:videotestsrc is-live=true ! video/x-raw,width=640,height=480,framerate=200/1")
        frames, resident_mb = 0, []

        def enough() -> bool | None:
            nonlocal frames
            if source.take_new() is not None:
                frames += 1
                if frames in (50, 450):
                    pages = int(Path("/proc/self/statm").read_text().split()[1])
                    resident_mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
            return True if frames >= 450 else None

        wait_for(source, enough, 90.0)
        print(f"resident memory after 50 and 450 frames of 0.9 MB: {resident_mb[0]:.1f}, {resident_mb[1]:.1f} MB")
        assert resident_mb[1] - resident_mb[0] < 8

    def test_a_network_cameras_picture_is_taken_and_its_sound_is_not(self, opened: Callable[..., Source]) -> None:
        server = subprocess.Popen(
            ["/usr/bin/python3", "-c", RTSP_SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            assert server.stderr is not None
            port = server.stdout.readline().strip()
            assert port, server.stderr.read()
            source = opened(f"gst:rtsp?url=rtsp://127.0.0.1:{port}/camera&size=160x120&latency=50")
            red, green, blue = wait_for(source, source.take_new, 60.0).image[1, 2].astype(int)
            assert red > 200
            assert max(green, blue) < 60
        finally:
            server.kill()
            server.communicate(timeout=10)


RTSP_SERVER = """
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( audiotestsrc is-live=true ! mulawenc ! rtppcmupay name=pay0 pt=0 "
    "videotestsrc is-live=true pattern=red ! video/x-raw,format=I420,width=160,height=120,framerate=20/1 "
    "! jpegenc ! rtpjpegpay name=pay1 pt=26 )"
)
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""
