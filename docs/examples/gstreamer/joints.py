"""Joints in a GStreamer pipeline: SOURCE -> appsink -> MeshEstimator -> appsrc -> SINK, as metadata or JSON lines.

    python joints.py --source "v4l2src" --sink "videoconvert ! autovideosink" --jsonl joints.jsonl

Every buffer goes on with its memory, timestamps and metadata. Each person adds a GstVideoRegionOfInterestMeta `person`,
whose parameter `metro-edge` holds the joints; elements after the bridge read it there. Frames are read where they lie
(with python3-gst-1.0; without it PyGObject copies them once).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

import gi

for _name in ("Gst", "GstApp", "GstVideo"):
    gi.require_version(_name, "1.0")
from gi.repository import Gst, GstApp, GstVideo  # noqa: E402, F401  (GstApp gives appsink and appsrc their methods)

from metro_edge import Body, HostFrame, MeshEstimator, UserError  # noqa: E402

FORMATS = {"BGR": "bgr", "RGB": "rgb", "GRAY8": "grey", "NV12": "nv12", "YUY2": "yuyv"}
CAPS = f"video/x-raw,format=(string){{{','.join(FORMATS)}}}"  # without a feature: memory of the CPU
NVMM_TO_CPU = ("nvvidconv", "nvvideoconvert")  # of JetPack, of DeepStream
PERSON, PARAMETER = "person", "metro-edge"
POLL_NS = 50 * Gst.MSECOND
MAX_QUEUED = 2  # frames before the sink, beyond which the bridge waits for it


def source_for_cpu(source: str) -> str:
    """Return the source's description, with NVIDIA's converter behind it where it gives memory of the GPU.

    Raises UserError where that converter is not installed.
    """
    if "memory:NVMM" not in source:
        return source
    Gst.init(None)
    for name in NVMM_TO_CPU:
        if Gst.ElementFactory.find(name) is not None:
            return f"{source} ! {name} ! video/x-raw,format=NV12"
    raise UserError(
        f"the source gives memory:NVMM, and none of {' and '.join(NVMM_TO_CPU)} is here to bring it to the CPU: "
        "they come with JetPack and DeepStream. Elsewhere leave (memory:NVMM) out of the caps"
    )


def yuv_rule(info: Any) -> str:
    """Return HostFrame's name of the colours of a GstVideoInfo; raises UserError for a matrix that it does not know."""
    names = {GstVideo.VideoColorMatrix.BT601: "bt601", GstVideo.VideoColorMatrix.BT709: "bt709"}
    matrix, range_ = info.colorimetry.matrix, info.colorimetry.range
    if matrix not in names:
        raise UserError(f"colours by {matrix.value_nick} are not supported: put videoconvert before the bridge")
    return names[matrix] + ("-full" if range_ == getattr(GstVideo.VideoColorRange, "0_255") else "")


@contextmanager
def host_frame(buffer: Any, info: Any) -> Iterator[HostFrame]:
    """Map a Gst.Buffer and yield its picture; views of it are valid inside the block alone."""
    meta = GstVideo.buffer_get_video_meta(buffer)  # where an element chose other strides than the caps imply
    strides, offsets = (meta.stride, meta.offset) if meta else (info.stride, info.offset)
    name = FORMATS[GstVideo.VideoFormat.to_string(info.finfo.format)]
    second = {"uv_pitch": strides[1], "uv_offset": offsets[1] - offsets[0]} if name == "nv12" else {}
    yuv = yuv_rule(info) if name in ("nv12", "yuyv") else "bt601"
    with buffer.map(Gst.MapFlags.READ) as mapped:
        data = memoryview(mapped.data)[offsets[0] :]
        yield HostFrame(data, info.width, info.height, name, pitch=strides[0], yuv=yuv, **second)


def add_bodies(buffer: Any, bodies: Sequence[Body], frame_wh: tuple[int, int]) -> None:
    """Attach one region of interest a person (its id counts from 0), with joints in metres and px as its parameter.

    The region is the part of the person's box that lies in the frame.
    """
    for number, body in enumerate(bodies):
        ends = [(float(at), float(at + size)) for at, size in zip(body.box[:2], body.box[2:], strict=True)]
        (x, right), (y, bottom) = (
            [round(min(max(end, 0.0), side)) for end in pair] for pair, side in zip(ends, frame_wh, strict=True)
        )
        width, height = right - x, bottom - y
        meta = GstVideo.buffer_add_video_region_of_interest_meta(buffer, PERSON, x, y, width, height)
        meta.id = number
        fields = {"joints-m": body.joints, "joints-px": body.joints_px, "translation-m": body.translation}
        arrays = [f"{key}=(float)< {', '.join(f'{v:.7g}' for v in values.ravel())} >" for key, values in fields.items()]
        text = ", ".join([PARAMETER, f"joint-set=(string){body.joint_set}", *arrays])
        meta.add_param(Gst.Structure.new_from_string(text))


