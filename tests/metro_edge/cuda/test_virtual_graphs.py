"""Graphs by capture, host functions and what pointers are: the stand-in answers as the CUDA driver does.

The driver is called through ctypes. Tests of what only the stand-in does (counts, texts, refusals of its own) say so.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metro_edge.cuda.arrays import MAX_PEOPLE, DeviceBuffer, DeviceFrame
from metro_edge.cuda.preprocess import BOX, FRAME, TARGET, Preprocess
from tests.metro_edge.cuda.test_preprocess import SPEC, noise
from tests.metro_edge.cuda.test_virtual_gpu import child
from tests.virtual_gpu.device import Device, on_stand_in

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


@pytest.fixture
def driver(device: Device) -> Driver:
    return Driver()


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


@pytest.mark.gpu
@pytest.mark.parametrize(("version", "packed"), [("", False), ("_v2", False), ("_v2", True)])
def test_a_kernel_in_a_graph_takes_new_arguments(device: Device, driver: Driver, version: str, packed: bool) -> None:
    stream = device.driver.Stream(NON_BLOCKING)
    boxes = np.array([(10, 8, 40, 60), (33.3, 20.7, 17.9, 31.2)])
    pictures = [DeviceBuffer.of(noise(97, 131, seed)) for seed in (1, 2)]
    images = DeviceBuffer((2, 3, SPEC.image_size, SPEC.image_size), np.float32)
    preprocess = Preprocess(SPEC, device.loader)
    expected = []
    for picture in pictures:
        preprocess(DeviceFrame(picture.pointer, 131, 97), boxes, images)
        expected.append(images.get())
    assert not np.array_equal(*expected)
    device.driver.memset_d8(images.pointer, 0, expected[0].nbytes)
    device.wait()
    with captured(driver, stream) as graph:
        assert driver.info(stream) == (ACTIVE, [])
        preprocess(DeviceFrame(pictures[0].pointer, 131, 97), boxes, images, stream)
    assert driver.types(graph.graph) == [KERNEL]
    assert not images.get().any()  # nothing ran

    def result() -> NDArray[np.float32]:
        device.driver.memset_d8(images.pointer, 0, expected[0].nbytes)
        device.wait()
        graph.launch()
        stream.synchronize()
        return images.get()

    np.testing.assert_array_equal(result(), expected[0])
    np.testing.assert_array_equal(result(), expected[0])
    parameters = KernelParameters(kernel=77, context=78)
    node = c_void_p(graph.nodes[0])
    driver.must(f"cuGraphKernelNodeGetParams{version}", node, byref(parameters))
    assert (parameters.kernel == 77) == (version == "")  # the first layout ends before it
    assert list(parameters.grid) == [2, 7, 2]
    assert list(parameters.block) == [32, 8, 1]
    arguments = CropArguments(parameters)
    assert arguments.frame == pictures[0].pointer
    arguments.frame = pictures[1].pointer
    arguments.give(packed)
    driver.must(f"cuGraphExecKernelNodeSetParams{version}", graph.exec, node, byref(parameters))
    np.testing.assert_array_equal(result(), expected[1])
    again = KernelParameters()  # the graph itself has the old ones
    driver.must(f"cuGraphKernelNodeGetParams{version}", node, byref(again))
    assert CropArguments(again).frame == pictures[0].pointer
    graph.close()


@pytest.mark.gpu
def test_new_arguments_leave_earlier_launches_alone(device: Device, driver: Driver) -> None:
    stream, boxes = device.driver.Stream(NON_BLOCKING), np.array([(10.0, 8, 40, 60)])
    pictures = [DeviceBuffer.of(noise(97, 131, seed)) for seed in (1, 2)]
    images = DeviceBuffer((1, 3, SPEC.image_size, SPEC.image_size), np.float32)
    results = [device.driver.pagelocked_empty(images.shape, "f4") for _ in pictures]
    preprocess = Preprocess(SPEC, device.loader)
    preprocess(DeviceFrame(pictures[1].pointer, 131, 97), boxes, images)
    second = images.get()
    preprocess(DeviceFrame(pictures[0].pointer, 131, 97), boxes, images)
    first = images.get()
    device.wait()
    with captured(driver, stream) as graph:
        preprocess(DeviceFrame(pictures[0].pointer, 131, 97), boxes, images, stream)
    parameters = KernelParameters()
    driver.must("cuGraphKernelNodeGetParams_v2", c_void_p(graph.nodes[0]), byref(parameters))
    arguments = CropArguments(parameters)
    arguments.frame = pictures[1].pointer
    arguments.give(packed=False)
    graph.launch()
    device.driver.memcpy_dtoh_async(results[0], images.pointer, stream)
    driver.must("cuGraphExecKernelNodeSetParams_v2", graph.exec, c_void_p(graph.nodes[0]), byref(parameters))
    arguments.frame = 8  # the driver has its own copy
    graph.launch()
    device.driver.memcpy_dtoh_async(results[1], images.pointer, stream)
    stream.synchronize()
    np.testing.assert_array_equal(results[0], first)
    np.testing.assert_array_equal(results[1], second)
    graph.close()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
def test_copies_fills_and_host_functions_are_captured(device: Device, driver: Driver, mode: int) -> None:
    cuda, stream = device.driver, device.driver.Stream()
    source, back, seen = pinned(device, range(8)), pinned(device, np.zeros(8)), []
    memory, other = cuda.mem_alloc(32), cuda.mem_alloc(32)
    look = HostFunction(lambda data: seen.append((data, float(back[7]))))
    graph, exec = c_void_p(), c_void_p()
    with no_collection():
        driver.begin(stream, mode)
        cuda.memcpy_htod_async(memory, source, stream)
        cuda.memcpy_dtod_async(other, memory, 32, stream)
        cuda.memset_d32_async(int(other), 0, 1, stream)
        cuda.memcpy_dtoh_async(back, other, stream)
        driver.must("cuLaunchHostFunc", handle(stream), look, c_void_p(5))
        code, graph = driver.end(stream)
    assert code == 0
    assert driver.types(graph) == [MEMCPY, MEMCPY, MEMSET, MEMCPY, HOST]
    device.wait()
    assert not back.any()
    assert not seen
    driver.must("cuGraphInstantiateWithFlags", byref(exec), graph, c_uint64(0))
    driver.must("cuGraphDestroy", graph)  # no longer needed
    counted = "bytes to device", "bytes to host", "bytes within device"
    before = [device.count(name) for name in counted] if on_stand_in() else []
    for first in (1, 100):
        source[:] = np.arange(first, first + 8)
        driver.must("cuGraphLaunch", exec, handle(stream))
        stream.synchronize()
        np.testing.assert_array_equal(back, [0, *source[1:]])
    assert seen == [(5, 8.0), (5, 107.0)]
    if on_stand_in():
        assert [device.count(name) - old for name, old in zip(counted, before, strict=True)] == [64, 64, 64]
    driver.must("cuGraphExecDestroy", exec)


def unsafe(name: str) -> Callable[[Device, Driver, Any], int]:
    """A call that no capture can see."""

    def call(device: Device, driver: Driver, stream: Any) -> int:
        made = c_uint64()
        return int(getattr(driver, name)(byref(made), c_size_t(64), 0))

    return call


REFUSED: dict[str, tuple[Callable[[Device, Driver, Any], int], set[int]]] = {
    "synchronize": (lambda device, driver, stream: driver.cuStreamSynchronize(handle(stream)), {UNSUPPORTED}),
    "query": (lambda device, driver, stream: driver.cuStreamQuery(handle(stream)), {UNSUPPORTED}),
    "context": (lambda device, driver, stream: driver.cuCtxSynchronize(), {UNSUPPORTED}),
    "memory": (unsafe("cuMemAlloc_v2"), {UNSUPPORTED}),
    "host memory": (unsafe("cuMemHostAlloc"), {UNSUPPORTED}),
    "default stream": (
        lambda device, driver, stream: driver.cuMemsetD8Async(c_uint64(SCRATCH[0]), 0, c_size_t(8), None),
        {IMPLICIT},
    ),
    "copy that waits": (
        lambda device, driver, stream: driver.cuMemcpyHtoD_v2(c_uint64(SCRATCH[0]), b"12345678", c_size_t(8)),
        {UNSUPPORTED, IMPLICIT},
    ),
    "event outside": (
        lambda device, driver, stream: driver.cuStreamWaitEvent(handle(stream), c_void_p(SCRATCH[1]), 0),
        {ISOLATION},
    ),
}
SCRATCH: list[Any] = [0, 0]  # device memory, an event


@pytest.mark.gpu
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_capture_forbids_makes_it_void(device: Device, driver: Driver, name: str) -> None:
    stream, other = device.driver.Stream(), device.driver.Stream()
    memory, event = device.driver.mem_alloc(64), c_void_p()
    driver.must("cuEventCreate", byref(event), 2)
    driver.must("cuEventRecord", event, handle(other))
    SCRATCH[:] = int(memory), event.value
    call, codes = REFUSED[name]
    device.wait()
    state = c_int()
    with no_collection():
        driver.begin(stream, GLOBAL)
        assert driver.cuStreamIsCapturing(None, byref(state)) == IMPLICIT  # which harms nothing
        driver.must("cuStreamIsCapturing", handle(stream), byref(state))
        assert state.value == ACTIVE
        driver.must("cuMemsetD8Async", c_uint64(int(memory)), 0, c_size_t(64), handle(stream))
        assert call(device, driver, stream) in codes
        driver.cuStreamIsCapturing(handle(stream), byref(state))
        assert state.value == VOID
        assert driver.cuMemsetD8Async(c_uint64(int(memory)), 0, c_size_t(64), handle(stream)) == INVALIDATED
        code, graph = driver.end(stream)
    assert (code, graph.value) == (INVALIDATED, None)
    driver.must("cuStreamIsCapturing", handle(stream), byref(state))
    assert state.value == NONE
    stream.synchronize()  # the stream works again
    driver.must("cuEventDestroy_v2", event)


@pytest.mark.gpu
def test_a_relaxed_capture_allows_memory(device: Device, driver: Driver) -> None:
    stream, pointer = device.driver.Stream(NON_BLOCKING), c_uint64()
    with no_collection():
        driver.begin(stream, RELAXED)
        driver.must("cuMemAlloc_v2", byref(pointer), c_size_t(64))
        driver.must("cuMemsetD8Async", pointer, 3, c_size_t(64), handle(stream))
        code, graph = driver.end(stream)
    assert code == 0
    driver.must("cuGraphDestroy", graph)
    driver.must("cuMemFree_v2", pointer)


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


@pytest.mark.gpu
def test_other_threads_and_a_capture(device: Device, driver: Driver) -> None:
    stream, pointer = device.driver.Stream(NON_BLOCKING), c_uint64()

    def allocate() -> int:
        return int(driver.cuMemAlloc_v2(byref(pointer), c_size_t(64)))

    with no_collection():
        driver.begin(stream, THREAD_LOCAL)
        assert in_thread(allocate) == 0
        assert in_thread(lambda: driver.end(stream)[0]) == WRONG_THREAD
        assert driver.end(stream)[0] == ILLEGAL_STATE
        driver.begin(stream, GLOBAL)
        assert in_thread(allocate) == UNSUPPORTED
        assert driver.end(stream)[0] == INVALIDATED
        driver.begin(stream, RELAXED)
        code, graph = in_thread(lambda: driver.end(stream))
    assert code == 0
    driver.must("cuGraphDestroy", graph)
    driver.must("cuMemFree_v2", pointer)


@pytest.mark.gpu
def test_host_functions_run_in_order(device: Device, driver: Driver) -> None:
    cuda, stream = device.driver, device.driver.Stream(NON_BLOCKING)
    back, memory, seen = pinned(device, np.zeros(8)), device.driver.mem_alloc(32), []
    look = HostFunction(lambda data: seen.append((data, float(back[0]))))
    for value in (1, 2, 3):
        cuda.memset_d32_async(int(memory), int(np.float32(value).view("u4")), 8, stream)
        cuda.memcpy_dtoh_async(back, memory, stream)
        driver.must("cuLaunchHostFunc", handle(stream), look, c_void_p(value))
    stream.synchronize()
    assert seen == [(1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
def test_other_threads_go_on_while_a_host_function_runs(device: Device, driver: Driver, graph: bool) -> None:
    cuda, stream, other = device.driver, device.driver.Stream(), device.driver.Stream(NON_BLOCKING)
    back, memory, scratch = pinned(device, np.zeros(8)), cuda.mem_alloc(32), cuda.mem_alloc(32)
    entered, leave, order = threading.Event(), threading.Event(), []

    def host(data: int | None) -> None:
        entered.set()
        assert leave.wait(60)
        order.append(("host", float(back[0])))

    function, after = HostFunction(host), HostFunction(lambda data: order.append(("after", float(back[0]))))
    device.wait()
    made = None
    if graph:
        with captured(driver, stream) as made:
            driver.must("cuLaunchHostFunc", handle(stream), function, None)

    def first() -> None:
        if made:
            made.launch()
        else:
            driver.must("cuLaunchHostFunc", handle(stream), function, None)
        driver.must("cuStreamSynchronize", handle(stream))

    thread, _ = thread_of(first)
    assert entered.wait(60)
    assert not stream.is_done()
    cuda.memset_d32_async(int(scratch), 1, 8, other)
    other.synchronize()
    # PyCUDA holds Python's lock in some of these; none may wait, on this stream or on one that waits for it.
    cuda.memset_d32_async(int(memory), int(np.float32(7).view("u4")), 8, stream)
    cuda.memcpy_dtoh_async(back, memory, stream)
    driver.must("cuLaunchHostFunc", handle(stream), after, None)
    cuda.memset_d32_async(int(scratch), 2, 8)
    late = cuda.Event().record(stream)
    assert not late.query()
    assert order == []
    leave.set()
    late.synchronize()
    thread.join(60)
    device.wait()
    assert order == [("host", 0.0), ("after", 7.0)]
    if made:
        made.close()


@pytest.mark.gpu
def test_work_of_another_thread_comes_behind_a_whole_graph(device: Device, driver: Driver) -> None:
    cuda, stream = device.driver, device.driver.Stream(NON_BLOCKING)
    back, memory = np.zeros(1, "u4"), cuda.mem_alloc(4)
    entered, leave = threading.Event(), threading.Event()
    function = HostFunction(lambda data: (entered.set(), leave.wait(60), None)[-1])
    with captured(driver, stream) as graph:
        driver.must("cuLaunchHostFunc", handle(stream), function, None)
        cuda.memset_d32_async(int(memory), 7, 1, stream)

    def launch_and_wait() -> None:
        graph.launch()
        driver.must("cuStreamSynchronize", handle(stream))

    thread, _ = thread_of(launch_and_wait)
    assert entered.wait(60)
    cuda.memset_d32_async(int(memory), 9, 1, stream)
    leave.set()
    thread.join(60)
    device.wait()
    cuda.memcpy_dtoh(back, memory)
    assert back[0] == 9
    graph.close()


@pytest.mark.gpu
def test_events_by_handle_order_streams(device: Device, driver: Driver) -> None:
    cuda = device.driver
    first, second = cuda.Stream(NON_BLOCKING), cuda.Stream(NON_BLOCKING)
    source, back, memory, event = (
        pinned(device, np.ones(8)),
        pinned(device, np.zeros(8)),
        cuda.mem_alloc(32),
        c_void_p(),
    )
    driver.must("cuEventCreate", byref(event), 2)
    cuda.memcpy_htod_async(memory, source, first)
    driver.must("cuEventRecord", event, handle(first))
    driver.must("cuStreamWaitEvent", handle(second), event, 0)
    cuda.memcpy_dtoh_async(back, memory, second)
    second.synchronize()
    np.testing.assert_array_equal(back, source)
    driver.must("cuEventDestroy_v2", event)


@pytest.mark.gpu
def test_what_pointers_are(device: Device, driver: Driver) -> None:
    on_device, on_host, context = device.driver.mem_alloc(4096), pinned(device, np.zeros(16)), c_void_p()
    driver.must("cuCtxGetCurrent", byref(context))

    def ask(attribute: int, pointer: int) -> tuple[int, int]:
        value = c_uint64()
        return driver.cuPointerGetAttribute(byref(value), attribute, c_uint64(pointer)), value.value

    base, host = int(on_device), on_host.ctypes.data
    for pointer, kind in ((base + 40, 2), (host, 1)):
        assert ask(1, pointer) == (0, context.value)
        assert ask(2, pointer) == (0, kind)
        assert ask(3, pointer) == (0, pointer)
        assert ask(9, pointer) == (0, 0)
    assert ask(4, host) == (0, host)
    assert ask(4, base)[0] == INVALID_VALUE
    assert ask(11, base + 40) == (0, base)
    assert ask(12, base + 40) == (0, 4096)
    plain = np.zeros(1 << 20, "u1")
    assert ask(2, plain.ctypes.data)[0] == INVALID_VALUE
    freed = c_uint64()
    driver.must("cuMemAlloc_v2", byref(freed), c_size_t(1 << 26))
    driver.must("cuMemFree_v2", freed)
    assert ask(2, freed.value)[0] == INVALID_VALUE
    integrated = c_int(-1)
    driver.must("cuDeviceGetAttribute", byref(integrated), 18, 0)
    assert integrated.value in (0, 1)


@pytest.mark.gpu
def test_the_context_of_a_stream(device: Device, driver: Driver) -> None:
    own, stream, found = c_void_p(), device.driver.Stream(), c_void_p()
    driver.must("cuCtxGetCurrent", byref(own))
    other, foreign, memory, value = c_void_p(), c_void_p(), c_uint64(), c_void_p()
    driver.must("cuCtxCreate_v2", byref(other), 0, 0)
    try:
        driver.must("cuStreamCreate", byref(foreign), 0)
        driver.must("cuMemAlloc_v2", byref(memory), c_size_t(64))
        driver.must("cuStreamGetCtx", handle(stream), byref(found))
        assert found.value == own.value
        driver.must("cuCtxSetCurrent", own)
        driver.must("cuStreamGetCtx", foreign, byref(found))
        assert found.value == other.value != own.value
        driver.must("cuPointerGetAttribute", byref(value), 1, memory)
        assert value.value == other.value
        driver.must("cuCtxPushCurrent_v2", other)
        driver.must("cuMemFree_v2", memory)
        driver.must("cuCtxPopCurrent_v2", None)
    finally:
        driver.must("cuCtxDestroy_v2", other)
    driver.must("cuStreamGetCtx", None, byref(found))
    assert found.value == own.value


CHILD = """
from tests.metro_edge.cuda.test_virtual_graphs import *
driver, stream = Driver(), cuda.Stream()
memory, host = cuda.to_device(np.ones(8, "f4")), cuda.pagelocked_empty(8, "f4")
kernel("twice")
def double(at=None):
    kernel("twice")(at or memory, np.int32(8), block=(32, 1, 1), stream=stream)
