"""A lane: a stream with all that a frame needs on its way, allocated once; frames on several lanes overlap."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.cuda.arrays import BYTES_PER_PX, DeviceArray, DeviceBuffer, DeviceFrame
from metro_edge.cuda.context import DeviceContext, device_errors
from metro_edge.cuda.driver import Event, is_page_locked
from metro_edge.cuda.graphs import Graph, RecordingLoader
from metro_edge.cuda.loading import KernelLoader
from metro_edge.cuda.network import DeviceNetwork, NetworkRunner
from metro_edge.cuda.postprocess import Placed, Postprocess
from metro_edge.cuda.preprocess import Preprocess
from metro_edge.errors import UserError
from metro_edge.postprocess import Intrinsics
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate

LOGGER = logging.getLogger("metro_edge.cuda")
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the default stream is waited for where that is needed, and only there
WRITE_COMBINED = 4  # CU_MEMHOSTALLOC_WRITECOMBINED: the processor only writes it
PARTS = ("status", "camera", "translation", "joints", "joints_px", "vertices", "vertices_px")


MARKS = ("host_to_device", "crop", "network", "postprocess", "device_to_host")


def part_sizes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the parts of a result -> their shape for one person, in 4-byte values."""
    joints, vertices = len(spec.joints), spec.vertex_count if "vertices" in spec.outputs else 0
    shapes = ((), (3,), (3,), (joints, 3), (joints, 2), (vertices, 3), (vertices, 2))
    return dict(zip(PARTS, shapes, strict=True))


