"""What callers hand over: streams and arrays of other libraries; and graphs that are given other kernels."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from metro_edge.cuda.arrays import DeviceBuffer, DeviceFrame
from metro_edge.cuda.graphs import RecordingLoader
from metro_edge.cuda.inputs import stream_handle
from metro_edge.cuda.postprocess import VertexNormals
from metro_edge.cuda.preprocess import Preprocess
from metro_edge.errors import DeviceError, UserError
from metro_edge.estimator import MeshEstimator
from tests.metro_edge.cuda.session import BOXES, HEIGHT, WIDTH, compare, picture

pytestmark = pytest.mark.gpu


def test_streams_of_other_libraries():
    class Torch:
        cuda_stream = 7

    class Numba:
        handle = ctypes.c_void_p(8)

    class Protocol:
        def __cuda_stream__(self):
            return (0, 9)

    assert [stream_handle(stream) for stream in (None, 5, np.int64(6), Torch(), Numba(), Protocol())] == [
        None, 5, 6, 7, 8, 9,
    ]  # fmt: skip


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
