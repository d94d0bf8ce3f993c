"""`python -m benchmarks kernels`: time of each CUDA kernel on this GPU, beside its NumPy and OpenCV twin on this CPU.

A kernel's time is the GPU's own: many launches captured into one CUDA graph, so that nothing of Python is in it, timed
by events; the median of repeated replays, and their spread. The twin runs in the same process on the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.kernels_report import KIND, SCHEMA_VERSION, kernels_markdown
from metro_edge import __version__
from metro_edge.backends import Outputs
from metro_edge.bundle import Bundle
from metro_edge.cuda.arrays import DeviceBuffer, DeviceFrame
from metro_edge.cuda.context import DeviceContext
from metro_edge.cuda.graphs import RecordingLoader
from metro_edge.cuda.loading import KernelLoader
from metro_edge.cuda.overlay import MeshOverlay, SkeletonOverlay
from metro_edge.cuda.postprocess import Placed, Postprocess, VertexNormals
from metro_edge.cuda.preprocess import Preprocess
from metro_edge.cuda.smoothing import OneEuro
from metro_edge.errors import UserError
from metro_edge.files import json_bytes, output_folder, write_bytes
from metro_edge.machine import describe_machine
from metro_edge.postprocess import Intrinsics, bodies_from_outputs
from metro_edge.preprocess import network_input
from metro_edge.raster import vertex_normals
from metro_edge.smoothing import OneEuro as HostOneEuro
from metro_edge.timing import measure
from metro_edge.video.overlay import draw_bodies, draw_skeletons

LAUNCHES, REPLAYS = 20, 30  # of a graph, of a measurement
HOST_CALLS, HOST_LIMIT_S = 20, 1.5
FRAME_WH = (1920, 1080)


@dataclass(frozen=True)
class Row:
    """One launcher for one number of people; microseconds.

    Attributes:
        name: of the launcher, and what it was given.
        people: how many.
        gpu_us, gpu_p95_us: median and 95th percentile of the time of a launch on the GPU.
        cpu_us: median of its twin.
    """

    name: str
    people: int
    gpu_us: float
    gpu_p95_us: float
    cpu_us: float


class _Scene:
    """A frame on the host and on the GPU, and bodies as a network gives them."""

    def __init__(self, bundle: Bundle, people: int) -> None:
        self.bundle, self.spec, self.template, self.people = bundle, bundle.spec, bundle.template, people
        random = np.random.default_rng(people)
        width, height = FRAME_WH
        coarse = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        self.frame = np.asarray(cv2.resize(coarse, FRAME_WH), np.uint8)
        side = random.uniform(0.35, 0.9, people) * height
        places = np.column_stack([random.uniform(0, width, people) - side / 4, random.uniform(0, height / 3, people)])
        self.boxes = np.column_stack([places, side / 2, side])
        turns = random.uniform(-0.4, 0.4, people)
        shear = np.eye(3) + np.einsum("n,ij->nij", turns, [[0, 0, 1], [0, 0, 0], [-1, 0, 0]])
        vertices = (self.template.vertices @ shear).astype(np.float32)
        joints = self.template.joints(self.spec.joint_set, vertices).astype(np.float32)
        camera = np.column_stack([random.uniform(0.7, 1.0, people), random.uniform(-0.1, 0.1, (people, 2))])
        self.outputs = Outputs(camera.astype(np.float32), joints, vertices)
        self.intrinsics = Intrinsics.for_frame((height, width))
        self.bodies = bodies_from_outputs(self.outputs, self.boxes, self.intrinsics, self.spec, self.template)
        self.device = {name: DeviceBuffer.of(values) for name, values in self.outputs.given.items()}
        self.bgr, self.shown = DeviceBuffer.of(self.frame), DeviceBuffer.of(self.frame)
        self.nv12 = DeviceBuffer.of(np.zeros((height * 3 // 2, width), np.uint8))
        self.placed = Placed.allocate(people, len(self.spec.joints), self.spec.vertex_count)


def measure_kernels(bundle: Bundle, people: Sequence[int]) -> tuple[list[Row], str]:
    """Return the rows, and what they ran on.

    Raises:
        UserError: no GPU, no PyCUDA, or numbers of people that are not 1 to 64.
    """
    if not people or not all(1 <= count <= 64 for count in people):
        raise UserError(f"people must be one or more numbers from 1 to 64, got {list(people)}")
    context = DeviceContext()
    with context:
        loader = RecordingLoader(KernelLoader())
        stream = context.driver.Stream(1)
        rows = []
        for count in people:
            scene = _Scene(bundle, count)
            for name, launch, twin in _launches(scene, loader):
                gpu_us = _gpu_us(context.driver, loader, stream, launch)
                host = measure(twin, calls=HOST_CALLS, warmup=2, limit_s=HOST_LIMIT_S)
                p50_us, p95_us = (float(np.percentile(gpu_us, q)) for q in (50, 95))
                rows.append(Row(name, count, p50_us, p95_us, host.p50_ms * 1000.0))
            del scene
        name = f"{context.name}, compute capability {context.gpu.compute_capability}"
    context.close()
    return rows, name


def _launches(scene: _Scene, loader: RecordingLoader) -> list[tuple[str, Callable[[Any], None], Callable[[], object]]]:
    """Return name, launch into a stream, and twin of each launcher."""
    spec, template, people, device = scene.spec, scene.template, scene.people, scene.device
    width, height = FRAME_WH
    images = DeviceBuffer((people, 3, spec.image_size, spec.image_size), np.float32)
    crop, post = Preprocess(spec, loader), Postprocess(spec, template, loader)
    smooth, host_smooth = OneEuro(len(spec.joints), 3, loader), HostOneEuro()
    normals_of = VertexNormals(template.faces, spec.vertex_count, loader)
    normals = DeviceBuffer((people, spec.vertex_count, 3), np.float32)
    meshes = MeshOverlay(template.faces, spec.vertex_count, FRAME_WH, loader, max_people=people)
    bones = SkeletonOverlay(spec.joints, loader, max_people=people)
    bgr = DeviceFrame(scene.bgr.pointer, width, height)
    nv12 = DeviceFrame(scene.nv12.pointer, width, height, "nv12")
    placed, tracks = scene.placed, tuple(range(people))
    clock = iter(range(1_000_000))
    centred = DeviceBuffer.of(np.stack([body.vertices for body in scene.bodies]))
    places = DeviceBuffer.of(np.stack([body.translation for body in scene.bodies]))
    pixels = DeviceBuffer.of(np.stack([body.joints_px for body in scene.bodies]))
    canvas = DeviceFrame(scene.shown.pointer, width, height)

    def network_out(stream: Any) -> None:
        mesh = device["vertices"]
        post(device["camera"], device["joints"], mesh, scene.boxes, scene.intrinsics, placed, stream)

    def crop_host() -> object:
        return network_input(scene.frame, scene.boxes, spec)

    return [
        ("crop, BGR", lambda s: crop(bgr, scene.boxes, images, s), crop_host),
        ("crop, NV12", lambda s: crop(nv12, scene.boxes, images, s), crop_host),
        ("postprocess", network_out, lambda: bodies_from_outputs(
            scene.outputs, scene.boxes, scene.intrinsics, spec, template)),
        ("smoothing of joints", lambda s: smooth(device["joints"], tracks, next(clock) / 30.0, device["joints"], s),
         lambda: host_smooth(scene.outputs.joints, tracks, next(clock) / 30.0)),
        ("vertex normals", lambda s: normals_of(device["vertices"], normals, s),
         lambda: [vertex_normals(mesh, template.faces) for mesh in scene.outputs.mesh]),
        ("overlay of meshes", lambda s: meshes(canvas, centred, places, scene.intrinsics, stream=s),
         lambda: draw_bodies(scene.frame, scene.bodies)),
        ("overlay of skeletons", lambda s: bones(canvas, pixels, s), lambda: draw_skeletons(scene.frame, scene.bodies)),
    ]  # fmt: skip


def _gpu_us(driver: Any, loader: RecordingLoader, stream: Any, launch: Callable[[Any], None]) -> list[float]:
    """Return the time of one launch, for each replay of a graph of LAUNCHES of them."""
    launch(stream)  # loads what is not loaded
    stream.synchronize()
    with loader.capturing(stream) as graph:
        for _ in range(LAUNCHES):
            launch(stream)
    start, end = driver.Event(), driver.Event()
    times = []
    for replay in range(REPLAYS + 5):
        start.record(stream)
        graph.launch(stream)
        end.record(stream)
        end.synchronize()
        if replay >= 5:  # the clock has risen
            times.append(start.time_till(end) * 1000.0 / LAUNCHES)
    graph.close()
    return times


def run(bundle: Path | None, people: Sequence[int], output: Path, command: str) -> tuple[str, list[Path]]:
    """Measure, and write `kernels-DEVICE-TIME.json` and `.md` into `output`; returns the Markdown and the paths.

    Raises:
        UserError: as `measure_kernels`, or a folder that cannot be written.
    """
    loaded = Bundle.load(bundle)
    rows, device = measure_kernels(loaded, people)
    machine, created = describe_machine(), datetime.now(timezone.utc)
    folder = output_folder(output)
    name = f"kernels-{device.split(',')[0].replace(' ', '_')}-{created:%Y%m%dT%H%M%SZ}"
    report = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "device": device,
        "image_size": loaded.spec.image_size,
        "protocol": f"{FRAME_WH[0]} x {FRAME_WH[1]} frame. GPU: median of {REPLAYS} replays of a CUDA graph of "
        f"{LAUNCHES} launches, by events. CPU: median of up to {HOST_CALLS} calls of the NumPy and OpenCV twin, same "
        "process, all threads that OpenCV takes; its crops are of a BGR frame in both rows",
        "machine": machine,
        "metro_edge": __version__,
        "command": command,
        "created": created.isoformat(),
        "rows": [asdict(row) for row in rows],
    }
    markdown = kernels_markdown(report)
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    write_bytes(paths[0], json_bytes(report))
    write_bytes(paths[1], markdown.encode())
    return markdown, paths
