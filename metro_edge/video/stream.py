"""`metro_edge.stream`: from a source to typed results, frame by frame; the command line and the viewer run the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.body import Body
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.postprocess import Intrinsics
from metro_edge.preprocess import Frame
from metro_edge.timing import StageClock
from metro_edge.video.boxes import BoxTable, read_boxes
from metro_edge.video.camera import Ground
from metro_edge.video.people import FixedPeople, GivenPeople, People, Person
from metro_edge.video.prominent import ProminentPerson
from metro_edge.video.reader import Reader
from metro_edge.video.smoother import BodySmoother
from metro_edge.video.sources import Source, SourceFrame, Span, open_source

if TYPE_CHECKING:
    from typing_extensions import Self

DETECT_EVERY = 5  # frames


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What was found in one frame.

    Attributes:
        index: number of the frame in the source, from 0.
        time_s: of the frame, see SourceFrame.
        image: (H, W, 3) uint8 BGR.
        people: who was found, in the order of their identities.
        stages_ms: stage -> milliseconds: `wait` for the decoder, `detect`, `track`, `crop`, `network`, `place`,
            `smooth`.
        dropped: frames of a live source that were left out so far.
        ground: (4, 4) float64 from the camera frame to the ground's, see metro_edge.video.camera.Ground.
    """

    index: int
    time_s: float
    image: Frame = field(repr=False)
    people: tuple[Person, ...]
    stages_ms: dict[str, float]
    dropped: int = 0
    ground: NDArray[np.float64] = field(default_factory=lambda: np.diag([1.0, -1.0, -1.0, 1.0]), repr=False)

    @property
    def bodies(self) -> list[Body]:
        """The bodies of `people`, in one camera frame."""
        return [person.body for person in self.people]

    @property
    def identities(self) -> list[int]:
        """The identities of `people`."""
        return [person.identity for person in self.people]


