"""From the network's output to bodies in the full frame; NumPy, the truth for every other implementation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.backends import Outputs
from metro_edge.body import Body
from metro_edge.errors import NobodyError, PredictionError, UserError
from metro_edge.preprocess import crop_squares
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate

MAX_PIXEL_ASPECT_ERROR = 0.02  # |fx / fy - 1|; a crop is scaled alike along both axes
MIN_DEPTH_M = 0.01
NO_FACES = np.zeros((0, 3), np.int32)


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera without distortion.

    Attributes:
        focal_px: focal length, the same along both axes.
        centre_px: principal point (x, y), counted from pixel centres as OpenCV does.
    """

    focal_px: float
    centre_px: tuple[float, float]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.focal_px) and self.focal_px > 0):
            raise UserError(f"the focal length must be a positive number of pixels, got {self.focal_px}")
        if not all(math.isfinite(value) for value in self.centre_px):
            raise UserError(f"the principal point must be finite, got {self.centre_px}")

    @classmethod
    def for_frame(cls, frame_hw: tuple[int, int], focal_px: float | None = None) -> Intrinsics:
        """Return the camera of a frame that looks through its middle.

        Without `focal_px` the focal length is the diagonal sqrt(W^2 + H^2), a field of view of 53 degrees
        along it, the assumption of CLIFF (Li et al., ECCV 2022, section 3.2). Depth is proportional to it.
        """
        height, width = frame_hw
        focal = math.hypot(width, height) if focal_px is None else focal_px
        return cls(float(focal), ((width - 1) / 2.0, (height - 1) / 2.0))

    @classmethod
    def from_matrix(cls, matrix: ArrayLike) -> Intrinsics:
        """Return the camera of a (3, 3) matrix K as OpenCV's calibration gives it, of undistorted frames.

        Raises UserError unless it is [[f, 0, cx], [0, f, cy], [0, 0, 1]]; the two f may differ by 2 %.
        """
        try:
            k = np.asarray(matrix, np.float64)
        except (TypeError, ValueError):
            raise UserError(f"the camera matrix must be (3, 3) numbers, got {str(matrix)[:80]}") from None
        if k.shape != (3, 3) or not np.isfinite(k).all():
            came = k.tolist() if k.shape == (3, 3) else f"shape {k.shape}"
            raise UserError(f"the camera matrix must be (3, 3) and finite, got {came}")
        fx, fy = float(k[0, 0]), float(k[1, 1])
        if min(fx, fy) <= 0 or abs(fx / fy - 1) > MAX_PIXEL_ASPECT_ERROR:
            raise UserError(f"the camera matrix needs two alike positive focal lengths, got {fx:g} and {fy:g}: rectify")
        if abs(k[0, 1]) > MAX_PIXEL_ASPECT_ERROR * fx or k[1, 0] != 0 or tuple(k[2]) != (0, 0, 1):
            raise UserError("the camera matrix must have no skew and the last row 0, 0, 1: rectify the frames")
        return cls((fx + fy) / 2.0, (float(k[0, 2]), float(k[1, 2])))


def bodies_from_outputs(
    outputs: Outputs,
    boxes: NDArray[np.floating],
    intrinsics: Intrinsics,
    spec: ModelSpec,
    template: BodyTemplate,
) -> list[Body]:
    """Return one Body per row of the network's outputs.

    Args:
        outputs: of the network; without `vertices` the bodies have joints and no mesh.
        boxes: (N, 4) px, the ones that the images were cropped by.
        intrinsics: of the frame.
        spec, template: of the network.

    Raises:
        PredictionError: an output that is not finite.
        NobodyError: a scale that is not positive, or a body that reaches behind the camera.
    """
    check_outputs(outputs)
    root = root_of_outputs(outputs, spec, template)
    camera = _camera_at(root, outputs)
    joints = _moved(outputs.joints, root)
    vertices = np.zeros((len(camera), 0, 3), np.float32) if outputs.vertices is None else _moved(outputs.vertices, root)
    translation = translation_from_camera(camera, boxes, spec, intrinsics)
    solid = vertices if vertices.shape[1] else joints
    nearest = translation[:, 2] + solid[..., 2].min(axis=1)
    if (nearest < MIN_DEPTH_M).any():
        person = int(nearest.argmin())
        raise NobodyError(
            f"person {person} at {translation[person, 2]:.2f} m would reach behind the camera: "
            f"is a focal length of {intrinsics.focal_px:g} px right?"
        )
    return [
        Body(
            joints=joints[i],
            vertices=vertices[i],
            camera=camera[i].astype(np.float32),
            translation=translation[i].astype(np.float32),
            box=np.array(boxes[i], np.float32),
            focal_px=intrinsics.focal_px,
            centre_px=intrinsics.centre_px,
            joint_set=spec.joint_set,
            faces=template.faces if vertices.shape[1] else NO_FACES,
        )
        for i in range(len(camera))
    ]