"""


@pytest.mark.gpu
def test_arguments_come_back_in_the_form_they_went_in() -> None:
    """As cuda.h says; the launchers of PyCUDA pack them."""
    text = child(
        CHILD
        + """
with captured(driver, stream) as graph:
    double()
    pointer, count = c_uint64(int(memory)), c_int(8)
    single = (c_void_p * 2)(ctypes.addressof(pointer), ctypes.addressof(count))
    function, parameters = KernelParameters(), KernelParameters()
    driver.cuGraphKernelNodeGetParams_v2(c_void_p(driver.info(stream)[1][0]), byref(function))
    driver.must("cuLaunchKernel", c_void_p(function.function), 1, 1, 1, 32, 1, 1, 0, handle(stream), single, None)
driver.must("cuGraphKernelNodeGetParams_v2", c_void_p(graph.nodes[0]), byref(parameters))
print("packed", bool(function.extra), bool(function.single))
print("single", bool(parameters.extra), c_int.from_address(parameters.single[1]).value)
graph.launch(); device.wait(); print(cuda.from_device(memory, 8, "f4")[7])
"""
    )
    assert "packed True False\nsingle False 8\n4.0" in text, text


@pytest.mark.gpu
def test_waiting_for_a_host_function_with_its_lock_is_a_deadlock() -> None:
    """PyCUDA frees memory, which waits, without releasing Python's lock."""
    text = child(CHILD + """
import time
entered = threading.Event()
f = HostFunction(lambda data: (entered.set(), time.sleep(3)))
thread, _ = thread_of(lambda: driver.cuLaunchHostFunc(handle(stream), f, None))
entered.wait()
memory.free()
print("not here")
""", VIRTUAL_GPU_WAIT_S="1")  # fmt: skip
    assert "deadlock: does a thread" in text, text
    assert "not here" not in text


