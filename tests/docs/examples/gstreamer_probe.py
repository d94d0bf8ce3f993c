"""Runs parts of docs/examples/gstreamer/joints.py for the tests, by a Python that has GStreamer."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3] / "docs" / "examples" / "gstreamer"))
import joints
from gi.repository import GLib
from joints import Gst, GstVideo

from metro_edge import MeshEstimator, UserError


def floats(structure: Any, name: str) -> list[float]:
    """A list of floats of a structure; PyGObject shows it as Gst.ValueArray or a list, by its version."""
    return [float(value) for value in structure.get_value(name)]


def regions(buffer: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while (meta := GstVideo.buffer_get_video_region_of_interest_meta_id(buffer, len(found))) is not None:
        found.append({"type": GLib.quark_to_string(meta.roi_type), "box": [meta.x, meta.y, meta.w, meta.h]})
        if (parameter := meta.get_param("metro-edge")) is not None:
            found[-1] |= {name: floats(parameter, name) for name in ("joints-m", "joints-px", "translation-m")}
            found[-1]["joint-set"] = parameter.get_string("joint-set")
    return found


def run(source: str, after: str, boxes: list[list[float]], folder: str) -> dict[str, Any]:
    """Carry frames through and the elements after the bridge; save what the estimator saw."""
    seen, lines, rules = [], io.StringIO(), []
    with MeshEstimator.from_bundle() as estimator:

        def estimate(frame: Any) -> Any:
            seen.append(frame.bgr().copy())
            rules.append([frame.format, frame.yuv, frame.pitch])
            return estimator(frame, boxes or None)

        bridge = joints.Bridge(source, f"{after} ! appsink name=out sync=false", estimate, lines)
        out = bridge.writing.get_by_name("out")
        samples = []
        out.set_property("emit-signals", True)

        def take(sink: Any) -> Any:
            samples.append(sink.try_pull_sample(0))
            return Gst.FlowReturn.OK

        out.connect("new-sample", take)
        count = bridge.run()
    np.save(Path(folder) / "seen.npy", np.array(seen))
    arrived = [
        {"pts": s.get_buffer().pts, "duration": s.get_buffer().duration, "regions": regions(s.get_buffer())}
        for s in samples
    ]
    return {"count": count, "after": arrived, "lines": lines.getvalue().splitlines(), "rules": rules}


def first_sample(source: str) -> Any:
    pipeline = joints.parsed(f"{source} ! appsink name=out sync=false")
    pipeline.set_state(Gst.State.PLAYING)
    sample = pipeline.get_by_name("out").try_pull_sample(10 * Gst.SECOND)
    return sample, pipeline


def memory() -> dict[str, Any]:
    """Addresses of one buffer's picture, seen twice at a time, and of the buffer that goes on."""
    sample, pipeline = first_sample("videotestsrc num-buffers=1 ! video/x-raw,format=NV12,width=322,height=240")
    buffer, info = sample.get_buffer(), GstVideo.VideoInfo.new_from_caps(sample.get_caps())
    marked = buffer.copy_region(Gst.BufferCopyFlags.MEMORY, 0, buffer.get_size())
    with (
        joints.host_frame(buffer, info) as a,
        joints.host_frame(buffer, info) as b,
        joints.host_frame(marked, info) as c,
    ):
        result = {"addresses": [a.address, b.address, c.address], "pitch": a.pitch, "info": info.stride[0]}
    pipeline.set_state(Gst.State.NULL)
    return result


def padded() -> dict[str, Any]:
    """A buffer whose metadata say other strides and offsets than its caps imply."""
    joints.Gst.init(None)
    caps = Gst.Caps.from_string("video/x-raw,format=NV12,width=6,height=4,framerate=30/1")
    content = np.arange(200, dtype=np.uint8)
    buffer = Gst.Buffer.new_wrapped(content.tobytes())
    GstVideo.buffer_add_video_meta_full(
        buffer, GstVideo.VideoFrameFlags.NONE, GstVideo.VideoFormat.NV12, 6, 4, 2, [16, 128, 0, 0], [16, 24, 0, 0]
    )
    with joints.host_frame(buffer, GstVideo.VideoInfo.new_from_caps(caps)) as frame:
        return {"planes": [plane.tolist() for plane in frame.planes()]}


def rules() -> dict[str, Any]:
    """The rule of each colorimetry, or the error."""
    joints.Gst.init(None)
    found = {}
    for name in ("bt601", "bt709", "1:4:0:0", "1:3:0:0", "bt2020"):
        caps = Gst.Caps.from_string(f"video/x-raw,format=NV12,width=64,height=64,framerate=30/1,colorimetry={name}")
        try:
            found[name] = joints.yuv_rule(GstVideo.VideoInfo.new_from_caps(caps))
        except UserError as error:
            found[name] = f"error: {error}"
    return found


if __name__ == "__main__":
    case = {"run": run, "memory": memory, "padded": padded, "rules": rules}[sys.argv[1]]
    print(json.dumps(case(*json.loads(sys.argv[2]))))