class Lane:
    """Uploads a frame, crops its people, runs the network, places the bodies and downloads what is wanted of them.

    One frame at a time: `wait` for the one before. A frame allocates nothing, unless it is larger or has another number
    of people than any before. The second frame with a number of people is captured as a CUDA graph; later ones launch
    it with their own arguments. Where capturing fails, that is logged and the launches stay plain.

    Attributes:
        stream: pycuda.driver.Stream.
        done: event behind the last frame.
        captured: numbers of people with a graph.
        mark: for measurements, None otherwise: called with `begin`, and with the name of each of MARKS when all of its
            work was given to the stream. Launches are plain meanwhile, as a graph's parts cannot be told apart.

    Args:
        context: of the GPU; current in all calls.
        network: that runs.
        template: of the body.
        loader: of the kernels.
        max_people: most people of a frame.
        wanted: parts that are downloaded, of PARTS; the status always is.
        graphs: whether to capture at all.
    """

    def __init__(
        self,
        context: DeviceContext,
        network: DeviceNetwork,
        template: BodyTemplate,
        loader: KernelLoader,
        max_people: int,
        wanted: Sequence[str],
        graphs: bool,
    ) -> None:
        self._driver = context.driver
        self._graphs: dict[int, Graph] = {}
        self._events: list[Event] = []
        try:
            with device_errors(self._driver, f"a lane for {max_people} people"):
                self._make(network, template, loader, max_people, wanted)
        except BaseException:
            self._free()
            raise
        self._seen: set[int] = set()
        self._graphs_wanted = graphs
        self._kept: Any = None
        self.mark: Callable[[str], None] | None = None

    def _make(
        self,
        network: DeviceNetwork,
        template: BodyTemplate,
        loader: KernelLoader,
        max_people: int,
        wanted: Sequence[str],
    ) -> None:
        self.stream = self._driver.Stream(NON_BLOCKING)
        for _ in range(2):
            self._events.append(Event())
        self.done, self._given = self._events
        self._loader = RecordingLoader(loader)
        self._spec, self._max_batch = network.spec, min(network.max_batch, max_people)
        self._runner = NetworkRunner(network)
        self._preprocess = Preprocess(network.spec, self._loader)
        self._postprocess = Postprocess(network.spec, template, self._loader, max_people=self._max_batch)
        sizes = part_sizes(network.spec)
        # What is wanted lies in front, so that one copy brings it.
        self._parts = {name: sizes[name] for name in sorted(PARTS, key=lambda n: n != "status" and n not in wanted)}
        self._wanted = ["status", *(name for name in self._parts if name in wanted and name != "status")]
        values = {name: int(np.prod(shape, dtype=np.int64)) for name, shape in self._parts.items()}
        self._values, self._wanted_values = values, sum(values[name] for name in self._wanted)
        self._arena = DeviceBuffer((max_people * sum(values.values()),), np.float32)
        self._host = self._driver.pagelocked_empty(max(max_people * self._wanted_values, 1), np.float32)
        self._frame: DeviceBuffer | None = None
        self._staging: NDArray[np.uint8] | None = None

    @property
    def captured(self) -> tuple[int, ...]:
        """Numbers of people with a graph."""
        return tuple(sorted(self._graphs))

    def wait(self) -> None:
        """Wait for the last frame; other Python threads go on meanwhile."""
        self.done.wait()
        self._kept = None

    def follow(self, stream: int) -> None:
        """Let the next frame wait for what a stream, by its handle, was given so far."""
        self._given.record(stream)
        self._given.hold(self.stream.handle)

    def upload(
        self,
        planes: Sequence[NDArray[np.uint8]],
        width: int,
        height: int,
        format: str,
        yuv: str,
        stream: int | None = None,
    ) -> DeviceFrame:
        """Copy a frame's planes, as of GivenFrame, into this lane's memory, behind its work so far.

        Planes in page-locked memory without gaps are copied from where they are, and must stay as they are until the
        frame is done; others go through page-locked memory of the lane. What a stream that fills them was given so far
        is waited for: on the GPU, where all are page-locked; else here.
        """
        self._say("begin")
        nbytes = sum(plane.size for plane in planes)
        locked = [bool(plane.flags.c_contiguous) and is_page_locked(int(plane.ctypes.data)) for plane in planes]
        with device_errors(self._driver, f"the upload of a frame of {width} x {height} px"):
            if stream is not None:
                self.follow(stream)
                if not all(locked):
                    self._given.wait()
            if self._frame is None or self._staging is None or self._frame.shape[0] < nbytes:
                frame = DeviceBuffer((nbytes,), np.uint8)
                self._staging = self._driver.pagelocked_empty(nbytes, np.uint8, mem_flags=WRITE_COMBINED)
                self._frame = frame
            start, staged = 0, 0
            for plane, stays in zip(planes, locked, strict=True):
                if stays:
                    source = plane.reshape(-1)
                else:
                    source = self._staging[staged : staged + plane.size]
                    np.copyto(source.reshape(plane.shape), plane)
                    staged += plane.size
                self._driver.memcpy_htod_async(self._frame.pointer + start, source, self.stream)
                start += plane.size
        self._kept = planes
        self._say("host_to_device")
        pitch = width * BYTES_PER_PX[format]
        return DeviceFrame(self._frame.pointer, width, height, format, pitch, yuv=yuv)

    def run(self, frame: DeviceFrame, boxes: NDArray[np.float64], intrinsics: Intrinsics, owner: Any = None) -> Placed:
        """Give a frame's work to the stream; returns where the bodies will be, on the GPU.

        Args:
            frame: on the GPU.
            boxes: (N, 4) checked, N at most `max_people`.
            intrinsics: of the frame.
            owner: is kept alive until the frame is done.
        """
        people = len(boxes)
        placed = self._placed(people)
        with device_errors(self._driver, f"a frame of {people} people"):
            for first in range(0, people, self._max_batch):
                last = min(first + self._max_batch, people)
                self._batch(frame, boxes[first:last], intrinsics, placed.rows(first, last))
            if people:
                wanted = self._host[: people * self._wanted_values]
                self._driver.memcpy_dtoh_async(wanted, self._arena.pointer, self.stream)
                self._say("device_to_host")
            self.done.record(self.stream.handle)
        self._kept = (self._kept, owner)
        return placed

    def downloaded(self, people: int) -> dict[str, NDArray[Any]]:
        """Return the parts that were wanted of the last frame, when it is done: views of the lane's own memory."""
        parts, start = {}, 0
        for name in self._wanted:
            values = people * self._values[name]
            part = self._host[start : start + values].reshape(people, *self._parts[name])
            parts[name] = part.view(np.int32) if name == "status" else part
            start += values
        return parts

    def close(self) -> None:
        """Wait, and free what the lane has; the context must be current."""
        self.wait()
        self._runner.close()
        self._free()

    def _free(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        for event in self._events:
            event.close()
        # Whoever still holds the lane, such as the traceback of an error, holds nothing of the GPU with it.
        self.__dict__.clear()

    def _placed(self, people: int) -> Placed:
        parts, start = {}, self._arena.pointer
        for name, shape in self._parts.items():
            dtype = np.dtype(np.int32 if name == "status" else np.float32)
            parts[name] = DeviceArray(start, (people, *shape), dtype, self._arena.ordinal)
            start += 4 * people * self._values[name]
        return Placed(**parts)

    def _batch(self, frame: DeviceFrame, boxes: NDArray[np.float64], intrinsics: Intrinsics, placed: Placed) -> None:
        count = len(boxes)
        self._runner.prepare(count, self.stream)
        plain = self.mark is not None
        if count not in self._graphs and count in self._seen and self._graphs_wanted and not plain:
            self._capture(frame, boxes, intrinsics, placed)
        graph = None if plain else self._graphs.get(count)
        if graph is None:
            # TensorRT sets itself up in the first run of a shape, which cannot be captured.
            self._launch(frame, boxes, intrinsics, placed)
            self._seen.add(count)
            return
        with self._loader.changing(graph):
            self._launch(frame, boxes, intrinsics, placed, network=False)
        graph.launch(self.stream)

    def _capture(self, frame: DeviceFrame, boxes: NDArray[np.float64], intrinsics: Intrinsics, placed: Placed) -> None:
        try:
            with self._loader.capturing(self.stream) as graph:
                self._launch(frame, boxes, intrinsics, placed)
        except (UserError, self._driver.Error) as error:
            LOGGER.warning("no CUDA graph of %d people, launches stay plain: %s", len(boxes), str(error))
            self._graphs_wanted = False
            return
        self._graphs[len(boxes)] = graph

    def _launch(
        self,
        frame: DeviceFrame,
        boxes: NDArray[np.float64],
        intrinsics: Intrinsics,
        placed: Placed,
        network: bool = True,
    ) -> None:
        count = len(boxes)
        self._preprocess(frame, boxes, self._runner.images.rows(0, count), self.stream)
        self._say("crop")
        if network:
            self._runner.run(count, self.stream)
        self._say("network")
        camera, joints, mesh = self._runner.outputs(count).values()
        self._postprocess(camera, joints, mesh, boxes, intrinsics, placed, self.stream)
        self._say("postprocess")

    def _say(self, part: str) -> None:
        if self.mark is not None:
            self.mark(part)
