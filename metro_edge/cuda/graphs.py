"""CUDA graphs: a frame's launches captured once and launched as one, with arguments that change from frame to frame."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from metro_edge.cuda.driver import CAPTURE_THREAD_LOCAL, KernelNodeParams, call
from metro_edge.cuda.loading import KernelLoader
from metro_edge.errors import DeviceError


@dataclass
class KernelNode:
    """A kernel launch of ours in a graph.

    Attributes:
        handle: CUgraphNode.
        function, shared_bytes: of the launch, as the driver recorded them.
        grid, block, arguments: as set last; the arguments as the bytes of each.
    """

    handle: int
    function: int
    shared_bytes: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[bytes, ...] = field(repr=False)


class RecordingLoader(KernelLoader):
    """The kernels of another loader, which can be captured into a graph and given other arguments there.

    Outside of `capturing` and `changing`, launches are plain. The launchers of this package take it as any other
    loader. One thread at a time.

    Args:
        loader: that loads them.
    """

    def __init__(self, loader: KernelLoader) -> None:
        super().__init__()
        self._loader = loader
        self._recorded: list[KernelNode] | None = None
        self._changed: tuple[Graph, Iterator[KernelNode]] | None = None

    def function(self, file: str, kernel: str) -> Any:
        """Return a kernel as KernelLoader.function does, to be called with `block`, `grid` and `stream`."""
        return partial(self._launch, self._loader.function(file, kernel))

    def _launch(self, function: Any, *arguments: Any, block: Any, grid: Any, stream: Any = None) -> None:
        if self._changed is not None:
            graph, nodes = self._changed
            graph.change(next(nodes), _padded(grid), _padded(block), _bytes_of(arguments))
            return
        function(*arguments, block=block, grid=grid, stream=stream)
        if self._recorded is not None:
            self._recorded.append(_last_kernel(stream.handle, _padded(grid), _padded(block), _bytes_of(arguments)))

    @contextmanager
    def capturing(self, stream: Any) -> Iterator[Graph]:
        """Capture all that is given to `stream` inside; the graph is ready after the block.

        Raises:
            DeviceError: something inside cannot be captured. The stream is usable again; nothing inside has run.
        """
        graph = Graph()
        # Memory that Python's garbage collector freed meanwhile would end the capture.
        collecting = gc.isenabled()
        gc.disable()
        made = ctypes.c_void_p()
        try:
            call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream.handle), CAPTURE_THREAD_LOCAL)
            self._recorded = graph.nodes
            yield graph
        except BaseException:
            _end_capture(stream.handle)
            raise
        else:
            call("cuStreamEndCapture", ctypes.c_void_p(stream.handle), ctypes.byref(made))
        finally:
            self._recorded = None
            if collecting:
                gc.enable()
        graph.instantiate(made)

    @contextmanager
    def changing(self, graph: Graph) -> Iterator[None]:
        """Let the launches inside, the same kernels as were captured, change the graph's arguments instead.

        Raises:
            DeviceError: other launches than were captured.
        """
        nodes = iter(graph.nodes)
        self._changed = (graph, nodes)
        try:
            yield
        except StopIteration:
            raise DeviceError("more kernels than the graph has") from None
        finally:
            self._changed = None
        if next(nodes, None) is not None:
            raise DeviceError("fewer kernels than the graph has")


class Graph:
    """An executable graph. `RecordingLoader.capturing` makes it.

    Attributes:
        nodes: the launches of our kernels, in their order.
    """

    def __init__(self) -> None:
        self.nodes: list[KernelNode] = []
        self._graph = ctypes.c_void_p()
        self._executable = ctypes.c_void_p()

    def instantiate(self, graph: ctypes.c_void_p) -> None:
        """Make it executable from a CUgraph, which it then owns."""
        self._graph = graph
        call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_uint64(0))

    def change(
        self, node: KernelNode, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[bytes, ...]
    ) -> None:
        """Set what later launches of the graph call a kernel with; nothing is called when nothing changed."""
        if (grid, block, arguments) == (node.grid, node.block, node.arguments):
            return
        if [len(part) for part in arguments] != [len(part) for part in node.arguments]:
            raise DeviceError("a launch of another kernel than the graph has in this place")
        buffers = [ctypes.create_string_buffer(part, len(part)) for part in arguments]
        pointers = (ctypes.c_void_p * len(buffers))(*(ctypes.addressof(buffer) for buffer in buffers))
        params = KernelNodeParams(
            func=node.function, shared_bytes=node.shared_bytes, grid=grid, block=block, kernel_params=pointers
        )
        call(
            "cuGraphExecKernelNodeSetParams",
            self._executable,
            ctypes.c_void_p(node.handle),
            ctypes.byref(params),
        )
        node.grid, node.block, node.arguments = grid, block, arguments

    def launch(self, stream: Any) -> None:
        """Give the whole graph to a stream."""
        call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream.handle))

    def close(self) -> None:
        """Free it; work that was given to streams goes on. Doing it twice is fine."""
        for name, handle in (("cuGraphExecDestroy", self._executable), ("cuGraphDestroy", self._graph)):
            if handle:
                call(name, handle)
        self._executable, self._graph = ctypes.c_void_p(), ctypes.c_void_p()


def _end_capture(stream: int) -> None:
    """End a capture that failed, whatever the driver says of it."""
    made = ctypes.c_void_p()
    try:
        call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(made))
    except DeviceError:
        return
    if made:
        call("cuGraphDestroy", made)


def _last_kernel(
    stream: int, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[bytes, ...]
) -> KernelNode:
    """Return the node that was just captured: the one that the stream's next work would wait for."""
    status, count = ctypes.c_int(), ctypes.c_size_t()
    number, graph, nodes = ctypes.c_uint64(), ctypes.c_void_p(), ctypes.POINTER(ctypes.c_void_p)()
    call(
        "cuStreamGetCaptureInfo_v2",
        ctypes.c_void_p(stream),
        *map(ctypes.byref, (status, number, graph, nodes, count)),
    )
    if count.value != 1:
        raise DeviceError(f"{count.value} nodes follow a launch: the stream does not capture, or another joined it")
    params = KernelNodeParams()
    handle = nodes[0]
    call("cuGraphKernelNodeGetParams", ctypes.c_void_p(handle), ctypes.byref(params))
    return KernelNode(int(handle), int(params.func), int(params.shared_bytes), grid, block, arguments)


def _padded(size: Any) -> tuple[int, ...]:
    return (*map(int, size), 1, 1)[:3]


def _bytes_of(arguments: tuple[Any, ...]) -> tuple[bytes, ...]:
    return tuple(np.asarray(argument).tobytes() for argument in arguments)
