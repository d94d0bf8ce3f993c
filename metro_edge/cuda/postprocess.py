"""From the network's output on the GPU to bodies in the full frame on the GPU: the twin of metro_edge.postprocess."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.cuda.arrays import MAX_PEOPLE, DeviceArray, DeviceBuffer, launches, people_of, pointer_of
from metro_edge.cuda.loading import KernelLoader
from metro_edge.errors import PredictionError, UserError
from metro_edge.postprocess import MIN_DEPTH_M, Intrinsics
from metro_edge.preprocess import crop_squares
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate

THREADS = 256
MAX_ROOT_JOINTS = 7

# The structures of kernels/postprocess.cu.
CAMERA = np.dtype([("focal_px", "f4"), ("centre_px", "f4", 2), ("min_depth_m", "f4")])
VIEWS = np.dtype([("offset", "f4", (2, MAX_PEOPLE)), ("half_side", "f4", MAX_PEOPLE)])
ROOT = np.dtype([("count", "i4"), ("row", "i4", MAX_ROOT_JOINTS)])

STATUS = {
    1: "an output that is NaN or infinite: the weights or this precision of them are broken",
    2: "a camera scale that is not positive: nobody is in the box, or the network is not trained",
    4: "a place behind the camera: is the focal length right?",
}


@dataclass(frozen=True)
class Placed:
    """Device arrays that a `Postprocess` writes, float32 but for `status`; metres, camera frame.

    Attributes:
        camera: (N, 3) (s, tx, ty), moved along with the root.
        translation: (N, 3), where the root joint lies.
        joints, vertices: (N, J, 3) and (N, V, 3), from the root joint.
        joints_px, vertices_px: (N, J, 2) and (N, V, 2) in the frame, counted from pixel centres.
        status: (N,) int32, 0 where all is well; `check_status` says the rest.
    """

    camera: Any
    translation: Any
    joints: Any
    vertices: Any
    joints_px: Any
    vertices_px: Any
    status: Any

    @classmethod
    def allocate(cls, people: int, joints: int, vertices: int) -> Placed:
        """Return new device buffers for N people, J joints and V vertices."""
        shapes = [(3,), (3,), (joints, 3), (vertices, 3), (joints, 2), (vertices, 2), ()]
        types = [np.float32] * 6 + [np.int32]
        return cls(*(DeviceBuffer((people, *shape), dtype) for shape, dtype in zip(shapes, types, strict=True)))

    def rows(self, first: int, last: int) -> Placed:
        """Return the people `first` to `last` - 1, in the same memory."""
        return Placed(*(DeviceArray.of(value).rows(first, last) for value in self.__dict__.values()))


def check_status(status: ArrayLike) -> None:
    """Raise PredictionError for the first person of whom no body can be made, by `Placed.status` (N,) on the host."""
    for person, bits in enumerate(np.asarray(status).tolist()):
        for bit, words in STATUS.items():
            if bits & bit:
                raise PredictionError(f"the network gave person {person} {words}")


class Regressor:
    """Joints from vertices on the GPU: the twin of BodyTemplate.joints.

    Args:
        template: of the body.
        joint_set: that it has a regressor for; raises UserError otherwise.
        loader: of the current context.
    """

    def __init__(self, template: BodyTemplate, joint_set: str, loader: KernelLoader) -> None:
        if joint_set not in template.regressors:
            template.joints(joint_set, template.vertices)  # raises, with the sets that there are
        matrix = template.regressors[joint_set]
        self.rows, self.columns = matrix.indices.shape
        self.vertex_count = len(template.vertices)
        self._loader = loader
        self._indices = DeviceBuffer.of(matrix.indices.astype(np.int32))
        self._weights = DeviceBuffer.of(matrix.weights.astype(np.float32))

    def __call__(self, vertices: Any, joints: Any, stream: Any = None) -> None:
        """Write joints (N, J, 3) of vertices (N, V, 3), float32 in device memory; raises UserError for others."""
        people = people_of(vertices, "vertices")
        source = pointer_of("vertices", vertices, (people, self.vertex_count, 3), np.float32)
        target = pointer_of("joints", joints, (people, self.rows, 3), np.float32)
        if not people:
            return
        self._loader.function("postprocess", "regress")(
            source,
            np.uint64(self._indices.pointer),
            np.uint64(self._weights.pointer),
            target,
            np.int32(self.vertex_count),
            np.int32(self.rows),
            np.int32(self.columns),
            block=(32, 8, 1),
            grid=(-(-self.rows // 8), people),
            stream=stream,
        )


class Postprocess:
    """Centres bodies on their root, and puts them in the frame in pixels and metres.

        postprocess = Postprocess(spec, template, KernelLoader())
        placed = Placed.allocate(len(boxes), len(spec.joints), spec.vertex_count)
        postprocess(camera, joints, vertices, boxes, intrinsics, placed, stream)
        stream.synchronize()
        check_status(placed.status.get())

    A frame allocates nothing. The numbers are those of metro_edge.postprocess.bodies_from_outputs in float32, see
    docs/cuda.md.

    Args:
        spec, template: of the network; without `vertices` among the spec's outputs, its `mesh_joints` tell the root.
        loader: of the current context.
        max_people: most people of a frame.
    """

    def __init__(
        self, spec: ModelSpec, template: BodyTemplate, loader: KernelLoader, max_people: int = MAX_PEOPLE
    ) -> None:
        self.spec, self.max_people = spec, max_people
        self._loader = loader
        self.vertex_count = spec.vertex_count if "vertices" in spec.outputs else 0
        if self.vertex_count and self.vertex_count != len(template.vertices):
            raise UserError(f"the network has {self.vertex_count} vertices, the body {len(template.vertices)}")
        self._regressor = Regressor(template, spec.joint_set, loader) if self.vertex_count else None
        self._mesh_joints = DeviceBuffer((max_people, len(spec.joints), 3), np.float32)
        self._roots = DeviceBuffer((max_people, 3), np.float32)
        rows = spec.joints.root_indices
        if len(rows) > MAX_ROOT_JOINTS:
            raise UserError(
                f"the root of joint set {spec.joint_set} is of {len(rows)} joints, {MAX_ROOT_JOINTS} at most"
            )
        self._root = np.zeros((), ROOT)
        self._root["count"] = len(rows)
        self._root["row"][: len(rows)] = rows

    def __call__(
        self,
        camera: Any,
        joints: Any,
        mesh: Any,
        boxes: NDArray[np.floating],
        intrinsics: Intrinsics,
        placed: Placed,
        stream: Any = None,
    ) -> None:
        """Write `placed` from the network's outputs, float32 in device memory.

        Args:
            camera: (N, 3).
            joints: (N, J, 3).
            mesh: vertices (N, V, 3); of a network that gives joints alone mesh_joints (N, J, 3).
            boxes: (N, 4) px, the ones that the images were cropped by; none is fine.
            intrinsics: of the frame.
            placed: of N people; its joints and vertices may be the network's own arrays.
            stream: pycuda.driver.Stream; None is the default stream. The call does not wait for it.

        Raises:
            UserError: for arrays that do not fit, or more people than this object was made for.
        """
        people, count = len(boxes), len(self.spec.joints)
        if people > self.max_people:
            raise UserError(f"{people} people, but this postprocessing was made for {self.max_people}")
        solid = self.vertex_count or count
        given = {"camera": (camera, (3,)), "joints": (joints, (count, 3)), "mesh": (mesh, (solid, 3))}
        wanted = {"camera": (3,), "translation": (3,), "joints": (count, 3), "vertices": (self.vertex_count, 3)}
        wanted |= {"joints_px": (count, 2), "vertices_px": (self.vertex_count, 2)}
        source = {name: pointer_of(name, array, (people, *shape), np.float32) for name, (array, shape) in given.items()}
        target = {
            name: pointer_of(f"placed.{name}", getattr(placed, name), (people, *shape), np.float32)
            for name, shape in wanted.items()
        }
        target["status"] = pointer_of("placed.status", placed.status, (people,), np.int32)
        if not people:
            return
        record = np.zeros((), CAMERA)
        record["focal_px"], record["centre_px"] = intrinsics.focal_px, intrinsics.centre_px
        record["min_depth_m"] = MIN_DEPTH_M
        mesh_joints = source["mesh"]
        if self._regressor is not None:
            regressed = self._mesh_joints.rows(0, people)
            self._regressor(mesh, regressed, stream)
            mesh_joints = np.uint64(regressed.pointer)
        self._place(source["camera"], mesh_joints, boxes, intrinsics, record, target, stream)
        self._centre("joints", source["joints"], count, not self.vertex_count, people, record, target, stream)
        if self.vertex_count:
            self._centre("vertices", source["mesh"], self.vertex_count, True, people, record, target, stream)

    def _place(
        self,
        cameras: np.uint64,
        mesh_joints: np.uint64,
        boxes: NDArray[np.floating],
        intrinsics: Intrinsics,
        record: NDArray[np.void],
        target: dict[str, np.uint64],
        stream: Any,
    ) -> None:
        middle, side = crop_squares(boxes, self.spec)
        count = len(self.spec.joints)
        for first, last in launches(len(boxes)):
            views = np.zeros((), VIEWS)
            views["offset"][:, : last - first] = (middle[first:last] - intrinsics.centre_px).T
            views["half_side"][: last - first] = side[first:last] / 2.0
            row = np.uint64(12 * first)
            self._loader.function("postprocess", "place")(
                views,
                record,
                self._root,
                cameras + row,
                mesh_joints + row * np.uint64(count),
                np.uint64(self._roots.pointer) + row,
                target["camera"] + row,
                target["translation"] + row,
                target["status"] + np.uint64(4 * first),
                np.int32(last - first),
                np.int32(count),
                block=(MAX_PEOPLE, 1, 1),
                grid=(1, 1),
                stream=stream,
            )

    def _centre(
        self,
        name: str,
        points: np.uint64,
        count: int,
        solid: bool,
        people: int,
        record: NDArray[np.void],
        target: dict[str, np.uint64],
        stream: Any,
    ) -> None:
        self._loader.function("postprocess", "centre")(
            record,
            points,
            np.uint64(self._roots.pointer),
            target["translation"],
            target[name],
            target[f"{name}_px"],
            target["status"],
            np.int32(count),
            np.int32(solid),
            block=(THREADS, 1, 1),
            grid=(-(-count // THREADS), people),
            stream=stream,
        )


class VertexNormals:
    """Normals of meshes on the GPU: the twin of metro_edge.raster.vertex_normals.

    Args:
        faces: (F, 3) triangles, indices into V vertices.
        vertex_count: V.
        loader: of the current context.

    Raises:
        UserError: for faces of another shape, or that point outside.
    """

    def __init__(self, faces: NDArray[np.integer], vertex_count: int, loader: KernelLoader) -> None:
        if faces.ndim != 2 or faces.shape[1] != 3 or not np.issubdtype(faces.dtype, np.integer):
            raise UserError(f"faces must be (F, 3) integers, got {faces.shape} {faces.dtype}")
        if faces.size and (faces.min() < 0 or faces.max() >= vertex_count):
            raise UserError(f"faces must point to vertices 0..{vertex_count - 1}, got {faces.min()}..{faces.max()}")
        self.vertex_count = vertex_count
        self._loader = loader
        order = np.argsort(faces.ravel(), kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(faces.ravel(), minlength=vertex_count))])
        self._faces = DeviceBuffer.of(faces.astype(np.int32))
        self._first = DeviceBuffer.of(first.astype(np.int32))
        self._around = DeviceBuffer.of((order // 3).astype(np.int32))

    def __call__(self, vertices: Any, normals: Any, stream: Any = None) -> None:
        """Write unit normals (N, V, 3) of vertices (N, V, 3), float32 in device memory; raises UserError for others."""
        people = people_of(vertices, "vertices")
        source = pointer_of("vertices", vertices, (people, self.vertex_count, 3), np.float32)
        target = pointer_of("normals", normals, (people, self.vertex_count, 3), np.float32)
        if not people or not self.vertex_count:
            return
        self._loader.function("postprocess", "vertex_normals")(
            source,
            np.uint64(self._faces.pointer),
            np.uint64(self._first.pointer),
            np.uint64(self._around.pointer),
            target,
            np.int32(self.vertex_count),
            block=(THREADS, 1, 1),
            grid=(-(-self.vertex_count // THREADS), people),
            stream=stream,
        )
