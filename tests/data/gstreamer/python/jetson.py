"""SIMULATED elements of a Jetson: memory:NVMM and a disc. For GStreamer's loader of plugins and Debian's Python.

Pads and ranks are those of NVIDIA's elements; memory:NVMM is plain memory here. Decoder and camera draw a
disc, 6 of 10 parts of the picture's height wide, whatever comes in. The converter makes gray RGBA of its luma.
"""

import math

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, GObject, Gst  # noqa: E402

NVMM = "video/x-raw(memory:NVMM), format=NV12, width=[1,8192], height=[1,8192], framerate=[0/1,1000/1]"
SYSTEM = "video/x-raw, format={I420, UYVY, YUY2, NV12, NV16, NV24, GRAY8, BGRx, RGBA, Y42B}"


def pad(name, way, caps):
    return Gst.PadTemplate.new(name, way, Gst.PadPresence.ALWAYS, Gst.Caps.from_string(caps))


def disc(width, height):
    """NV12, a disc of 200 on 40."""
    luma, radius = bytearray([40]) * (width * height), 0.3 * height
    for y in range(height):
        half = radius**2 - (y + 0.5 - height / 2) ** 2
        if half > 0:
            left, right = round(width / 2 - math.sqrt(half)), round(width / 2 + math.sqrt(half))
            luma[y * width + left : y * width + right] = bytes([200]) * (right - left)
    return bytes(luma) + bytes([128]) * (width * height // 2)


class OneWay:
    """One pad in, one out; caps and buffers are changed on their way. No base of GObject's: pads would be lost."""

    def __init__(self):
        Gst.Element.__init__(self)
        self.entry = Gst.Pad.new_from_template(self.get_pad_template("sink"), "sink")
        self.exit = Gst.Pad.new_from_template(self.get_pad_template("src"), "src")
        self.entry.set_chain_function_full(self.chain)
        self.entry.set_event_function_full(self.event)
        self.add_pad(self.entry)
        self.add_pad(self.exit)

    def event(self, pad, parent, event):
        if event.type != Gst.EventType.CAPS:
            return self.exit.push_event(event)
        structure = event.parse_caps().get_structure(0)
        self.size = structure.get_int("width")[1], structure.get_int("height")[1]
        caps = Gst.Caps.from_string(f"{self.MADE}, width={self.size[0]}, height={self.size[1]}, framerate=30/1")
        return self.exit.push_event(Gst.Event.new_caps(caps))

    def chain(self, pad, parent, buffer):
        made = Gst.Buffer.new_wrapped(self.make(buffer))
        made.pts, made.duration = buffer.pts, buffer.duration
        return self.exit.push(made)


class Decoder(OneWay, Gst.Element):
    __gstmetadata__ = ("SIMULATED nvv4l2decoder", "Codec/Decoder/Video", "answers memory:NVMM alone", "-")
    __gsttemplates__ = (
        pad("sink", Gst.PadDirection.SINK, "video/x-vp8; image/jpeg"),
        pad("src", Gst.PadDirection.SRC, NVMM),
    )
    MADE = "video/x-raw(memory:NVMM), format=NV12"

    def make(self, buffer):
        return disc(*self.size)


class Converter(OneWay, Gst.Element):
    __gstmetadata__ = ("SIMULATED nvvidconv", "Filter/Converter/Video/Scaler", "out of memory:NVMM", "-")
    __gsttemplates__ = (
        pad("sink", Gst.PadDirection.SINK, f"{NVMM}; {SYSTEM}"),
        pad("src", Gst.PadDirection.SRC, "video/x-raw, format=RGBA, width=[1,8192], height=[1,8192]"),
    )
    MADE = "video/x-raw, format=RGBA"

    def make(self, buffer):
        width, height = self.size
        luma = buffer.extract_dup(0, width * height)
        pixels = bytearray(b"\xff") * (4 * width * height)
        for channel in range(3):
            pixels[channel::4] = luma
        return bytes(pixels)


class Camera(Gst.Element):
    """A disc, 30 times a second; nothing at all if sensor-id is 9."""

    __gstmetadata__ = ("SIMULATED nvarguscamerasrc", "Video/Capture", "a disc", "-")
    __gsttemplates__ = (pad("src", Gst.PadDirection.SRC, NVMM),)
    sensor_id = GObject.Property(type=int, nick="sensor-id", default=0)

    def __init__(self):
        super().__init__()
        self.exit = Gst.Pad.new_from_template(self.get_pad_template("src"), "src")
        self.add_pad(self.exit)
        self.count = 0

    def do_change_state(self, change):
        done = Gst.Element.do_change_state(self, change)
        if change == Gst.StateChange.READY_TO_PAUSED:
            return Gst.StateChangeReturn.NO_PREROLL
        if change == Gst.StateChange.PAUSED_TO_PLAYING:
            caps = self.exit.peer_query_caps(None).fixate()
            structure = caps.get_structure(0)
            self.picture = disc(structure.get_int("width")[1], structure.get_int("height")[1])
            self.exit.push_event(Gst.Event.new_stream_start("camera"))
            self.exit.push_event(Gst.Event.new_caps(caps))
            segment = Gst.Segment()
            segment.init(Gst.Format.TIME)
            self.exit.push_event(Gst.Event.new_segment(segment))
            GLib.timeout_add(33, self.shoot)
        return done

    def shoot(self):
        if self.sensor_id != 9:
            buffer = Gst.Buffer.new_wrapped(self.picture)
            buffer.pts = self.count * Gst.SECOND // 30
            self.exit.push(buffer)
        self.count += 1
        return True


for kind in (Decoder, Converter, Camera):
    GObject.type_register(kind)