def check_outputs(outputs: Outputs) -> None:
    """Raise PredictionError unless all values are finite, NobodyError unless every scale s is positive."""
    for name, values in outputs.given.items():
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if bad.any():
            raise PredictionError(
                f"the network's {name} of person {int(bad.argmax())} has NaN or infinity: "
                "the weights or this precision of them are broken"
            )
    scale = outputs.camera[:, 0]
    if (scale <= 0).any():
        raise NobodyError(
            f"the network's camera scale of person {int(scale.argmin())} is {scale.min():g}, not positive: "
            "nobody is in the box, or the network is not trained"
        )


def centre_on_root(
    outputs: Outputs, spec: ModelSpec, template: BodyTemplate
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Move each body's root, regressed from its mesh, to the origin; the camera moves along.

    Returns camera, joints and vertices, float64, with the same projection s (x + tx), s (y + ty) as before. Of a
    network that gives joints alone, the root is that of `mesh_joints`, and the vertices are (N, 0, 3).
    """
    root = root_of_outputs(outputs, spec, template)
    joints = np.asarray(outputs.joints, np.float64)
    vertices = np.zeros((len(joints), 0, 3)) if outputs.vertices is None else np.asarray(outputs.vertices, np.float64)
    return _camera_at(root, outputs), joints - root[:, None], vertices - root[:, None]


def root_of_outputs(outputs: Outputs, spec: ModelSpec, template: BodyTemplate) -> NDArray[np.float64]:
    """Return where the root joint of each body lies, (N, 3) float64 metres.

    It is regressed from the mesh, or, of a network that gives joints alone, taken from `mesh_joints`. Raises
    PredictionError of a network that gives neither, UserError of a joint set without a regressor.
    """
    if outputs.vertices is not None:
        # One mesh after the other: float64 copies of a whole crowd cost more in fresh memory than the sums.
        roots = [template.root(spec.joint_set, np.asarray(mesh, np.float64)) for mesh in outputs.vertices]
        return np.array(roots, np.float64).reshape(-1, 3)
    if outputs.mesh_joints is not None:
        return np.asarray(spec.joints.root_of(np.asarray(outputs.mesh_joints, np.float64)), np.float64)
    raise PredictionError("the network gave neither vertices nor mesh_joints, which tell where the root is")


def _camera_at(root: NDArray[np.float64], outputs: Outputs) -> NDArray[np.float64]:
    camera = np.array(outputs.camera, np.float64)
    camera[:, 1:] += root[:, :2]
    return camera


def _moved(points: NDArray[np.floating], root: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return points (N, P, 3) from their root, subtracted in float64 and rounded once."""
    moved = np.empty(points.shape, np.float32)
    for axis in range(3):  # columns: NumPy takes twice as long to repeat a root of three numbers along the rows
        moved[..., axis] = points[..., axis] - root[:, axis, None]
    return moved


def translation_from_camera(
    camera: NDArray[np.floating], boxes: NDArray[np.floating], spec: ModelSpec, intrinsics: Intrinsics
) -> NDArray[np.float64]:
    """Return (N, 3) metres, where the origin of each body lies in the camera frame.

    A crop of side b px centred on (x, y) shows one metre at depth z as focal / z px and, by the network's
    camera, as s b / 2 px, so z = 2 focal / (s b). The offset of the crop from the principal point adds
    2 (x - cx) / (s b) to tx, alike for y (CLIFF, Li et al., ECCV 2022; the depth as in SPIN, Kolotouros et
    al., ICCV 2019).
    """
    camera = np.asarray(camera, np.float64)
    centre, side = crop_squares(boxes, spec)
    metre_px = camera[:, 0] * side / 2.0
    translation = np.empty((len(camera), 3))
    translation[:, :2] = camera[:, 1:] + (centre - intrinsics.centre_px) / metre_px[:, None]
    translation[:, 2] = intrinsics.focal_px / metre_px
    return translation
