"""A frame in, bodies out, on the GPU: equal to the ONNX Runtime estimator, and what it costs."""

from __future__ import annotations

import gc
import threading

import cv2
import numpy as np
import pytest

from metro_edge.bundle import Bundle
from metro_edge.cuda.arrays import DeviceArray, DeviceBuffer, DeviceFrame
from metro_edge.cuda.context import DeviceContext
from metro_edge.errors import UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.frames import HostFrame
from metro_edge.plans.options import BatchProfile
from metro_edge.preprocess import read_picture
from tests.metro_edge.cuda.session import BOXES, HEIGHT, WIDTH, OnGpu, compare, opened, picture
from tests.test_layout import ROOT
from tests.virtual_gpu.device import on_stand_in
from tests.virtual_gpu.tensorrt import StandIn

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.load(None)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_shipped_network_on_the_shipped_picture(device, shipped, tmp_path, monkeypatch, precision):
    frame = read_picture(next((ROOT / "metro_edge/assets/demo").glob("*.jpg")))
    boxes = [[0, 0, *frame.shape[1::-1]], [frame.shape[1] / 4, 0, frame.shape[1] / 2, frame.shape[0]]]
    with (
        MeshEstimator.from_bundle(shipped, precision) as reference,
        opened(device, shipped, tmp_path, monkeypatch, precision=precision) as (estimator, _),
    ):
        for _ in range(4):  # plain, then captured, on both lanes
            compare(estimator(frame, boxes), reference(frame, boxes))
        assert all(lane.captured == (2,) for lane in estimator.lanes)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 9])
def test_batches_of_people(made, shared_bundle, count):
    estimator, trt = made
    boxes = np.resize(BOXES, (count, 4)) + np.arange(count)[:, None]
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        for seed in range(5):
            frame = picture(seed)
            compare(estimator(frame, boxes), reference(frame, boxes))
    assert sum(trt.runs) == 5 * count and max(trt.runs, default=0) <= 4


def test_frames_on_their_way_keep_apart(made, shared_bundle):
    """More of them than lanes: the results that nobody fetched are taken out in time."""
    estimator, _ = made
    frames = [picture(seed) for seed in range(7)]
    pending = [estimator.infer_async(frame, BOXES[: 1 + i % 3]) for i, frame in enumerate(frames)]
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        for i, (one, frame) in enumerate(zip(pending, frames, strict=True)):
            compare(one.result(), reference(frame, BOXES[: 1 + i % 3]))
            assert one.done() and one.result() is one.result()


def test_results_are_views_until_their_lane_is_needed(made):
    estimator, _ = made
    first = estimator(picture(0), BOXES[:1])
    kept, before = first.copy(), first.joints.copy()
    estimator(picture(1), BOXES[1:2])
    np.testing.assert_array_equal(first.joints, before)
    estimator(picture(2), BOXES[2:])
    assert np.abs(first.joints - before).max() > 0 or np.abs(first.camera - kept.camera).max() > 0
    np.testing.assert_array_equal(kept.joints, before)


def test_parts_on_the_gpu_and_on_the_host(device, shared_bundle, tmp_path, monkeypatch):
    with opened(device, shared_bundle, tmp_path, monkeypatch, parts=("joints_px", "vertices_px")) as (estimator, _):
        people = estimator(picture(), BOXES)
        assert set(people.host) == {"status", "joints_px", "vertices_px"}
        assert people.joints_px.shape == (3, 14, 2) and people.vertices_px.shape[0] == 3
        with pytest.raises(
            AttributeError, match="'joints' is no part that was downloaded; there are status, joints_px"
        ):
            people.joints  # noqa: B018
        with pytest.raises(UserError, match="a Body needs camera"):
            people.bodies()
        joints = copied(device, people.device.joints)
        joints_px = copied(device, people.device.joints_px)
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        bodies = reference(picture(), BOXES)
    np.testing.assert_allclose(joints, [body.joints for body in bodies], atol=1e-4)
    np.testing.assert_allclose(joints_px, [body.joints_px for body in bodies], atol=0.2)