@pytest.mark.gpu
@pytest.mark.parametrize("lazy", ["0", "1"])
def test_launches_of_a_graph_are_counted(lazy: str) -> None:
    text = child(CHILD + """
with captured(driver, stream) as graph:
    double(); double()
print("captured", device.count("kernel twice"))
graph.launch(); graph.launch(cuda.Stream()); device.wait()
print("launched", device.count("kernel twice"), cuda.from_device(memory, 8, "f4")[0], device.count("missing"))
""", VIRTUAL_GPU_LAZY=lazy)  # fmt: skip
    assert "captured 0\nlaunched 4 16.0 0" in text, text


@pytest.mark.gpu
@pytest.mark.parametrize(("code", "words"), [
    ("with captured(driver, stream) as graph: double()\nmemory.free(); print(driver.cuGraphLaunch(graph.exec, None))",
     "argument 0 points at no device memory\n700"),
    ("driver.begin(stream); cuda.memcpy_htod_async(memory, np.ones(8, 'f4'), stream)", "not page-locked"),
    ("driver.begin(stream); cuda.Event().record(stream)", "an event in a capture"),
    ("driver.begin(stream); print(driver.cuStreamBeginCapture_v2(handle(stream), 0))", "401"),
    ("print(driver.cuStreamBeginCapture_v2(None, 0))", "capture of the default stream"),
    ("print(driver.end(stream)[0])", "401"),
    ("with captured(driver, stream) as graph: double()\nx = graph.exec; graph.close(); driver.cuGraphLaunch(x, None)",
     "launch of what is no graph"),
    ("with captured(driver, stream) as graph: double()\ndriver.cuGraphDestroy(graph.graph)\n"
     "print(driver.cuGraphExecKernelNodeSetParams(graph.exec, c_void_p(graph.nodes[0]), byref(KernelParameters())))",
     "no kernel of this graph, or was destroyed\n1"),
    ("with captured(driver, stream) as graph: double()\np = KernelParameters(); n = c_void_p(graph.nodes[0])\n"
     "driver.cuGraphKernelNodeGetParams_v2(n, byref(p)); p.block[0] = 1025\n"
     "print(driver.cuGraphExecKernelNodeSetParams_v2(graph.exec, n, byref(p)))", "a block of 1025 x 1 x 1\n1"),
    ("with captured(driver, stream) as graph: double()\ndriver.begin(stream)\n"
     "print(driver.cuGraphLaunch(graph.exec, handle(stream)))", "a graph launched in a capture"),
    ("f = HostFunction(lambda data: print('in', driver.cuCtxSynchronize()))\n"
     "driver.cuLaunchHostFunc(handle(stream), f, None); stream.synchronize()", "in 800"),
    ("driver.begin(stream, 2); print(driver.cuMemFree_v2(c_uint64(int(memory))), driver.end(stream)[0])", "0 0"),
    ("driver.begin(stream, 1); print(driver.cuMemFree_v2(c_uint64(int(memory))), driver.end(stream)[0])", "900 901"),
    ("driver.begin(stream, 1); m = c_int(2); driver.cuThreadExchangeStreamCaptureMode(byref(m))\n"
     "print(m.value, driver.cuMemAlloc_v2(byref(c_uint64()), c_size_t(8)), driver.end(stream)[0])", "0 0 0"),
    ("driver.begin(stream); print(driver.cuModuleLoadData(byref(c_void_p()), b'x' * 99), driver.end(stream)[0])",
     "900 901"),
])  # fmt: skip
def test_misuse_of_graphs_is_an_error(code: str, words: str) -> None:
    text = child(f"{CHILD}\nimport sys, os; sys.stdout = os.fdopen(os.dup(2), 'w', buffering=1)\n{code}\n")
    assert words in text, text
