"""The kernels on this GPU against their NumPy and OpenCV references, on the shipped picture and body.

`metro-edge selftest` runs them; the tests in tests/metro_edge/cuda look closer. Limits are those of docs/cuda.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.backends import Outputs
from metro_edge.body import Body
from metro_edge.bundle import Bundle
from metro_edge.cuda.arrays import DeviceBuffer, DeviceFrame
from metro_edge.cuda.context import DeviceContext
from metro_edge.cuda.loading import KernelLoader
from metro_edge.cuda.overlay import MeshOverlay
from metro_edge.cuda.postprocess import Placed, Postprocess, VertexNormals, check_status
from metro_edge.cuda.preprocess import Preprocess
from metro_edge.cuda.smoothing import OneEuro
from metro_edge.demo import DemoAssets
from metro_edge.postprocess import Intrinsics, bodies_from_outputs
from metro_edge.preprocess import network_input
from metro_edge.raster import vertex_normals
from metro_edge.selftest import FAILED, PASSED, Result
from metro_edge.smoothing import OneEuro as HostOneEuro
from metro_edge.video.overlay import draw_bodies

CROP_LEVEL_SHARE = 0.005  # of values that may be one level apart
POINT_M, PIXEL, SMOOTHED_M, NORMAL = 2e-6, 5e-3, 2e-6, 2e-5
OVERLAY_SHARE = 0.003  # of drawn values that may be over two levels apart


class _Scene(NamedTuple):
    """What the kernels are run on: the shipped picture, two people in it, and outputs as a network gives them."""

    bundle: Bundle
    frame: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    outputs: Outputs
    intrinsics: Intrinsics
    bodies: list[Body]


def checks(loader: KernelLoader | None = None) -> Iterator[Result]:
    """Yield a Result for each group of kernels, named `kernels GROUP`; `loader` is for tests.

    Raises:
        UserError: no GPU or no PyCUDA; a kernel that is wrong is a Result.
    """
    scene = _scene()
    with DeviceContext() as context:
        kernels = loader or KernelLoader()
        for name, check in CHECKS.items():
            start = time.perf_counter()
            note, good = check(scene, kernels)
            context.driver.Context.synchronize()
            took = f"{note}; {context.name}, {time.perf_counter() - start:.2f} s"
            yield Result(f"kernels {name}", PASSED if good else FAILED, took)
    context.close()


def _scene() -> _Scene:
    bundle = Bundle.load(None)
    frame = DemoAssets.load().picture
    height, width = frame.shape[:2]
    boxes = np.array([[0, 0, width, height], [width * 0.3, -20, width * 0.4, height * 0.7]], np.float64)
    template, spec = bundle.template, bundle.spec
    vertices = np.stack([template.vertices, template.vertices * 0.8 + 0.1]).astype(np.float32)
    joints = template.joints(spec.joint_set, vertices).astype(np.float32)
    outputs = Outputs(np.array([[0.8, 0.1, -0.1], [0.9, 0, 0.05]], np.float32), joints, vertices)
    intrinsics = Intrinsics.for_frame((height, width))
    bodies = bodies_from_outputs(outputs, boxes, intrinsics, spec, template)
    return _Scene(bundle, frame, boxes, outputs, intrinsics, bodies)


def _crop(scene: _Scene, loader: KernelLoader) -> tuple[str, bool]:
    spec, frame = scene.bundle.spec, DeviceBuffer.of(scene.frame)
    images = DeviceBuffer((2, 3, spec.image_size, spec.image_size), np.float32)
    height, width = scene.frame.shape[:2]
    Preprocess(spec, loader)(DeviceFrame(frame.pointer, width, height), scene.boxes, images)
    level = 1.0 / (255.0 * np.array(spec.std))[:, None, None]
    apart = np.rint(np.abs(images.get() - network_input(scene.frame, scene.boxes, spec)) / level)
    share = float((apart > 0).mean())
    return f"{share:.3%} of the values a level apart, {int(apart.max())} at most", bool(
        apart.max() <= 1 and share <= CROP_LEVEL_SHARE
    )


def _postprocess(scene: _Scene, loader: KernelLoader) -> tuple[str, bool]:
    spec, template = scene.bundle.spec, scene.bundle.template
    placed = Placed.allocate(2, len(spec.joints), spec.vertex_count)
    camera, joints, mesh = map(DeviceBuffer.of, (scene.outputs.camera, scene.outputs.joints, scene.outputs.mesh))
    Postprocess(spec, template, loader)(camera, joints, mesh, scene.boxes, scene.intrinsics, placed)
    check_status(placed.status.get())
    points = {"vertices": POINT_M, "joints": POINT_M, "translation": POINT_M, "joints_px": PIXEL, "vertices_px": PIXEL}
    apart = {
        name: float(
            np.abs(getattr(placed, name).get() - np.stack([getattr(body, name) for body in scene.bodies])).max()
        )
        for name in points
    }
    worst = max(apart[name] for name in ("vertices", "joints", "translation"))
    note = f"{worst * 1e6:.2f} um and {max(apart['joints_px'], apart['vertices_px']):.4f} px apart"
    # Metres of the translation have seven digits in float32.
    limit = {**points, "translation": POINT_M * max(1.0, float(max(body.translation[2] for body in scene.bodies)))}
    return note, all(apart[name] <= limit[name] for name in points)


def _smoothing(scene: _Scene, loader: KernelLoader) -> tuple[str, bool]:
    count, random = len(scene.bundle.spec.joints), np.random.default_rng(0)
    filters = OneEuro(count, 3, loader), HostOneEuro()
    worst = 0.0
    for step in range(20):
        points = (scene.outputs.joints[:2] + random.normal(0, 0.02, (2, count, 3))).astype(np.float32)
        buffer = DeviceBuffer.of(points)
        filters[0](buffer, ("a", "b"), step / 30.0, buffer)
        worst = max(worst, float(np.abs(buffer.get() - filters[1](points, ("a", "b"), step / 30.0)).max()))
    return f"{worst * 1e6:.2f} um apart over 20 frames", worst <= SMOOTHED_M


def _normals(scene: _Scene, loader: KernelLoader) -> tuple[str, bool]:
    template = scene.bundle.template
    vertices = template.vertices.astype(np.float32)
    normals = DeviceBuffer((1, *vertices.shape), np.float32)
    VertexNormals(template.faces, len(vertices), loader)(DeviceBuffer.of(vertices[None]), normals)
    worst = float(np.abs(normals.get()[0] - vertex_normals(vertices, template.faces)).max())
    return f"{worst:.1e} apart", worst <= NORMAL


def _overlay(scene: _Scene, loader: KernelLoader) -> tuple[str, bool]:
    faces, (height, width) = scene.bundle.template.faces, scene.frame.shape[:2]
    vertices = DeviceBuffer.of(np.stack([body.vertices for body in scene.bodies]))
    places = DeviceBuffer.of(np.stack([body.translation for body in scene.bodies]))
    canvas = DeviceBuffer.of(scene.frame)
    overlay = MeshOverlay(faces, vertices.shape[1], (width, height), loader, max_people=2)
    overlay(DeviceFrame(canvas.pointer, width, height), vertices, places, scene.intrinsics)
    expected = draw_bodies(scene.frame, scene.bodies)
    drawn = cv2.absdiff(expected, scene.frame).max(axis=2) > 0
    apart = cv2.absdiff(canvas.get(), expected).max(axis=2)
    share = float((apart > 2).sum() / max(int(drawn.sum()), 1))
    return f"{share:.3%} of the drawn pixels over two levels apart", share <= OVERLAY_SHARE and bool(drawn.any())


CHECKS: dict[str, Callable[[_Scene, KernelLoader], tuple[str, bool]]] = {
    "crop": _crop,
    "postprocess": _postprocess,
    "smoothing": _smoothing,
    "normals": _normals,
    "overlay": _overlay,
}