class Bridge:
    """A pipeline that reads frames, one that takes them on, and the estimator between them.

    Args:
        source, sink: descriptions as gst-launch-1.0 takes them.
        estimate: called with a HostFrame, returns the bodies.
        jsonl: where one line a frame goes: `pts_ns` (null without one), `bodies`; see Body.to_dict.

    Raises:
        UserError: a description that GStreamer does not take, or a source of GPU memory without its converter.
    """

    def __init__(
        self, source: str, sink: str, estimate: Callable[[HostFrame], Sequence[Body]], jsonl: TextIO | None = None
    ) -> None:
        self.estimate, self.jsonl, self.frames = estimate, jsonl, 0
        # Two pipelines: in one, the sink would wait for a first buffer that the appsink gives only once it plays.
        self.reading = parsed(f"{source_for_cpu(source)} ! appsink name=frames caps={CAPS} sync=false max-buffers=2")
        self.writing = parsed(f"appsrc name=frames format=time ! {sink}")
        self.appsink, self.appsrc = (p.get_by_name("frames") for p in (self.reading, self.writing))

    def run(self) -> int:
        """Carry all frames through; returns how many. Raises UserError for what an element reports."""
        try:
            live = self.reading.set_state(Gst.State.PLAYING) == Gst.StateChangeReturn.NO_PREROLL
            self.appsrc.set_property("is-live", live)
            while (sample := self._next()) is not None:
                if not self.frames:
                    self._start_writing()
                self._carry(sample)
            self.appsrc.end_of_stream()
            while self.frames and not self._ended(self.writing, POLL_NS):
                pass
        finally:
            for pipeline in (self.reading, self.writing):
                pipeline.set_state(Gst.State.NULL)
        return self.frames

    def _next(self) -> Any:
        while True:
            sample = self.appsink.try_pull_sample(POLL_NS)
            if sample is not None:
                return sample
            if self._ended(self.reading) or self.appsink.is_eos():
                return None

    def _ended(self, pipeline: Any, wait_ns: int = 0) -> bool:
        """Whether the pipeline's end comes within `wait_ns`; raises UserError for an error of one of its elements."""
        message = pipeline.get_bus().timed_pop_filtered(wait_ns, Gst.MessageType.ERROR | Gst.MessageType.EOS)
        if message is None or message.type == Gst.MessageType.EOS:
            return message is not None
        error, details = message.parse_error()
        raise UserError(f"GStreamer, {message.src.get_name()}: {error.message} ({details})")

    def _start_writing(self) -> None:
        """Let the second pipeline play by the clock of the first: timestamps mean the same in both."""
        self.writing.use_clock(self.reading.get_pipeline_clock())
        self.writing.set_start_time(Gst.CLOCK_TIME_NONE)
        self.writing.set_base_time(self.reading.get_base_time())
        self.writing.set_state(Gst.State.PLAYING)

    def _carry(self, sample: Any) -> None:
        buffer, caps = sample.get_buffer(), sample.get_caps()
        info = GstVideo.VideoInfo.new_from_caps(caps)
        with host_frame(buffer, info) as frame:
            bodies = self.estimate(frame)
        # Another buffer of the same memory: metadata may be added only to one that nobody else holds.
        flags = Gst.BufferCopyFlags
        marked = buffer.copy_region(flags.FLAGS | flags.TIMESTAMPS | flags.META | flags.MEMORY, 0, buffer.get_size())
        add_bodies(marked, bodies, (info.width, info.height))
        if self.jsonl is not None:
            pts = None if buffer.pts == Gst.CLOCK_TIME_NONE else int(buffer.pts)
            print(json.dumps({"pts_ns": pts, "bodies": [b.to_dict() for b in bodies]}), file=self.jsonl, flush=True)
        while self.appsrc.get_property("current-level-buffers") >= MAX_QUEUED:
            if self._ended(self.writing, Gst.MSECOND):  # not appsrc's own `block`, which waits for a sink that failed
                raise UserError("the sink ended before the source")
        if self.appsrc.push_sample(Gst.Sample.new(marked, caps, sample.get_segment(), None)) != Gst.FlowReturn.OK:
            self._ended(self.writing, POLL_NS)  # raises the element's own words where it left any
            raise UserError("the sink ended before the source")
        self.frames += 1


def parsed(description: str) -> Any:
    """Return the pipeline of a description; raises UserError."""
    Gst.init(None)
    try:
        return Gst.parse_launch(description)
    except gi.repository.GLib.Error as error:
        raise UserError(f"GStreamer does not take {description!r}: {error.message}") from None


def numbers(text: str) -> tuple[float, ...]:
    """Return the four numbers of a box."""
    values = tuple(float(value) for value in text.split(","))
    if len(values) != 4:
        raise ValueError(text)
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="videotestsrc num-buffers=30", help="what gives frames")
    parser.add_argument("--sink", default="fakesink", help="where they go on")
    parser.add_argument(
        "--box", type=numbers, action="append", metavar="X,Y,W,H", help="a person's box in px, repeatable"
    )
    parser.add_argument("--jsonl", metavar="FILE", help="write a line of JSON a frame; - is the standard output")
    parser.add_argument("--bundle", help="another bundle than the shipped one")
    options = parser.parse_args(arguments)
    try:
        with ExitStack() as stack:
            out = sys.stdout if options.jsonl == "-" else None
            if options.jsonl not in (None, "-"):
                out = stack.enter_context(open(options.jsonl, "w", encoding="utf-8"))
            estimator = stack.enter_context(MeshEstimator.from_bundle(options.bundle))
            count = Bridge(options.source, options.sink, lambda frame: estimator(frame, options.box), out).run()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count} frames", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
