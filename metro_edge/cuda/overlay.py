"""Meshes and skeletons over a frame on the GPU: the twin of metro_edge.video.overlay."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.cuda.arrays import DeviceBuffer, DeviceFrame, people_of, pointer_of, yuv_of_bgr
from metro_edge.cuda.loading import KernelLoader, load_pycuda
from metro_edge.cuda.postprocess import VertexNormals
from metro_edge.errors import UserError
from metro_edge.joints import JointSet
from metro_edge.postprocess import MIN_DEPTH_M, Intrinsics
from metro_edge.video.overlay import FILL_LIGHT, KEY_LIGHT, PALETTE, side_bgr

THREADS = 256
SQUARES = (32, 8, 1)  # block of threads that draw 2 x 2 pixels each
TRIANGLES = (8, 32, 1)  # block of 32 triangles with 8 threads each
MAX_COLOURS = 8
MAX_SAMPLES = 1 << 30
FORMATS = {"bgr": 0, "rgb": 1, "nv12": 3}

# The structures of kernels/overlay.cu.
CANVAS = np.dtype(
    [
        ("pitch", "u8", 2),
        ("size", "i4", 2),
        ("format", "i4"),
        ("yuv_zero", "f4", 3),
        ("yuv", "f4", (3, 3)),
        ("unused", "i4"),
    ]
)
VIEW = np.dtype([("focal_px", "f4"), ("centre_px", "f4", 2), ("near_m", "f4"), ("scale", "i4"), ("size", "i4", 2)])
CLAY = np.dtype([("key", "f4", 3), ("fill", "f4", 3), ("count", "i4"), ("base", "f4", (MAX_COLOURS, 3))])


def _canvas(frame: DeviceFrame) -> NDArray[np.void]:
    if frame.format not in FORMATS:
        raise UserError(f"nothing can be drawn into {frame.format}; convert the frame to {', '.join(FORMATS)}")
    record = np.zeros((), CANVAS)
    record["pitch"] = frame.row_pitch, frame.uv_row_pitch
    record["size"], record["format"] = (frame.width, frame.height), FORMATS[frame.format]
    record["yuv_zero"], record["yuv"] = yuv_of_bgr(frame.yuv)
    return record


def _grid(frame: DeviceFrame) -> tuple[int, int]:
    return -(-frame.width // (2 * SQUARES[0])), -(-frame.height // (2 * SQUARES[1]))


class MeshOverlay:
    """Blends shaded meshes into frames on the GPU, nearest surface in front.

        overlay = MeshOverlay(template.faces, spec.vertex_count, (1920, 1080), KernelLoader())
        overlay(frame, placed.vertices, placed.translation, intrinsics, stream=stream)

    Holds 8 bytes of device memory for each sample of the frame (66 MB at 1080p and 2 x 2 samples) and 36 for each
    vertex of `max_people`; a frame allocates nothing. The picture is that of metro_edge.video.overlay.draw_bodies, see
    docs/cuda.md for where edges differ.

    Args:
        faces: (F, 3) triangles, indices into V vertices.
        vertex_count: V.
        size_wh: of the largest frame, px.
        loader: of the current context.
        max_people: most people of a frame.
        supersample: samples per pixel and axis, for smooth edges, 1 to 4.

    Raises:
        UserError: for numbers or faces that do not fit the above, or too little device memory.
    """

    def __init__(
        self,
        faces: NDArray[np.integer],
        vertex_count: int,
        size_wh: tuple[int, int],
        loader: KernelLoader,
        max_people: int = 16,
        supersample: int = 2,
    ) -> None:
        if not 1 <= supersample <= 4:
            raise UserError(f"supersample must be 1 to 4 samples per pixel and axis, got {supersample}")
        if size_wh[0] * size_wh[1] * supersample**2 > MAX_SAMPLES or min(size_wh) < 1:
            raise UserError(f"a frame of {size_wh[0]} x {size_wh[1]} px cannot be drawn at supersample {supersample}")
        if max_people < 1 or max_people * len(faces) >= 1 << 32:
            raise UserError(f"max_people must be 1 or more and have fewer than 2^32 triangles, got {max_people}")
        self.size_wh, self.supersample, self.max_people = tuple(size_wh), supersample, max_people
        self._loader = loader
        self._normals_of = VertexNormals(faces, vertex_count, loader)
        self._faces, self._face_count = DeviceBuffer.of(faces.astype(np.int32)), len(faces)
        self._nearest = DeviceBuffer((size_wh[0] * size_wh[1] * supersample**2,), np.uint64)
        self._normals = DeviceBuffer((max_people, vertex_count, 3), np.float32)
        self._colours = DeviceBuffer((max_people, vertex_count, 3), np.float32)
        self._corners = DeviceBuffer((max_people, vertex_count, 2), np.int32)
        self._inverse_depths = DeviceBuffer((max_people, vertex_count), np.float32)
        self._clay = np.zeros((), CLAY)
        self._clay["key"], self._clay["fill"] = (light / np.linalg.norm(light) for light in (KEY_LIGHT, FILL_LIGHT))
        self._clay["count"] = len(PALETTE)
        self._clay["base"][: len(PALETTE)] = PALETTE

    def __call__(
        self,
        frame: DeviceFrame,
        vertices: Any,
        translations: Any,
        intrinsics: Intrinsics,
        opacity: float = 0.85,
        stream: Any = None,
    ) -> None:
        """Draw N meshes into `frame`, in its place.

        Args:
            frame: bgr, rgb or nv12, no larger than `size_wh`.
            vertices: (N, V, 3) float32 metres from the root joint, in device memory; N may be 0.
            translations: (N, 3) float32 metres, of the root joints in the camera frame.
            intrinsics: of the frame.
            opacity: of the meshes, 0 to 1.
            stream: pycuda.driver.Stream; None is the default stream. The call does not wait for it.

        Raises:
            UserError: for a frame, arrays or numbers that do not fit.
        """
        people, count = people_of(vertices, "vertices"), self._normals_of.vertex_count
        source = pointer_of("vertices", vertices, (people, count, 3), np.float32)
        places = pointer_of("translations", translations, (people, 3), np.float32)
        canvas = _canvas(frame)
        if frame.width > self.size_wh[0] or frame.height > self.size_wh[1]:
            raise UserError(f"a frame of {frame.width} x {frame.height} px is larger than the overlay's {self.size_wh}")
        if people > self.max_people:
            raise UserError(f"{people} people, but this overlay was made for {self.max_people}")
        if not 0 <= opacity <= 1:
            raise UserError(f"opacity must be 0 to 1, got {opacity}")
        if not people or not self._face_count:
            return
        view = np.zeros((), VIEW)
        view["focal_px"], view["centre_px"] = intrinsics.focal_px, intrinsics.centre_px
        view["near_m"], view["scale"] = MIN_DEPTH_M, self.supersample
        view["size"] = frame.width * self.supersample, frame.height * self.supersample
        self._draw(source, places, vertices, view, people, stream)
        self._loader.function("overlay", "blend_meshes")(
            canvas,
            view,
            np.float32(opacity),
            np.uint64(frame.pointer),
            np.uint64(frame.uv_address),
            np.uint64(self._nearest.pointer),
            *(np.uint64(b.pointer) for b in (self._corners, self._inverse_depths, self._colours, self._faces)),
            np.int32(count),
            np.int32(self._face_count),
            block=SQUARES,
            grid=_grid(frame),
            stream=stream,
        )

    def _draw(
        self, source: np.uint64, places: np.uint64, vertices: Any, view: NDArray[np.void], people: int, stream: Any
    ) -> None:
        """Light the vertices and find the nearest triangle of each sample."""
        count = self._normals_of.vertex_count
        samples = int(view["size"].prod())
        load_pycuda().memset_d32_async(self._nearest.pointer, 0xFFFFFFFF, 2 * samples, stream)
        self._normals_of(vertices, self._normals.rows(0, people), stream)
        corners, inverse_depths = np.uint64(self._corners.pointer), np.uint64(self._inverse_depths.pointer)
        self._loader.function("overlay", "shade")(
            view,
            self._clay,
            source,
            places,
            np.uint64(self._normals.pointer),
            corners,
            inverse_depths,
            np.uint64(self._colours.pointer),
            np.int32(count),
            block=(THREADS, 1, 1),
            grid=(-(-count // THREADS), people),
            stream=stream,
        )
        self._loader.function("overlay", "draw_triangles")(
            view,
            corners,
            inverse_depths,
            np.uint64(self._faces.pointer),
            np.uint64(self._nearest.pointer),
            np.int32(count),
            np.int32(self._face_count),
            block=TRIANGLES,
            grid=(-(-self._face_count // TRIANGLES[1]), people),
            stream=stream,
        )


class SkeletonOverlay:
    """Draws joints and bones into frames on the GPU: left orange, right blue, middle green.

    Args:
        joints: the set of the joints.
        loader: of the current context.
        max_people: most people of a frame.
    """

    def __init__(self, joints: JointSet, loader: KernelLoader, max_people: int = 64) -> None:
        self.joints, self.max_people = joints, max_people
        self._loader = loader
        names = joints.names
        colours = [side_bgr(names[a], names[b]) for a, b in joints.bone_indices] + [side_bgr(n, n) for n in names]
        self._colours = DeviceBuffer.of(np.array(colours, np.float32))
        self._bones = DeviceBuffer.of(np.array(joints.bone_indices, np.int32).reshape(-1, 2))
        self._strokes = DeviceBuffer((max_people, 6), np.float32)

    def __call__(self, frame: DeviceFrame, joints_px: Any, stream: Any = None) -> None:
        """Draw N skeletons into `frame` (bgr, rgb or nv12), in its place.

        Args:
            frame: stays where it is.
            joints_px: (N, J, 2) float32 px in the frame, counted from pixel centres, in device memory.
            stream: pycuda.driver.Stream; None is the default stream. The call does not wait for it.

        Raises:
            UserError: for a frame or an array that does not fit, or more people than this object was made for.
        """
        people = people_of(joints_px, "joints_px")
        points = pointer_of("joints_px", joints_px, (people, len(self.joints), 2), np.float32)
        canvas = _canvas(frame)
        if people > self.max_people:
            raise UserError(f"{people} people, but this overlay was made for {self.max_people}")
        if not people:
            return
        strokes, count = np.uint64(self._strokes.pointer), np.int32(len(self.joints))
        self._loader.function("overlay", "measure_skeletons")(
            points, strokes, np.int32(people), count, block=(64, 1, 1), grid=(-(-people // 64), 1), stream=stream
        )
        self._loader.function("overlay", "draw_skeletons")(
            canvas,
            np.uint64(frame.pointer),
            np.uint64(frame.uv_address),
            points,
            strokes,
            np.uint64(self._bones.pointer),
            np.uint64(self._colours.pointer),
            np.int32(people),
            count,
            np.int32(len(self.joints.bone_indices)),
            block=SQUARES,
            grid=_grid(frame),
            stream=stream,
        )