class Stream:
    """People in a source, frame by frame.

        with metro_edge.stream("clip.mp4") as stream:
            for frame in stream:
                print(frame.time_s, frame.identities, [body.joints for body in frame.bodies])

    Attributes:
        source: what is read.
        estimator: what runs the network.
        ground: where the floor is, by the bodies so far.
        dropped: frames of a live source that were left out; always 0 for files.
        frames: how many results were given.
    """

    def __init__(
        self,
        source: Source,
        estimator: MeshEstimator,
        people: People,
        smoother: BodySmoother | None = None,
        camera_matrix: ArrayLike | None = None,
    ) -> None:
        self.source, self.estimator, self.people, self.smoother = source, estimator, people, smoother
        self.ground, self.dropped, self.frames = Ground(), 0, 0
        self._camera = None if camera_matrix is None else Intrinsics.from_matrix(camera_matrix)
        self._reader: Reader | None = None
        self._stopping = False

    def __iter__(self) -> Iterator[FrameResult]:
        if self._reader is not None:
            raise UserError("a stream can be iterated over once; open another one")
        if self._stopping:
            return
        clock = self.people.clock = StageClock()
        with Reader(self.source) as reader:
            self._reader = reader
            while True:
                with clock("wait"):
                    frame = reader.next()
                if frame is None:
                    return
                people = self._people(frame, clock)
                self.dropped = reader.dropped
                self.frames += 1
                stages_ms, ground = clock.take(), self.ground.matrix
                yield FrameResult(
                    frame.index, frame.time_s, frame.image, tuple(people), stages_ms, self.dropped, ground
                )

    def _people(self, frame: SourceFrame, clock: StageClock) -> list[Person]:
        frame_hw = (frame.image.shape[0], frame.image.shape[1])
        camera = self._camera
        if camera is None:
            focal_px = frame.focal_px if self.estimator.focal_px is None else self.estimator.focal_px
            camera = Intrinsics.for_frame(frame_hw, focal_px)
        people = self.people(frame, lambda boxes: self.estimator.found(frame.image, boxes, camera, clock))
        people.sort(key=lambda person: person.identity)
        if self.smoother is not None:
            with clock("smooth"):
                people = self.smoother(people, frame.time_s, frame_hw)
        self.ground.update([person.body for person in people])
        return people

    def again(self) -> Stream:
        """Return a stream of the same source from its beginning, on the same engine, with nobody known yet."""
        smoother = None if self.smoother is None else BodySmoother(mesh=self.smoother.mesh)
        stream = Stream(self.source, self.estimator, self.people.again(), smoother)
        stream._camera = self._camera
        return stream

    def stop(self) -> None:
        """End the iteration after the frame in hand; safe from other threads and from signal handlers."""
        self._stopping = True
        if self._reader is not None:
            self._reader.stop()

    def close(self) -> None:
        """Stop and free source and engine; doing it twice is fine."""
        self.stop()
        if self._reader is not None:
            self._reader.close()
        self.estimator.close()

    @property
    def notes(self) -> list[str]:
        """What the user should know about the reading, such as a file that ended early or a camera that came back."""
        return list(self.source.notes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def stream(
    source: Any,
    bundle: str | os.PathLike[str] | Bundle | None = None,
    *,
    boxes: ArrayLike | str | os.PathLike[str] | BoxTable | None = None,
    detector: str | os.PathLike[str] | Any = None,
    detect_every: int = DETECT_EVERY,
    smooth: bool = True,
    mesh: bool = True,
    precision: str = "fp32",
    backend: str = "onnxruntime",
    threads: int | None = None,
    focal_px: float | None = None,
    camera_matrix: ArrayLike | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    stride: int = 1,
    fps: float | None = None,
) -> Stream:
    """Open a source and return its people, frame by frame.

    Args:
        source: a video file, picture, folder of pictures, camera number, address, GStreamer description, list of
            picture paths, iterable of frames, or a Source; see metro_edge.video.sources.open_source.
        bundle: the model: a path, a loaded Bundle, or None for the shipped one.
        boxes: who is where: a MOT or COCO file, a BoxTable, or boxes (N, 4) px for all frames.
        detector: an ONNX file that finds people, or an object as metro_edge.video.detector.Detector; without boxes
            and detector one prominent person is followed (metro_edge.video.prominent).
        detect_every: frames from one detection to the next; in between people are followed by their bodies.
        smooth: smooth bodies over time.
        mesh: smooth the meshes too; False saves a millisecond a person for users of joints alone.
        precision, backend, threads: of the network, see MeshEstimator.from_bundle; None leaves a core to decoding.
        focal_px: focal length of the camera in px; None takes EXIF data, else the frame's diagonal.
        camera_matrix: (3, 3) of the camera, undistorted; comes before `focal_px`.
        start_s, end_s, stride: which frames, see metro_edge.video.sources.Span.
        fps: rate of pictures and frames that have no times; None is 25.

    Raises:
        UserError: anything of the above that is not usable.
    """
    people = choose_people(boxes, detector, detect_every)
    opened = open_source(source, Span(start_s, end_s, stride), fps)
    threads = stream_threads() if threads is None else threads
    estimator = MeshEstimator.from_bundle(bundle, precision, backend, threads=threads, focal_px=focal_px)
    return Stream(opened, estimator, people, BodySmoother(mesh=mesh) if smooth else None, camera_matrix)


def stream_threads() -> int:
    """Return the network's threads where none were given: a core is left to decoding, drawing and encoding."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def choose_people(boxes: Any, detector: Any, detect_every: int = DETECT_EVERY) -> People:
    """Return the way to follow people that boxes and detector ask for; raises UserError."""
    if boxes is not None and detector is not None:
        raise UserError("boxes and a detector exclude each other: give one of them")
    if isinstance(boxes, (str, Path, os.PathLike)):
        boxes = read_boxes(boxes)
    if isinstance(boxes, BoxTable):
        if boxes.has_identities:
            return GivenPeople(boxes)
        from metro_edge.video.tracking import TrackedBoxes

        return TrackedBoxes(boxes)
    if boxes is not None:
        return FixedPeople(boxes)
    if detector is not None:
        from metro_edge.video.tracking import DetectedPeople

        return DetectedPeople(detector, detect_every)
    return ProminentPerson()
