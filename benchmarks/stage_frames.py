"""One frame through the whole pipeline with the time of each stage, on the host and on a GPU."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.body import Body
from metro_edge.bundle import Bundle
from metro_edge.demo import DemoAssets
from metro_edge.errors import PredictionError, UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.preprocess import Frame, check_boxes
from metro_edge.timing import StageClock
from metro_edge.video.drawing import Drawer
from metro_edge.video.people import Person, body_box
from metro_edge.video.smoother import BodySmoother
from metro_edge.video.sources import SourceFrame, VideoFile
from metro_edge.video.stream import FrameResult

STAGES = (
    "decode", "crop", "host_to_device", "network", "device_to_host", "postprocess", "smoothing", "overlay",
)  # fmt: skip
CAPTURE_TO_MESH, CAPTURE_TO_PICTURE = "capture_to_mesh", "capture_to_picture"
ON_DEVICE = ("host_to_device", "crop", "network", "postprocess", "device_to_host")
BACKEND_OF_GPU = "tensorrt"
Clock = Callable[[], float]


class Clip:
    """A video file, again and again, with one person's box in each frame.

    The first frame of each pass comes with the opening of the file, and is left out of the times.

    Args:
        video: that is decoded.
        boxes: (F, 4) px, one a frame, or (4,) for all frames.

    Raises:
        UserError: boxes that do not fit the frames, or fewer than two frames.
    """

    def __init__(self, video: VideoFile, boxes: ArrayLike) -> None:
        width, height = video.size_wh
        self.video, self.boxes = video, check_boxes(boxes, (height, width))
        if not len(self.boxes):
            raise UserError("a box is needed: --box X Y WIDTH HEIGHT in px")
        self._frames: Iterator[SourceFrame] | None = None
        self._offset_s = self._last_s = 0.0

    def next(self, clock: StageClock) -> tuple[SourceFrame, NDArray[np.float64]]:
        """Decode a frame; returns it, with a time that goes on from pass to pass, and the box (1, 4)."""
        frame = None if self._frames is None else self._decoded(self._frames, clock)
        if frame is None:
            clock.take()  # of the end of the file
            self._frames = iter(self.video)
            next(self._frames)  # raises for a file without frames
            self._offset_s = self._last_s + 1.0
            frame = self._decoded(self._frames, clock)
            if frame is None:
                raise UserError(f"{self.video.name} has fewer than two frames: give a longer clip")
        self._last_s = frame.time_s + self._offset_s
        box = self.boxes[min(frame.index, len(self.boxes) - 1)]
        return dataclasses.replace(frame, time_s=self._last_s), box[None]

    @staticmethod
    def _decoded(frames: Iterator[SourceFrame], clock: StageClock) -> SourceFrame | None:
        with clock("decode"):
            return next(frames, None)


def shipped_clip(folder: Path) -> Clip:
    """Return the shipped clip, enlarged to 1280 x 720 into `folder`, with its true boxes."""
    from benchmarks.live import write_720p

    assets = DemoAssets.load()
    boxes = assets.boxes * (720 / len(assets.clip[0])) + np.array([160.0, 0.0, 0.0, 0.0])
    return Clip(VideoFile(write_720p(folder / "clip.mp4")), boxes)


def open_estimator(bundle: Bundle, precision: str, backend: str, threads: int | None) -> Any:
    """Return a MeshEstimator, or a DeviceEstimator for the backend tensorrt; close it. Raises UserError."""
    if backend != BACKEND_OF_GPU:
        return MeshEstimator.from_bundle(bundle, precision, backend, threads)
    from metro_edge.cuda.estimator import DeviceEstimator

    if threads is not None:
        raise UserError(f"--threads is for engines on the CPU, not for {backend}")
    return DeviceEstimator.open(bundle, precision)


def engine_of(estimator: Any) -> str:
    """Return the engine's library, version and device in words, as sessions describe it."""
    if isinstance(estimator, MeshEstimator):
        return estimator.session.device
    library = estimator.network.library
    return f"{library.__name__} {library.__version__} on {estimator.context.name}"