def copied(device, array: DeviceArray) -> np.ndarray:
    host = np.empty(array.shape, array.dtype)
    device.driver.memcpy_dtoh(host, array.pointer)
    return host


def test_every_way_to_hand_a_frame_over(made, device, shared_bundle):
    estimator, _ = made
    frame = picture()
    padded = np.hstack([frame.reshape(HEIGHT, -1), np.full((HEIGHT, 41), 7, np.uint8)])
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        expected = reference(frame, BOXES)
    locked = device.driver.pagelocked_empty(frame.shape, np.uint8)
    locked[:] = frame
    on_gpu = OnGpu(padded, WIDTH)
    described = DeviceFrame(on_gpu.buffer.pointer, WIDTH, HEIGHT, "bgr", padded.shape[1])
    exporting = DeviceBuffer.of(frame)
    for given in (frame, frame[:, ::-1][:, ::-1], padded[:, : WIDTH * 3].reshape(HEIGHT, WIDTH, 3), locked, on_gpu,
                  described, OnGpu(padded, WIDTH, stream=1), DlpackOnly(exporting)):  # fmt: skip
        compare(estimator(given, BOXES), expected)
        compare(estimator(given, BOXES, stream=device.driver.Stream()), expected)


class DlpackOnly:
    """The DLPack of an array and nothing else."""

    def __init__(self, array: DeviceBuffer):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


