"""The driver by ctypes, captures and graphs: what tests of the stand-in's graphs and streams share."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.cuda.arrays import MAX_PEOPLE
from metro_edge.cuda.preprocess import BOX, FRAME, TARGET
from tests.virtual_gpu.device import Device

GLOBAL, THREAD_LOCAL, RELAXED = range(3)
NONE, ACTIVE, VOID = range(3)  # of a capture
KERNEL, MEMCPY, MEMSET, HOST = range(4)  # nodes
INVALID_VALUE, INVALID_HANDLE, NOT_READY = 1, 400, 600
ILLEGAL_STATE, UNSUPPORTED, INVALIDATED, ISOLATION, IMPLICIT, WRONG_THREAD = 401, 900, 901, 905, 906, 908
NON_BLOCKING = 1
HostFunction = ctypes.CFUNCTYPE(None, c_void_p)
FRAME_ARGUMENT = 3  # of `crop_boxes`: the address of the frame


class KernelParameters(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2; the first layout is this one without the last two fields."""

    _fields_ = [
        ("function", c_void_p), ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint),
        ("single", ctypes.POINTER(c_void_p)), ("extra", ctypes.POINTER(c_void_p)),
        ("kernel", c_void_p), ("context", c_void_p),
    ]  # fmt: skip


class Driver:
    """The driver's functions by name; each returns its error code, `must` raises for one that is not 0."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")  # the stand-in where it is loaded: it has the name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def must(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        assert code == 0, f"{name}: {code}"

    def begin(self, stream: Any, mode: int = THREAD_LOCAL) -> None:
        self.must("cuStreamBeginCapture_v2", handle(stream), mode)

    def end(self, stream: Any) -> tuple[int, c_void_p]:
        graph = c_void_p()
        return self._library.cuStreamEndCapture(handle(stream), byref(graph)), graph

    def info(self, stream: Any) -> tuple[int, list[int]]:
        """Return the capture's state and the nodes that the next one will depend on."""
        state, nodes, count = c_int(), ctypes.POINTER(c_void_p)(), c_size_t()
        self.must("cuStreamGetCaptureInfo_v2", handle(stream), byref(state), None, None, byref(nodes), byref(count))
        return state.value, [nodes[i] or 0 for i in range(count.value)]

    def types(self, graph: c_void_p) -> list[int]:
        count = c_size_t()
        self.must("cuGraphGetNodes", graph, None, byref(count))
        nodes, kinds = (c_void_p * count.value)(), (c_int * count.value)()
        self.must("cuGraphGetNodes", graph, nodes, byref(count))
        for i, node in enumerate(nodes):
            self.must("cuGraphNodeGetType", c_void_p(node), byref(kinds, 4 * i))
        return list(kinds)


def handle(stream: Any) -> c_void_p:
    return c_void_p(stream.handle)


class Graph:
    def __init__(self, driver: Driver, stream: Any) -> None:
        self.driver, self.graph, self.exec = driver, c_void_p(), c_void_p()
        self.nodes: list[int] = []
        self._stream = stream

    def launch(self, stream: Any = None) -> None:
        self.driver.must("cuGraphLaunch", self.exec, handle(stream or self._stream))

    def close(self) -> None:
        self.driver.must("cuGraphExecDestroy", self.exec)
        self.driver.must("cuGraphDestroy", self.graph)


@contextmanager
def no_collection() -> Iterator[None]:
    """Python must free no device memory within a capture."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def captured(driver: Driver, stream: Any) -> Iterator[Graph]:
    """Capture what the block gives to the stream; afterwards the graph can be launched."""
    made = Graph(driver, stream)
    with no_collection():
        driver.begin(stream)
        yield made
        made.nodes = driver.info(stream)[1]
        code, made.graph = driver.end(stream)
    assert code == 0
    driver.must("cuGraphInstantiateWithFlags", byref(made.exec), made.graph, c_uint64(0))


def pinned(device: Device, values: Any) -> NDArray[np.float32]:
    values = np.asarray(values, "f4")
    memory: NDArray[np.float32] = device.driver.pagelocked_empty(values.shape, "f4")
    memory[...] = values
    return memory


BUFFER_POINTER, BUFFER_SIZE = 1, 2  # keys of `extra`
SIZES = np.array([MAX_PEOPLE * BOX.itemsize, FRAME.itemsize, TARGET.itemsize, 8, 8, 8])  # of `crop_boxes`


class CropArguments:
    """The arguments of a node with `crop_boxes`, copied so that they can be changed and set again.

    The driver gives them back in the form they came in, and PyCUDA gives them packed.
    """

    def __init__(self, parameters: KernelParameters) -> None:
        self.parameters = parameters
        ends = np.cumsum(SIZES[:-1])
        self.offsets = [0, *(int(end + 7) // 8 * 8 for end in ends)]
        self.buffer = (ctypes.c_char * (self.offsets[-1] + 8))()
        self.size = c_size_t(len(self.buffer))
        if parameters.single:
            for i in range(len(SIZES)):
                ctypes.memmove(self._at(i), parameters.single[i], int(SIZES[i]))
            return
        given = {parameters.extra[i]: parameters.extra[i + 1] for i in (0, 2)}
        assert c_size_t.from_address(given[BUFFER_SIZE] or 0).value >= len(self.buffer)
        ctypes.memmove(self.buffer, given[BUFFER_POINTER] or 0, len(self.buffer))

    def _at(self, i: int) -> int:
        return ctypes.addressof(self.buffer) + self.offsets[i]

    @property
    def frame(self) -> int:
        return c_uint64.from_address(self._at(FRAME_ARGUMENT)).value

    @frame.setter
    def frame(self, address: int) -> None:
        c_uint64.from_address(self._at(FRAME_ARGUMENT)).value = address

    def give(self, packed: bool) -> None:
        """Let the parameters point here."""
        self.parameters.single = self.parameters.extra = None
        if packed:
            size = ctypes.addressof(self.size)
            self.parameters.extra = (c_void_p * 5)(BUFFER_POINTER, self._at(0), BUFFER_SIZE, size, None)
        else:
            self.parameters.single = (c_void_p * len(SIZES))(*map(self._at, range(len(SIZES))))


def thread_of(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start another thread in this one's context; returns it and where its result will be."""
    results: list[Any] = []
    driver, context = Driver(), c_void_p()
    driver.must("cuCtxGetCurrent", byref(context))

    def run() -> None:
        driver.must("cuCtxSetCurrent", context)
        results.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def in_thread(work: Callable[[], Any]) -> Any:
    """Return what a function returns in another thread with the context."""
    thread, results = thread_of(work)
    thread.join(60)
    return results[0]