def bodies_of(estimator: Any, frame: Frame, boxes: NDArray[np.float64]) -> list[Body]:
    """Return the bodies on the host, whichever estimator it is."""
    found = estimator(frame, boxes)
    return found if isinstance(found, list) else found.bodies()


class HostFrames:
    """Frames of a clip through decoding, a MeshEstimator, smoothing and drawing.

    Args:
        estimator: a MeshEstimator.
        clip: of this subject alone.
        clock: seconds, never going back.
    """

    def __init__(self, estimator: Any, clip: Clip, clock: Clock = time.perf_counter) -> None:
        self.estimator, self.clip, self._now = estimator, clip, clock
        self.clock = StageClock(clock)
        self.smoother = BodySmoother()
        self._draw = Drawer(estimator.bundle.template)  # what `metro-edge run VIDEO` draws with

    def __call__(self) -> dict[str, float]:
        """Run the next frame; returns stage -> ms. Raises PredictionError when the network finds nobody in the box."""
        frame, box = self.clip.next(self.clock)
        decoded = self._now()
        bodies = self._bodies(frame.image, box)
        people = [Person(number, body, 1.0, body_box(body)) for number, body in enumerate(bodies, 1)]
        with self.clock("smoothing"):
            people = self.smoother(people, frame.time_s, (frame.image.shape[0], frame.image.shape[1]))
        meshed = self._now()
        with self.clock("overlay"):
            self._draw(FrameResult(frame.index, frame.time_s, frame.image, tuple(people), {}))
        drawn = self._now()
        stages = self.clock.take()
        if "place" in stages:  # as the estimator calls it
            stages["postprocess"] = stages.pop("place")
        stages[CAPTURE_TO_MESH] = stages["decode"] + (meshed - decoded) * 1000.0
        stages[CAPTURE_TO_PICTURE] = stages["decode"] + (drawn - decoded) * 1000.0
        return stages | self._on_device(frame.image, box)

    def _bodies(self, image: Frame, box: NDArray[np.float64]) -> list[Body]:
        bodies = self.estimator.found(image, box, clock=self.clock)
        if None in bodies:
            raise PredictionError("the network finds nobody in the box that is measured on: give another box or clip")
        return bodies

    def _on_device(self, image: Frame, box: NDArray[np.float64]) -> dict[str, float]:
        return {}


class DeviceFrames(HostFrames):
    """The same through a DeviceEstimator.

    A frame runs as users run it, with CUDA graphs, between the host's clock; then once more with plain launches, whose
    stages CUDA events tell apart. On the GPU a stage ends where the next begins, so a stage that waits for Python to
    launch it counts that wait.
    """

    def _bodies(self, image: Frame, box: NDArray[np.float64]) -> list[Body]:
        return bodies_of(self.estimator, image, box)

    def _on_device(self, image: Frame, box: NDArray[np.float64]) -> dict[str, float]:
        driver = self.estimator.context.driver
        marks: list[tuple[str, Any]] = []

        def marking(lane: Any) -> Callable[[str], None]:
            def mark(name: str) -> None:
                event = driver.Event()
                event.record(lane.stream)
                marks.append((name, event))

            return mark

        for lane in self.estimator.lanes:
            lane.mark = marking(lane)
        try:
            self.estimator.infer_async(image, box).wait()
        finally:
            for lane in self.estimator.lanes:
                lane.mark = None
        stages = dict.fromkeys(ON_DEVICE, 0.0)
        with self.estimator.context:
            for (_, before), (name, after) in pairwise(marks):
                stages[name] += before.time_till(after)
            del marks[:], before, after
        return stages


def frames_of(estimator: Any, clip: Clip) -> HostFrames:
    """Return the frames of a clip through an estimator of either kind."""
    return HostFrames(estimator, clip) if isinstance(estimator, MeshEstimator) else DeviceFrames(estimator, clip)