def test_nv12_as_decoders_give_it(made, shared_bundle):
    estimator, _ = made
    height, width = 120, 160
    frame = picture(3, height, width)
    yuv = cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420)
    y, uv = yuv[:height], np.dstack([part.ravel() for part in np.split(yuv[height:], 2)]).reshape(height // 2, width)
    planes = [DeviceBuffer.of(np.ascontiguousarray(plane)) for plane in (y, uv)]
    given = DeviceFrame(planes[0].pointer, width, height, "nv12", uv_pointer=planes[1].pointer)
    in_file = HostFrame(np.vstack([y, uv]), width, height, "nv12")
    back = cv2.cvtColorTwoPlane(y, uv.reshape(height // 2, width // 2, 2), cv2.COLOR_YUV2BGR_NV12)
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        compare(estimator(given, BOXES), reference(back, BOXES))
        compare(estimator(in_file, BOXES), reference(back, BOXES))


def test_a_stream_of_the_caller_is_waited_for(made, device, shared_bundle):
    """The frame's memory is filled by work that is still in the caller's stream; in lazy mode it has not even begun."""
    estimator, _ = made
    stream = device.driver.Stream()
    buffer, frame = DeviceBuffer.of(np.zeros((HEIGHT, WIDTH * 3), np.uint8)), picture(5)
    locked = device.driver.pagelocked_empty((HEIGHT, WIDTH * 3), np.uint8)
    locked[:] = frame.reshape(HEIGHT, -1)
    device.driver.memcpy_htod_async(buffer.pointer, locked, stream)
    pending = estimator.infer_async(DeviceFrame(buffer.pointer, WIDTH, HEIGHT), BOXES, stream=stream.handle)
    pending.wait_on(stream.handle)
    joints = device.driver.pagelocked_empty(pending.device.joints.shape, np.float32)
    device.driver.memcpy_dtoh_async(joints, pending.device.joints.pointer, stream)
    stream.synchronize()
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        expected = reference(frame, BOXES)
    np.testing.assert_allclose(joints, [body.joints for body in expected], atol=1e-4)
    compare(pending.result(timeout_s=10), expected)


def test_a_host_frame_that_a_stream_still_fills(made, device, shared_bundle):
    """Page-locked, it is copied behind that stream's work; staged, this thread waits for that work first."""
    estimator, _ = made
    frame, stream = picture(5), device.driver.Stream(1)
    source = DeviceBuffer.of(frame)
    locked = device.driver.pagelocked_empty((HEIGHT, WIDTH, 3), np.uint8)
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        expected = reference(frame, BOXES)
    for given in (locked, locked[:, ::-1][:, ::-1], locked[::-1][::-1].view()):
        for _ in range(3):
            locked[:] = 0
            device.driver.memcpy_dtoh_async(locked, source.pointer, stream)
            compare(estimator(given, BOXES, stream=stream), expected)
            stream.synchronize()
    mirrored = locked[:, ::-1]
    locked[:] = 0
    device.driver.memcpy_dtoh_async(locked, source.pointer, stream)
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        compare(estimator(mirrored, BOXES, stream=stream), reference(frame[:, ::-1], BOXES))


def test_threads(made, shared_bundle):
    """Frames from several threads, none of which has a context of its own."""
    estimator, _ = made
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(6):
                frame, boxes = picture(100 * seed + step), BOXES[: 1 + (seed + step) % 3]
                people = estimator.infer_async(frame, boxes)
                results[seed, step] = (frame, boxes, people)
        except BaseException as error:
            failed.append(error)

    results: dict = {}
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(results) == 18
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        for frame, boxes, people in results.values():
            compare(people.result(), reference(frame, boxes))


@pytest.mark.skipif(not on_stand_in(), reason="the stand-in counts")
def test_what_a_frame_costs(device, shared_bundle, tmp_path, monkeypatch):
    """After warming up: no allocation, one copy up and one down, of the bytes that there must be; one graph."""
    with opened(device, shared_bundle, tmp_path, monkeypatch) as (estimator, trt):
        estimator.warm_up((1, 2, 3), (HEIGHT, WIDTH))
        names = ("cuMemAlloc", "cuMemHostAlloc", "cuMemAllocHost", "cuGraphLaunch", "cuLaunchKernel",
                 "cuGraphInstantiateWithFlags", "bytes to device", "bytes to host", "bytes within device",
                 "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "kernel crop_boxes", "kernel centre")  # fmt: skip
        contexts, runs = trt.contexts, len(trt.runs)
        before = {name: device.count(name) for name in names}
        pending = [estimator.infer_async(picture(seed), BOXES[: 1 + seed % 3] + seed) for seed in range(12)]
        estimator(picture(20), BOXES)
        pending[-1].wait()
        cost = {name: device.count(name) - before[name] for name in names}
        joints, vertices = 14, shared_bundle.spec.vertex_count
        people = 4 * (1 + 2 + 3) + 3
        assert cost == {
            "cuMemAlloc": 0, "cuMemHostAlloc": 0, "cuMemAllocHost": 0,
            "cuGraphInstantiateWithFlags": 0, "cuGraphLaunch": 13, "cuLaunchKernel": 0,
            "bytes to device": 13 * HEIGHT * WIDTH * 3, "cuMemcpyHtoDAsync": 13,
            "bytes to host": people * 4 * (1 + 3 + 3 + joints * 5 + vertices * 3), "cuMemcpyDtoHAsync": 13,
            "bytes within device": 0, "kernel crop_boxes": 13, "kernel centre": 26,
        }  # fmt: skip
        assert (trt.contexts, len(trt.runs)) == (contexts, runs + 13)


def test_without_graphs_the_result_is_the_same(device, shared_bundle, tmp_path, monkeypatch, caplog):
    with MeshEstimator.from_bundle(shared_bundle) as reference:
        expected = reference(picture(), BOXES)
    with opened(device, shared_bundle, tmp_path, monkeypatch, graphs=False) as (estimator, _):
        for _ in range(4):
            compare(estimator(picture(), BOXES), expected)
        assert [lane.captured for lane in estimator.lanes] == [(), ()]
    trt = StandIn()
    trt.fail = "capture"
    with opened(device, shared_bundle, tmp_path, monkeypatch, trt=trt, lanes=1) as (estimator, _):
        for _ in range(4):
            compare(estimator(picture(), BOXES), expected)
        assert estimator.lanes[0].captured == ()
    assert caplog.text.count("no CUDA graph of 3 people, launches stay plain") == 1
    assert "not permitted when stream is capturing" in caplog.text


def test_the_profile_of_the_nearest_batch_is_taken(device, shared_bundle, tmp_path, monkeypatch):
    profiles = (BatchProfile(1, 1, 2), BatchProfile(2, 4, 4))
    with opened(device, shared_bundle, tmp_path, monkeypatch, profiles=profiles) as (estimator, _):
        assert [estimator.network.profile_of(n) for n in (1, 2, 3, 4)] == [0, 0, 1, 1]
        assert len(estimator(picture(), np.resize(BOXES, (7, 4)))) == 7
        with pytest.raises(UserError, match="batches of 1 to 2, 2 to 4, not of 5"):
            estimator.network.profile_of(5)


def test_closing_frees_everything(device, shared_bundle, tmp_path, monkeypatch):
    """Also while somebody else, here `device`, holds the primary context, and what was returned is still there."""
    trt = StandIn()
    gc.collect()
    before = memory(device)
    with opened(device, shared_bundle, tmp_path, monkeypatch, trt=trt) as (estimator, _):
        for _ in range(2):
            people = estimator(picture(), BOXES).copy()
        assert trt.contexts == 2
        pending, lanes = estimator.infer_async(picture(1), BOXES), estimator.lanes
        assert memory(device) != before or not on_stand_in()
    estimator.close()
    gc.collect()
    assert trt.contexts == 0 and len(pending.result()) == len(people) == 3 and lanes
    assert pending.done() and memory(device) == before
    pending.wait()
    for call in (lambda: estimator(picture(), BOXES), estimator.warm_up):
        with pytest.raises(UserError, match="this estimator is closed"):
            call()


def memory(device) -> list[int]:
    """Bytes and allocations in use, where they are counted."""
    names = ("bytes in use", "allocations")
    return [device.count(name) for name in names] if on_stand_in() else []


def test_closing_while_others_wait(device, shared_bundle, tmp_path, monkeypatch):
    """Threads that wait for a frame get its result, or hear that the estimator is closed."""
    for _ in range(20):
        with opened(device, shared_bundle, tmp_path, monkeypatch) as (estimator, _):
            pending, failed = estimator.infer_async(picture(), BOXES), []
            work = (pending.wait, pending.result, lambda: failed.append(until_closed(estimator)))  # noqa: B023
            threads = [threading.Thread(target=one) for one in work]
            for thread in threads:
                thread.start()
            estimator.close()
            for thread in threads:
                thread.join(60)
        assert len(pending.result()) == 3
        assert [type(error) for error in failed] == [UserError] and "closed" in str(failed[0])


def until_closed(estimator) -> BaseException:
    try:
        while True:
            pending = estimator.infer_async(picture(), BOXES)
            pending.wait()
            pending.done()
    except BaseException as error:
        return error


def test_closing_inside_its_own_context(device, shared_bundle, tmp_path, monkeypatch):
    with opened(device, shared_bundle, tmp_path, monkeypatch) as (estimator, _):
        with estimator.context, pytest.raises(UserError, match="inside its own `with`: leave it first"):
            estimator.close()
        assert len(estimator(picture(), BOXES)) == 3
    assert len(DeviceBuffer.of(np.zeros(3)).get()) == 3  # the context of `device` is current again


def test_a_buffer_goes_with_its_context(device):
    gc.collect()
    before = memory(device)
    with DeviceContext() as context:
        buffer = DeviceBuffer((1000,), np.float32)
    context.close()
    context.close()
    assert memory(device) == before and context.closed
    with pytest.raises(UserError, match=r"the buffer of \(1000,\) float32 was freed"):
        buffer.get()
    with pytest.raises(UserError, match="this CUDA context is closed"), context:
        pass
