"""MeshEstimator: from a frame and boxes to bodies, on whichever engine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.backends import Outputs, Session, open_session
from metro_edge.body import Body
from metro_edge.bundle import Bundle
from metro_edge.errors import NobodyError
from metro_edge.frames import HostFrame
from metro_edge.postprocess import Intrinsics, bodies_from_outputs
from metro_edge.preprocess import Frame, check_boxes, check_frame, crop_images, normalise, whole_frame_box
from metro_edge.timing import StageClock

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_BATCH = 16  # people run through the network at once; bounds the memory that a crowd takes


class MeshEstimator:
    """Finds the 3D joints and the body mesh of people whose boxes are known.

        with MeshEstimator.from_bundle() as estimator:
            bodies = estimator(frame, boxes)

    Attributes:
        bundle: the model.
        session: the engine that runs it.
        focal_px: focal length of the frames' camera; None assumes one, see Intrinsics.for_frame.
    """

    def __init__(self, bundle: Bundle, session: Session, focal_px: float | None = None) -> None:
        if focal_px is not None:
            Intrinsics(focal_px, (0.0, 0.0))  # raises for a length that is none
        self.bundle = bundle
        self.session = session
        self.focal_px = focal_px

    @classmethod
    def from_bundle(
        cls,
        path: str | os.PathLike[str] | Bundle | None = None,
        precision: str = "fp32",
        backend: str = "onnxruntime",
        threads: int | None = None,
        focal_px: float | None = None,
        crop_rule: str | None = None,
        affinity: Sequence[int] | None = None,
        in_flight: int = 1,
    ) -> Self:
        """Open a bundle: a path, a loaded Bundle, or None for the shipped one.

        Args:
            path: folder or .zip.
            precision: fp32, fp16 or int8.
            backend: an engine, see metro_edge.backends.BACKENDS.
            threads: CPU threads of one inference; None leaves it to the engine.
            focal_px: focal length of the frames' camera in pixels; None assumes the frame's diagonal.
            crop_rule: cut pictures by this rule (metro_edge.spec.CROP_RULES) instead of the network's own, which
                it learnt with; `metro_demo` shows networks that METRO released what their authors' demonstration does.
            affinity: numbers of the CPU cores that the engine's threads run on, one for each; None for any.
            in_flight: threads of the caller's that use it at once; engines that must know are opened for as many, see
                `Session.concurrent`.

        Raises:
            UserError: unknown precision, backend or crop rule, or a setting that is not usable.
            BundleError: a bundle that is missing, incomplete or altered.
        """
        bundle = path if isinstance(path, Bundle) else Bundle.load(path)
        if crop_rule is not None:
            bundle = dataclasses.replace(bundle, spec=dataclasses.replace(bundle.spec, crop_rule=crop_rule))
        given: dict[str, Any] = {"threads": threads, "affinity": affinity}
        options = {name: value for name, value in given.items() if value is not None}
        if backend == "openvino" and in_flight > 1 and affinity is None:
            options["streams"] = in_flight
        session = open_session(bundle, precision, backend, **options)
        return cls(bundle, session, focal_px)

    def __call__(
        self, frame: Any, boxes: ArrayLike | None = None, camera_matrix: ArrayLike | None = None
    ) -> list[Body]:
        """Return one Body per box, in the order of the boxes.

        Args:
            frame: (H, W, 3) uint8 BGR, or a HostFrame of another format or pitch; metro_edge.preprocess.read_picture
                reads one from a file.
            boxes: (N, 4) or (4,) x, y, width, height in px; None takes the whole frame as one person's box.
            camera_matrix: (3, 3) of the frame's camera, undistorted; None takes `focal_px`.

        Raises:
            UserError: a frame, boxes or matrix that are not usable.
            PredictionError: an output of which no body can be made.
        """
        frame = check_frame(frame.bgr() if isinstance(frame, HostFrame) else frame)
        checked = whole_frame_box(frame) if boxes is None else check_boxes(boxes, frame.shape[:2])
        if camera_matrix is None:
            intrinsics = Intrinsics.for_frame(frame.shape[:2], self.focal_px)
        else:
            intrinsics = Intrinsics.from_matrix(camera_matrix)
        return self._placed(self._outputs(frame, checked, StageClock()), checked, intrinsics)

    def found(
        self, frame: Frame, boxes: ArrayLike, intrinsics: Intrinsics | None = None, clock: StageClock | None = None
    ) -> list[Body | None]:
        """Return one Body per box as `__call__` does, and None for a box whose numbers say that nobody is in it.

        Args:
            frame: (H, W, 3) uint8 BGR.
            boxes: (N, 4) x, y, width, height in px.
            intrinsics: of the frame's camera; None takes `focal_px`.
            clock: is told the times of the stages crop, network and place.

        Raises:
            UserError: a frame or boxes that are not usable.
            PredictionError: an output that is broken.
        """
        frame, clock = check_frame(frame), clock or StageClock()
        checked = check_boxes(boxes, frame.shape[:2])
        intrinsics = intrinsics or Intrinsics.for_frame(frame.shape[:2], self.focal_px)
        outputs = self._outputs(frame, checked, clock)
        with clock("place"):
            try:
                return [*self._placed(outputs, checked, intrinsics)]
            except NobodyError:
                assert outputs is not None  # without boxes nothing can raise
                rows = [outputs.row(number) for number in range(len(checked))]
                return [self._one(row, box, intrinsics) for row, box in zip(rows, checked, strict=True)]

    def _one(self, outputs: Outputs, box: NDArray[np.float64], intrinsics: Intrinsics) -> Body | None:
        try:
            return self._placed(outputs, box[None], intrinsics)[0]
        except NobodyError:
            return None

    def _outputs(self, frame: Frame, boxes: NDArray[np.float64], clock: StageClock) -> Outputs | None:
        """Run the network over the boxes, MAX_BATCH at once; None without boxes."""
        spec = self.bundle.spec
        parts = []
        for start in range(0, len(boxes), MAX_BATCH):
            with clock("crop"):
                images = normalise(crop_images(frame, boxes[start : start + MAX_BATCH], spec), spec)
            with clock("network"):
                parts.append(self.session.infer(images))
        return Outputs.joined(parts) if parts else None

    def _placed(self, outputs: Outputs | None, boxes: NDArray[np.float64], intrinsics: Intrinsics) -> list[Body]:
        if outputs is None:
            return []
        return bodies_from_outputs(outputs, boxes, intrinsics, self.bundle.spec, self.bundle.template)

    def close(self) -> None:
        """Free the engine; doing it twice is fine."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
