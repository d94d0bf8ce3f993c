"""Host functions, events, pointers and contexts of streams: the stand-in answers as the CUDA driver does.

See test_virtual_graphs.py.
"""

from __future__ import annotations

import threading
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p

import numpy as np
import pytest

from tests.metro_edge.cuda.capturing import (
    INVALID_VALUE,
    NON_BLOCKING,
    Driver,
    HostFunction,
    captured,
    handle,
    pinned,
    thread_of,
)
from tests.metro_edge.cuda.test_virtual_gpu import child
from tests.virtual_gpu.device import Device


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
from tests.metro_edge.cuda.capturing import *
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
import threading, time
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
