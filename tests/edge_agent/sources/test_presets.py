"""Each preset with the real GStreamer: whatever the decoder, images come, and a circle stays a circle."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.edge_agent.sources.turning import problem_of, wait_for

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import load_image
from devit_edge_agent.sources.gstreamer import GstSource
from devit_edge_agent.sources.pipeline import parse_pipeline
from devit_edge_agent.sources.source import Source

ELEMENTS = Path(__file__).parents[2] / "data" / "gstreamer" / "python"
CROPPED = Preprocess(height=112, width=112, colour="rgb", resize_to=128)
WHOLE = Preprocess(height=96, width=128, colour="rgb")
SQUARE = Preprocess(height=96, width=96, colour="rgb")
WIDTH, HEIGHT = 1280, 720

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def disc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 1280 x 720 with a disc 432 wide, and clips of it in several forms."""
    folder = tmp_path_factory.mktemp("disc")
    y, x = np.indices((HEIGHT, WIDTH))
    pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    pixels[(x + 0.5 - WIDTH / 2) ** 2 + (y + 0.5 - HEIGHT / 2) ** 2 < (0.3 * HEIGHT) ** 2] = 200
    Image.fromarray(pixels).save(folder / "disc.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(folder / "tall.png")
    for name, picture, coding in (
        ("disc.avi", "disc.png", "jpegenc quality=95 ! avimux"),
        ("disc.webm", "disc.png", "vp8enc deadline=1 target-bitrate=4000000 ! webmmux"),
        ("tall.avi", "tall.png", "jpegenc quality=95 ! avimux"),
        # Pixels twice as wide as high: what is shown is 1280 wide.
        (
            "anamorphic.mkv",
            "disc.png",
            "videoscale add-borders=false ! video/x-raw,width=640,height=720,pixel-aspect-ratio=2/1 "
            "! jpegenc ! matroskamux",
        ),
    ):
        source = f"multifilesrc location={folder}/{picture} num-buffers=20 caps=image/png,framerate=20/1 ! pngdec"
        run(f"{source} ! videoconvert ! {coding} ! filesink location={folder}/{name}")
    return folder


def picture_source(disc: Path) -> str:
    return f"multifilesrc location={disc}/disc.png loop=true caps=image/png,framerate=20/1 ! pngdec"


def run(pipeline: str) -> None:
    subprocess.run(["gst-launch-1.0", "-q", *pipeline.split()], check=True, timeout=60)


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put SIMULATED elements of a Jetson beside GStreamer's own."""

    def install(*names: str) -> None:
        folder = tmp_path / "plugins" / "python"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("jetson", *names):
            shutil.copy(ELEMENTS / f"{name}.py", folder)
        monkeypatch.setenv("GST_PLUGIN_PATH", str(folder.parent))
        monkeypatch.setenv("GST_REGISTRY", str(tmp_path / "registry"))
        for name in names:
            found = subprocess.run(["gst-inspect-1.0", "--exists", name], timeout=60, check=False)
            assert found.returncode == 0, "apt-get install gstreamer1.0-python3-plugin-loader"

    return install


def box(image: UInt8Array) -> tuple[int, int]:
    """Width and height of what is bright."""
    bright = image[..., 0] > 120
    return int(np.ptp(np.flatnonzero(bright.any(0)))) + 1, int(np.ptp(np.flatnonzero(bright.any(1)))) + 1


def assert_round(image: UInt8Array, height: float) -> None:
    """The disc is as high as expected, and as wide."""
    found = box(image)
    assert abs(found[0] - found[1]) <= 1, found
    assert abs(found[1] - height) <= 2, found


# Proportions.


@pytest.mark.parametrize("spec", [CROPPED, WHOLE, SQUARE])
@pytest.mark.parametrize("name", ["disc.avi", "disc.webm", "tall.avi", "anamorphic.mkv"])
def test_a_circle_of_a_file_stays_a_circle(
    name: str, spec: Preprocess, disc: Path, opened: Callable[..., Source]
) -> None:
    """Whatever the shape of its source, its pixels and the model's input."""
    source = opened(f"gst:file?path={name}", spec, disc)
    shorter = HEIGHT if spec.resize_to or name != "tall.avi" else HEIGHT / spec.width * spec.height
    assert_round(wait_for(source, source.take_new).image, 0.6 * HEIGHT / shorter * (spec.resize_to or spec.height))


@pytest.mark.parametrize("name", ["disc", "tall"])
def test_a_model_that_crops_sees_as_much_of_a_clip_as_of_a_picture(
    name: str, disc: Path, opened: Callable[..., Source]
) -> None:
    source = opened(f"gst:file?path={name}.avi", CROPPED, disc)
    image = wait_for(source, source.take_new).image
    assert np.abs(image.astype(int) - load_image(disc / f"{name}.png", CROPPED)).mean() < 3


@pytest.mark.parametrize("size", ["640x480", "480x640", "1280x720", "300x300"])
def test_a_size_of_another_shape_cuts_and_does_not_squash(size: str, disc: Path, opened: Callable[..., Source]) -> None:
    width, height = map(int, size.split("x"))
    spec = Preprocess(height=height, width=width, colour="rgb")
    source = opened(f"gst:file?path=disc.avi&size={size}", spec, disc)
    assert_round(wait_for(source, source.take_new).image, 0.6 * max(height, width * HEIGHT / WIDTH))


def test_a_circle_of_any_other_pipeline_stays_a_circle(disc: Path, opened: Callable[..., Source]) -> None:
    source = opened(f"gst:multifilesrc location={disc}/disc.png caps=image/png,framerate=20/1 ! pngdec", CROPPED)
    assert_round(wait_for(source, source.take_new).image, 0.6 * 128)


@pytest.mark.parametrize("coding", ["", "! jpegenc"])
def test_a_circle_of_a_usb_camera_stays_a_circle(coding: str, disc: Path) -> None:
    """SIMULATED in front of the real caps: no camera is here."""
    pipeline = parse_pipeline(f"v4l2?size={WIDTH}x{HEIGHT}", base=Path())
    camera = f"{picture_source(disc)} ! videoconvert {coding}"
    source = GstSource(replace(pipeline, words=(*camera.split(), *pipeline.words[2:])), CROPPED)
    try:
        assert_round(wait_for(source, source.take_new).image, 0.6 * 128)
    finally:
        source.close()


def test_a_circle_of_a_csi_camera_stays_a_circle(jetson: Callable[..., None], opened: Callable[..., Source]) -> None:
    jetson("nvarguscamerasrc", "nvvidconv")
    source = opened("gst:csi", CROPPED)
    assert_round(wait_for(source, source.take_new).image, 0.6 * 128)


RTSP_SERVER = """
import sys, gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f"( multifilesrc location={sys.argv[1]} loop=true caps=image/png,framerate=20/1 ! pngdec ! videoconvert "
    "! video/x-raw,format=I420 ! jpegenc quality=95 ! rtpjpegpay name=pay0 pt=26 )"
)
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@pytest.fixture
def network_camera(disc: Path) -> Iterator[str]:
    command = ["/usr/bin/python3", "-c", RTSP_SERVER, str(disc / "disc.png")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stderr is not None
        port = server.stdout.readline().strip()
        assert port, server.stderr.read()
        yield f"rtsp://127.0.0.1:{port}/camera"
    finally:
        server.kill()
        server.communicate(timeout=10)


def test_a_circle_of_a_network_camera_stays_a_circle(network_camera: str, opened: Callable[..., Source]) -> None:
    source = opened(f"gst:rtsp?latency=50&url={network_camera}", CROPPED)
    assert_round(wait_for(source, source.take_new, 60.0).image, 0.6 * 128)


# Decoders of a Jetson.


@pytest.mark.parametrize("name", ["disc.avi", "disc.webm"])
def test_frames_of_a_decoder_that_leaves_them_in_nvmm_come(
    name: str, disc: Path, jetson: Callable[..., None], opened: Callable[..., Source]
) -> None:
    jetson("nvv4l2decoder", "nvvidconv")
    source = opened(f"gst:file?path={name}", CROPPED, disc)
    image = wait_for(source, source.take_new).image
    assert_round(image, 0.6 * 128)
    assert source.problem == ""


def test_frames_of_a_jpeg_camera_come_from_such_a_decoder_too(jetson: Callable[..., None], disc: Path) -> None:
    jetson("nvv4l2decoder", "nvvidconv")
    pipeline = parse_pipeline(f"v4l2?size={WIDTH}x{HEIGHT}", base=Path())
    camera = f"{picture_source(disc)} ! jpegenc".split()
    ways = (*camera, *pipeline.words[2:]), (*camera, *pipeline.words_for_nvmm[2:])
    source = GstSource(replace(pipeline, words=ways[0], words_for_nvmm=ways[1]), CROPPED)
    try:
        assert_round(wait_for(source, source.take_new).image, 0.6 * 128)
    finally:
        source.close()


def test_frames_of_a_network_camera_come_from_such_a_decoder_too(
    network_camera: str, jetson: Callable[..., None], opened: Callable[..., Source]
) -> None:
    jetson("nvv4l2decoder", "nvvidconv")
    source = opened(f"gst:rtsp?latency=50&url={network_camera}", CROPPED)
    assert_round(wait_for(source, source.take_new, 60.0).image, 0.6 * 128)


def test_a_decoder_of_software_works_where_the_converter_is_there(
    disc: Path, jetson: Callable[..., None], opened: Callable[..., Source]
) -> None:
    jetson("nvvidconv")
    source = opened("gst:file?path=disc.avi", CROPPED, disc)
    assert_round(wait_for(source, source.take_new).image, 0.6 * 128)


def test_where_no_image_can_come_element_reason_and_cure_are_named(
    disc: Path, jetson: Callable[..., None], opened: Callable[..., Source]
) -> None:
    jetson("nvv4l2decoder")
    source = opened("gst:file?path=disc.webm", CROPPED, disc)
    said = wait_for(source, lambda: problem_of(source))
    assert said.startswith("cannot start: ERROR: from element /")
    assert "matroskademux0: Internal data stream error (streaming stopped, reason not-linked (-1))" in said
    assert "nvvidconv: apt-get install" in said
    assert source.newest() is None


# What GStreamer says.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gst:nosuchelement", 'erroneous pipeline: no element "nosuchelement": install the package'),
        ("gst:videotestsrc pattern=purple", 'could not set property "pattern"'),
        ("gst:videotestsrc ! video/x-raw,width=0", "correct"),
        ("gst:file?path=text.mp4", "text file"),
    ],
)
def test_a_stream_that_can_never_start_is_told_apart(
    text: str, said: str, tmp_path: Path, opened: Callable[..., Source]
) -> None:
    (tmp_path / "text.mp4").write_text("no video\n" * 1000)
    source = opened(text, base=tmp_path)
    found = wait_for(source, lambda: problem_of(source))
    assert found.startswith("cannot start: ")
    assert said in found


def test_one_that_may_come_back_is_tried_again_and_gives_gstreamers_reason(opened: Callable[..., Source]) -> None:
    source = opened("gst:rtsp?url=rtsp://127.0.0.1:9/cam")
    found = wait_for(source, lambda: problem_of(source))
    assert "rtspsrc0: Could not open resource" in found
    assert "(Failed to connect." in found
    assert found.endswith("; trying again")


def test_messages_are_read_in_english_whatever_the_users_language(
    monkeypatch: pytest.MonkeyPatch, opened: Callable[..., Source]
) -> None:
    monkeypatch.setenv("LANGUAGE", "de")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    source = opened("gst:nosuchelement")
    assert "erroneous pipeline" in wait_for(source, lambda: problem_of(source))


class Camera:
    """A network camera that wants a password, by hand: what rtspsrc asks it for, and as whom."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.asked: list[tuple[str, str]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                with self._socket.accept()[0] as peer, peer.makefile("rwb") as stream:
                    self._answer(stream)  # type: ignore[arg-type]

    def _answer(self, stream: socket.SocketIO) -> None:
        while line := stream.readline().decode():
            fields = dict(part.decode().strip().split(": ", 1) for part in iter(stream.readline, b"\r\n"))
            method, url = line.split()[:2]
            who = fields.get("Authorization", "").removeprefix("Basic ")
            self.asked.append((url, base64.b64decode(who).decode()))
            status = "401 Unauthorized" if method == "DESCRIBE" else "200 OK"
            extra = (
                'WWW-Authenticate: Basic realm="x"\r\n'
                if method == "DESCRIBE"
                else "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            )
            stream.write(f"RTSP/1.0 {status}\r\nCSeq: {fields['CSeq']}\r\n{extra}\r\n".encode())
            stream.flush()


@pytest.mark.parametrize(
    ("user", "path", "password"),
    [
        ("viewer:p%40ss", "live", "viewer:p@ss"),
        ("viewer:p+ss%21", "cam/realmonitor?channel=1&subtype=0", "viewer:p+ss!"),
        ("viewer:wow!it's", "a;b=1?c=%26&size=4", "viewer:wow!it's"),
    ],
)
def test_a_camera_is_asked_for_the_url_that_was_written(
    user: str, path: str, password: str, opened: Callable[..., Source]
) -> None:
    """Through the words, gst-launch-1.0 and rtspsrc, to a real socket."""
    camera = Camera()
    try:
        source = opened(f"gst:rtsp?url=rtsp://{user}@127.0.0.1:{camera.port}/{path}")
        url = f"rtsp://127.0.0.1:{camera.port}/{path}"
        wait_for(source, lambda: True if (url, password) in camera.asked else None)
    finally:
        camera.close()
