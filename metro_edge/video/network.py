"""The network over a stream's frames: several frames in flight, and several people of one frame at once."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from metro_edge.body import Body
from metro_edge.errors import UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.postprocess import Intrinsics
from metro_edge.timing import StageClock
from metro_edge.video.people import Boxes, Estimate
from metro_edge.video.sources import Source, SourceFrame

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_IN_FLIGHT = 16
PARTS = 2  # that the people of one frame are shared out in, where the engine can
Answer = tuple[list[Body | None], dict[str, float]]


class Network:
    """Runs an estimator over frames, in threads of its own; use it under `with`.

    Args:
        estimator: what is run.
        camera: of all frames; None takes the estimator's focal length, or the frame's own.
        in_flight: frames at once.
    """

    def __init__(self, estimator: MeshEstimator, camera: Intrinsics | None, in_flight: int) -> None:
        self._estimator, self._camera = estimator, camera
        self._parts = PARTS if estimator.session.concurrent and cores() > 1 else 1
        self._workers = ThreadPoolExecutor(max(in_flight, self._parts - 1), "network")

    def submit(self, frame: SourceFrame, boxes: Boxes) -> Future[Answer]:
        """Begin with a frame; the bodies (None where nobody is) and the times of the stages come later."""

        def answer() -> Answer:
            clock = StageClock()
            return self._found(frame, boxes, clock), clock.take()

        return self._workers.submit(answer)

    def estimate(self, frame: SourceFrame, clock: StageClock) -> Estimate:
        """Return what finds the bodies of boxes in a frame at once, half of several people in another thread.

        The clock is told the times of the half that took longer.
        """

        def found(boxes: Boxes) -> list[Body | None]:
            if self._parts == 1 or len(boxes) < self._parts:
                return self._found(frame, boxes, clock)
            first, *others = np.array_split(boxes, self._parts)
            begun = [self.submit(frame, part) for part in others]
            own = StageClock()
            bodies, stages_ms = self._found(frame, first, own), own.take()
            for more, times_ms in (answer.result() for answer in begun):
                bodies += more
                stages_ms = max(stages_ms, times_ms, key=lambda times: sum(times.values()))
            clock.add(stages_ms)
            return bodies

        return found

    def _found(self, frame: SourceFrame, boxes: Boxes, clock: StageClock) -> list[Body | None]:
        camera = self._camera
        if camera is None:
            focal_px = frame.focal_px if self._estimator.focal_px is None else self._estimator.focal_px
            camera = Intrinsics.for_frame(frame.hw, focal_px)
        return self._estimator.found(frame.image, boxes, camera, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what was begun."""
        self._workers.shutdown()


def stream_threads(backend: str = "onnxruntime") -> int | None:
    """Return the network's threads where none were given: a core is left to decoding, drawing and encoding.

    None for an engine on a GPU, which has none.
    """
    if backend == "tensorrt":
        return None
    return max(1, cores() - 1)


def default_in_flight(source: Source) -> int:
    """Return the frames in flight where no number was given and the engine can: two for files, on two cores or more."""
    return 2 if not source.live and cores() > 1 else 1


def frames_in_flight(wanted: int | None, source: Source, estimator: MeshEstimator) -> int:
    """Return how many frames may be in flight; raises UserError for a number that cannot be had."""
    session = estimator.session
    if wanted is None:
        return default_in_flight(source) if session.concurrent else 1
    if not 1 <= wanted <= MOST_IN_FLIGHT:
        raise UserError(f"1 to {MOST_IN_FLIGHT} frames may be in flight, got {wanted}")
    if wanted > 1 and not session.concurrent:
        raise UserError(
            f"{session.device}, as it was opened, runs one frame at a time, not {wanted}: in_flight must be 1"
        )
    return wanted


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
