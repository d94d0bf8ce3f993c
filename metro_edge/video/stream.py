"""`metro_edge.stream`: from a source to typed results, frame by frame; the command line and the viewer run the same."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
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
from metro_edge.video.network import Answer, Network, default_in_flight, frames_in_flight, stream_threads
from metro_edge.video.people import Boxes, FixedPeople, GivenPeople, People, Person
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
            `smooth`. With several frames in flight those of one run beside those of others.
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


@dataclass(frozen=True, eq=False)
class _Asked:
    """A frame in flight: its boxes, the stage times until it was asked for, and bodies and stage times to come."""

    frame: SourceFrame
    boxes: Boxes
    before_ms: dict[str, float]
    answer: Future[Answer]


class Stream:
    """People in a source, frame by frame.

        with metro_edge.stream("clip.mp4") as stream:
            for frame in stream:
                print(frame.time_s, frame.identities, [body.joints for body in frame.bodies])

    Args:
        in_flight: frames that the network works on at once, each in a thread of its own, where the way to follow
            people can look ahead (People.ahead): boxes that follow someone are then older by as many frames less one.
            None takes two for files on two cores or more, and one for live sources, which would only come later. Of one
            frame alone several people are shared out to two threads.

    Attributes:
        source: what is read.
        estimator: what runs the network.
        ground: where the floor is, by the bodies so far.
        dropped: frames of a live source that were left out; always 0 for files.
        frames: how many results were given.
        in_flight: see above.

    Raises:
        UserError: a camera matrix that is none, or more than one frame in flight on an engine that takes one at a time.
    """

    def __init__(
        self,
        source: Source,
        estimator: MeshEstimator,
        people: People,
        smoother: BodySmoother | None = None,
        camera_matrix: ArrayLike | None = None,
        in_flight: int | None = None,
    ) -> None:
        self.source, self.estimator, self.people, self.smoother = source, estimator, people, smoother
        self.ground, self.dropped, self.frames = Ground(), 0, 0
        self._camera = None if camera_matrix is None else Intrinsics.from_matrix(camera_matrix)
        self.in_flight = frames_in_flight(in_flight, source, estimator)
        self._reader: Reader | None = None
        self._once = threading.Lock()
        self._stopping = self._closed = False

    def __iter__(self) -> Iterator[FrameResult]:
        if not self._once.acquire(blocking=False):
            raise UserError("a stream can be iterated over once; open another one")
        if self._closed:
            raise UserError("the stream is closed; open another one")
        if self._stopping:
            return
        clock = self.people.clock = StageClock()
        with Reader(self.source) as reader, Network(self.estimator, self._camera, self.in_flight) as network:
            self._reader = reader
            asked: deque[_Asked] = deque()
            while True:
                with clock("wait"):
                    frame = reader.next()
                if frame is None:
                    break
                boxes = self.people.ahead(frame) if self.in_flight > 1 else None
                if boxes is None:
                    while asked:
                        yield from self._oldest(asked, network, clock)
                    yield self._result(frame, self.people(frame, network.estimate(frame, clock)), clock)
                    continue
                asked.append(_Asked(frame, boxes, clock.take(), network.submit(frame, boxes)))
                if len(asked) >= self.in_flight:
                    yield from self._oldest(asked, network, clock)
            while asked:
                yield from self._oldest(asked, network, clock)

    def _oldest(self, asked: deque[_Asked], network: Network, clock: StageClock) -> Iterator[FrameResult]:
        """Give the result of the oldest frame in flight; of all of them, done over, where its boxes were no use."""
        first = asked.popleft()
        bodies, stages_ms = first.answer.result()
        people = self.people.taken(first.frame, first.boxes, bodies)
        if people is not None:
            clock.add(first.before_ms)
            clock.add(stages_ms)
            yield self._result(first.frame, people, clock)
            return
        again = [first, *asked]
        asked.clear()
        for one in again:
            clock.add(one.before_ms)
            yield self._result(one.frame, self.people(one.frame, network.estimate(one.frame, clock)), clock)

    def _result(self, frame: SourceFrame, people: list[Person], clock: StageClock) -> FrameResult:
        """Return the frame's result: people in the order of their identities, smoothed, on the ground so far."""
        people.sort(key=lambda person: person.identity)
        if self.smoother is not None:
            with clock("smooth"):
                people = self.smoother(people, frame.time_s, frame.hw)
        self.ground.update([person.body for person in people])
        self.dropped = 0 if self._reader is None else self._reader.dropped
        self.frames += 1
        stages_ms, ground = clock.take(), self.ground.matrix
        return FrameResult(frame.index, frame.time_s, frame.image, tuple(people), stages_ms, self.dropped, ground)

    def again(self) -> Stream:
        """Return a stream of the same source from its beginning, on the same engine, with nobody known yet."""
        smoother = None if self.smoother is None else BodySmoother(mesh=self.smoother.mesh)
        stream = Stream(self.source, self.estimator, self.people.again(), smoother, in_flight=self.in_flight)
        stream._camera = self._camera
        return stream

    def stop(self) -> None:
        """End the iteration after the frames in hand; safe from other threads and from signal handlers."""
        self._stopping = True
        if self._reader is not None:
            self._reader.stop()

    def close(self) -> None:
        """Stop and free source and engine; doing it twice is fine."""
        self._closed = True
        self.stop()
        if self._reader is not None:
            self._reader.close()
        self.estimator.close()

    @property
    def notes(self) -> list[str]:
        """What the user should know about the reading, such as a file that ended early or a camera that came back."""
        return [*self.source.notes, *self.people.notes]

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
    in_flight: int | None = None,
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
        in_flight: frames that the network works on at once, see Stream; None is two for files, one for live sources.

    Raises:
        UserError: anything of the above that is not usable.
    """
    people = choose_people(boxes, detector, detect_every)
    opened = open_source(source, Span(start_s, end_s, stride), fps)
    threads = stream_threads(backend) if threads is None else threads
    at_once = default_in_flight(opened) if in_flight is None else in_flight
    estimator = MeshEstimator.from_bundle(
        bundle, precision, backend, threads=threads, focal_px=focal_px, in_flight=at_once
    )
    smoother = BodySmoother(mesh=mesh) if smooth else None
    try:
        return Stream(opened, estimator, people, smoother, camera_matrix, in_flight)
    except UserError:
        estimator.close()
        raise


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
