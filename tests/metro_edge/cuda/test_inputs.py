"""What callers hand over: streams and arrays of other libraries; and graphs that are given other kernels."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref

import numpy as np
import pytest

from metro_edge.cuda import driver
from metro_edge.cuda.arrays import DeviceBuffer, DeviceFrame
from metro_edge.cuda.dlpack import imported
from metro_edge.cuda.graphs import RecordingLoader
from metro_edge.cuda.inputs import stream_handle
from metro_edge.cuda.overlay import MeshOverlay, SkeletonOverlay
from metro_edge.cuda.postprocess import VertexNormals
from metro_edge.cuda.preprocess import Preprocess
from metro_edge.cuda.smoothing import OneEuro
from metro_edge.errors import DeviceError, UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.postprocess import Intrinsics
from tests.metro_edge.cuda.session import BOXES, HEIGHT, WIDTH, OnGpu, compare, picture

pytestmark = pytest.mark.gpu


def test_streams_of_other_libraries():
    class Torch:
        cuda_stream = 7

    class Numba:
        handle = ctypes.c_void_p(8)

    class NumbaDefault:
        handle = ctypes.c_void_p(0)

    class Protocol:
        def __cuda_stream__(self):
            return (0, 9)

    streams = (None, 5, np.int64(6), Torch(), Numba(), NumbaDefault(), Protocol())
    assert [stream_handle(stream) for stream in streams] == [None, 5, 6, 7, 8, 0, 9]
    for wrong in ("0", -1, True, object()):
        with pytest.raises(UserError, match="a stream must be a CUstream handle or a stream of a CUDA library, got"):
            stream_handle(wrong)


def test_waiting_in_streams_of_libraries(made, device):
    estimator, _ = made
    stream = device.driver.Stream(1)
    pending = estimator.infer_async(picture(), BOXES)
    pending.wait_on(stream)
    back = device.driver.pagelocked_empty(pending.device.joints.shape, np.float32)
    device.driver.memcpy_dtoh_async(back, pending.device.joints.pointer, stream)
    stream.synchronize()
    np.testing.assert_array_equal(back, pending.result().joints)
    for wrong, message in ((None, "wait_on needs a stream to wait in"), ("0", "a stream must be a CUstream handle")):
        with pytest.raises(UserError, match=message):
            pending.wait_on(wrong)


@pytest.mark.parametrize("stream", [0, -1, "abc", 1.5])
def test_streams_that_an_array_cannot_name(made, stream):
    frame = OnGpu(picture().reshape(HEIGHT, -1), WIDTH, stream=stream)
    with pytest.raises(UserError, match="must name a stream by a handle or 1, got"):
        made[0](frame, BOXES)
    frame.stream = 1
    assert len(made[0](frame, BOXES)) == 3


def test_a_stream_of_another_context_that_an_array_names(made, device):
    other = device.driver.Device(0).make_context()
    stream = device.driver.Stream()
    other.pop()
    try:
        with pytest.raises(UserError, match=r"is of another CUDA context|is not usable here"):
            made[0](OnGpu(picture().reshape(HEIGHT, -1), WIDTH, stream=stream.handle), BOXES)
    finally:
        other.push()
        del stream
        other.pop()
        other.detach()


def test_kernels_that_are_not_those_of_the_graph(device, shared_bundle):
    spec = shared_bundle.spec
    loader = RecordingLoader(device.loader)
    preprocess, normals = Preprocess(spec, loader), VertexNormals(np.array([[0, 1, 2]]), 3, loader)
    frame, images = DeviceBuffer.of(picture()), DeviceBuffer((1, 3, 64, 64), np.float32)
    points, out = DeviceBuffer((1, 3, 3), np.float32), DeviceBuffer((1, 3, 3), np.float32)
    described, stream = DeviceFrame(frame.pointer, WIDTH, HEIGHT), device.driver.Stream(1)
    preprocess(described, BOXES[:1], images, stream)
    normals(points, out, stream)
    with loader.capturing(stream) as graph:
        preprocess(described, BOXES[:1], images, stream)
    with pytest.raises(DeviceError, match="more kernels than the graph has"), loader.changing(graph):
        for _ in range(2):
            preprocess(described, BOXES[:1], images, stream)
    with pytest.raises(DeviceError, match="fewer kernels than the graph has"), loader.changing(graph):
        pass
    with pytest.raises(DeviceError, match="another kernel than the graph has in this place"), loader.changing(graph):
        normals(points, out, stream)
    with pytest.raises(RuntimeError, match="mine"), loader.capturing(stream):
        raise RuntimeError("mine")
    graph.launch(stream)
    stream.synchronize()
    graph.close()
    graph.close()


@pytest.mark.parametrize(
    ("interface", "message"),
    [
        ({"shape": (4, 4), "typestr": "|u1"}, r"must be \(H, W, 3\) uint8 BGR, got \(4, 4\) uint8"),
        ({"shape": (4, 4, 3), "typestr": "<f4"}, r"got \(4, 4, 3\) float32"),
        ({"shape": (4, 4, 3), "typestr": "|u1", "mask": 1}, "a frame with a mask cannot be read"),
        ({"shape": (4, 4, 3)}, r"the frame has a __cuda_array_interface__ that cannot be read \(KeyError: 'typestr'\)"),
        ({"shape": (4, 4, 3), "typestr": "|q9"}, "cannot be read .TypeError"),
        ({"shape": (4, 4, 3), "typestr": "|u1", "data": 5}, "cannot be read .TypeError"),
        ({"shape": (4, 4, 3), "typestr": "|u1", "strides": (3, 1)}, "cannot be read .ValueError"),
    ],
)
def test_arrays_on_the_gpu_that_are_no_frames(made, interface, message):
    class Array:
        __cuda_array_interface__ = {"data": (4096, True), "version": 3, **interface}  # noqa: RUF012

    with pytest.raises(UserError, match=message):
        made[0](Array())


def test_dlpack_of_another_gpu_and_of_the_host(made, shared_bundle):
    class Elsewhere:
        def __dlpack_device__(self):
            return 2, 5

    class OnHost:
        def __init__(self, array):
            self.array = array

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

    estimator, _ = made
    with pytest.raises(UserError, match="on GPU 5, this network runs on GPU 0"):
        estimator(Elsewhere())
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        compare(estimator(OnHost(picture()), BOXES), reference(picture(), BOXES))


def test_arrays_that_other_libraries_do_not_hand_over(made):
    class Refusing:
        def __init__(self, device, capsule=None):
            self.device, self.capsule = device, capsule

        def __dlpack_device__(self):
            return self.device

        def __dlpack__(self, **options):
            if self.capsule is None:
                raise BufferError("mine")
            return self.capsule

    for frame, message in [
        (Refusing((2, 0)), "Refusing hands its memory over to nobody: mine"),
        (Refusing((2, 0), 5), "Refusing.__dlpack__ returned int, no DLPack capsule"),
        (Refusing((10, 0)), "NumPy cannot read the Refusing by DLPack: mine"),
        (Refusing(None), "Refusing does not say which device it is on"),
    ]:
        with pytest.raises(UserError, match=message):
            made[0](frame, BOXES)


class Producer:
    """As PyTorch does it: whoever reads waits for the stream that fills the array."""

    def __init__(self, buffer: DeviceBuffer, stream):
        self.buffer, self.stream, self.asked = buffer, stream, []

    def __dlpack_device__(self):
        return self.buffer.__dlpack_device__()

    def __dlpack__(self, *, stream=None, **options):
        self.asked.append(stream)
        if stream != -1:
            event = driver.Event()
            event.record(self.stream.handle)
            event.hold(stream)
        return self.buffer.__dlpack__()


def test_a_library_that_still_fills_its_array(made, device, shared_bundle):
    estimator, _ = made
    stream, locked = device.driver.Stream(1), device.driver.pagelocked_empty((HEIGHT, WIDTH, 3), np.uint8)
    locked[:] = picture(5)
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        expected = reference(picture(5), BOXES)
    for named in (None, stream, None):
        buffer = DeviceBuffer.of(np.zeros_like(locked))
        device.driver.memcpy_htod_async(buffer.pointer, locked, stream)
        frame = Producer(buffer, stream)
        compare(estimator(frame, BOXES, stream=named), expected)
        assert len(frame.asked) == 1 and (frame.asked == [-1]) == (named is not None)


def test_exports(device):
    """What DLPack promises of an array, and that whoever fails to take it says so, and lets it go."""
    buffer = DeviceBuffer.of(np.arange(6, dtype=np.float32).reshape(2, 3))
    there = imported(buffer)
    assert (there.pointer, there.shape, there.dtype) == (buffer.pointer, (2, 3), np.float32)
    assert buffer.__dlpack_device__() == (2, 0) and buffer.__dlpack__(dl_device=(2, 0), copy=False)
    flags, none = imported(DeviceBuffer((4,), np.bool_)), imported(DeviceBuffer((0, 3), np.int32).rows(0, 0))
    assert flags.dtype == np.bool_ and none.shape == (0, 3)
    for options, message in (({"copy": True}, "not as a copy"), ({"dl_device": (1, 0)}, r"on DLPack device \(2, 0\)")):
        with pytest.raises(BufferError, match=message):
            buffer.__dlpack__(**options)
    with pytest.raises((BufferError, RuntimeError), match=r"[Dd]evice"):
        np.from_dlpack(buffer)
    gone = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert gone() is not None  # `there` has it
    del there
    gc.collect()
    assert gone() is None


def test_results_are_exported_from_any_thread(made):
    estimator, _ = made
    found = []

    def take() -> None:
        for boxes in (BOXES, np.zeros((0, 4))):
            joints = estimator(picture(), boxes).device.joints
            found.append((joints.__dlpack_device__(), imported(joints).shape))

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert found == [((2, 0), (3, 14, 3)), ((2, 0), (0, 14, 3))]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("x", 3, 4), "pointer of a frame must be a whole number, got 'x'"),
        ((4096, 3.5, 4), "width of a frame must be a whole number, got 3.5"),
        ((4096, 4, 4, "bgr", "12"), "pitch of a frame must be a whole number"),
    ],
)
def test_frames_without_numbers(values, message):
    with pytest.raises(UserError, match=message):
        DeviceFrame(*values)


def test_arrays_without_an_axis_of_people(device, shared_bundle):
    single, out = DeviceBuffer((), np.float32), DeviceBuffer((1, 3, 3), np.float32)
    places, frame = DeviceBuffer((1, 3), np.float32), DeviceFrame(4096, 64, 64)
    mesh = MeshOverlay(np.array([[0, 1, 2]]), 3, (64, 64), device.loader)
    skeleton = SkeletonOverlay(shared_bundle.spec.joints, device.loader)
    for call in (
        lambda: VertexNormals(np.array([[0, 1, 2]]), 3, device.loader)(single, out),
        lambda: OneEuro(3, 3, device.loader)(single, (), 0.0, out),
        lambda: mesh(frame, single, places, Intrinsics(100.0, (32.0, 32.0))),
        lambda: skeleton(frame, single),
    ):
        with pytest.raises(UserError, match="must have an axis of people, got a single value"):
            call()
