"""Graphs by capture: the stand-in answers as the CUDA driver does.

The driver is called through ctypes. Tests of what only the stand-in does (counts, texts, refusals of its own) say so.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metro_edge.cuda.arrays import DeviceBuffer, DeviceFrame
from metro_edge.cuda.preprocess import Preprocess
from tests.metro_edge.cuda.capturing import (
    ACTIVE,
    GLOBAL,
    HOST,
    ILLEGAL_STATE,
    IMPLICIT,
    INVALIDATED,
    ISOLATION,
    KERNEL,
    MEMCPY,
    MEMSET,
    NON_BLOCKING,
    NONE,
    RELAXED,
    THREAD_LOCAL,
    UNSUPPORTED,
    VOID,
    WRONG_THREAD,
    CropArguments,
    Driver,
    HostFunction,
    KernelParameters,
    captured,
    handle,
    in_thread,
    no_collection,
    pinned,
)
from tests.metro_edge.cuda.test_preprocess import SPEC, noise
from tests.virtual_gpu.device import Device, on_stand_in


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
