"""A frame in, bodies out, on the GPU: equal to the ONNX Runtime estimator, and what it costs."""

from __future__ import annotations

import ctypes
import gc
import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest

from metro_edge.bundle import Bundle
from metro_edge.cuda import driver
from metro_edge.cuda.arrays import DeviceArray, DeviceBuffer, DeviceFrame
from metro_edge.cuda.estimator import DeviceEstimator
from metro_edge.errors import DeviceError, PredictionError, UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.frames import HostFrame
from metro_edge.plans.info import PlanMismatchError
from metro_edge.plans.options import BatchProfile
from metro_edge.preprocess import read_picture
from tests.metro_edge.cuda.session import opened
from tests.test_layout import ROOT
from tests.virtual_gpu.device import on_stand_in
from tests.virtual_gpu.tensorrt import DataType, StandIn, write_plan

pytestmark = pytest.mark.gpu
WIDTH, HEIGHT = 157, 119
BOXES = np.array([[20, 10, 60, 90], [-30, 40, 80, 100], [90, 5, 60, 110]], np.float64)


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height))


def compare(people, bodies, mm: float = 0.1) -> None:
    """Within `mm`; the crops differ by single levels, see docs/cuda.md."""
    assert len(people) == len(bodies)
    for ours, theirs in zip(people.bodies(), bodies, strict=True):
        for name in ("joints", "vertices", "translation"):
            apart = np.linalg.norm(getattr(ours, name) - getattr(theirs, name), axis=-1)
            assert apart.size == 0 or apart.max() * 1000 < mm, name
        np.testing.assert_allclose(ours.joints_px, theirs.joints_px, atol=0.2)
        np.testing.assert_array_equal(ours.box, theirs.box)
        assert (ours.focal_px, ours.centre_px, ours.joint_set) == (theirs.focal_px, theirs.centre_px, theirs.joint_set)


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.load(None)


@pytest.fixture
def made(device, shared_bundle, tmp_path, monkeypatch):
    with opened(device, shared_bundle, tmp_path, monkeypatch) as (estimator, trt):
        yield estimator, trt


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


class OnGpu:
    """A frame in device memory as another library would hold it."""

    def __init__(self, rows: np.ndarray, width: int, stream: int | None = None):
        self.buffer = DeviceBuffer.of(rows)
        self.shape, self.pitch, self.stream = (len(rows), width, 3), rows.shape[1], stream

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape, "typestr": "|u1", "data": (self.buffer.pointer, True), "version": 3,
            "strides": (self.pitch, 3, 1), "stream": self.stream,
        }  # fmt: skip


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
    trt = StandIn()
    with opened(device, shared_bundle, tmp_path, monkeypatch, trt=trt) as (estimator, _):
        for _ in range(2):
            estimator(picture(), BOXES)
        assert trt.contexts == 2
        pending = estimator.infer_async(picture(1), BOXES)
    estimator.close()
    gc.collect()
    assert trt.contexts == 0 and len(pending.result()) == 3
    with pytest.raises(UserError, match="closed"):
        estimator(picture(), BOXES)


@pytest.mark.parametrize(
    ("frame", "boxes", "message"),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), None, r"\(H, W, 3\)"),
        (np.zeros((HEIGHT, WIDTH, 3), np.float32), None, "uint8"),
        (picture(), [[np.nan, 0, 5, 5]], "finite"),
        (picture(), np.resize(BOXES, (17, 4)), "17 people, this estimator was opened for max_people=16"),
        ("picture.jpg", None, "got str"),
        (DeviceFrame(0x1234, WIDTH, HEIGHT), None, "no memory that CUDA knows"),
    ],
)
def test_frames_and_boxes_that_are_not_usable(made, frame, boxes, message):
    with pytest.raises(UserError, match=message):
        made[0](frame, boxes)
    assert len(made[0](picture(), BOXES)) == 3


def test_memory_that_is_not_a_frame(made, device):
    estimator, _ = made
    buffer = DeviceBuffer.of(picture().reshape(HEIGHT, -1))
    too_large = DeviceFrame(buffer.pointer, WIDTH, HEIGHT + 1)
    with pytest.raises(UserError, match=rf"needs {(HEIGHT + 1) * WIDTH * 3} bytes .* its memory ends after"):
        estimator(too_large)
    with pytest.raises(UserError, match="the frame's UV plane needs"):
        estimator(DeviceFrame(buffer.pointer, 156, 300, "nv12"))
    freed = buffer.pointer
    del buffer
    with pytest.raises(UserError, match=f"{freed:#x} is no memory that CUDA knows: it was freed"):
        estimator(DeviceFrame(freed, WIDTH, HEIGHT))
    locked = device.driver.pagelocked_empty((HEIGHT, WIDTH * 3), np.uint8)
    with pytest.raises(UserError, match="is in the host's memory"):
        estimator(DeviceFrame(int(locked.ctypes.data), WIDTH, HEIGHT))
    strided = OnGpu(np.zeros((HEIGHT, WIDTH * 6), np.uint8), WIDTH)
    strided.__class__ = type("Strided", (OnGpu,), {"__cuda_array_interface__": property(
        lambda self: {"shape": self.shape, "typestr": "|u1", "data": (self.buffer.pointer, True), "strides": (6, 6, 1)}
    )})  # fmt: skip
    with pytest.raises(UserError, match="the pixels of a frame's row must follow each other"):
        estimator(strided)


def test_streams_that_are_not_usable(made, device):
    estimator, _ = made
    with pytest.raises(UserError, match="a stream must be a CUstream handle or a stream of a CUDA library, got str"):
        estimator(picture(), BOXES, stream="0")
    other = device.driver.Device(0).make_context()
    try:
        stream = device.driver.Stream()
    finally:
        other.pop()
    try:
        with pytest.raises(UserError, match=r"is of another CUDA context|is not usable here"):
            estimator(picture(), BOXES, stream=stream)
    finally:
        other.push()
        del stream
        other.pop()
        other.detach()


def test_plans_that_are_refused(device, shared_bundle, tmp_path, monkeypatch):
    trt = StandIn()
    monkeypatch.setattr("metro_edge.cuda.estimator.load_library", lambda name="auto": trt)
    capability = ".".join(map(str, device.driver.Device(0).compute_capability()))
    profile = (BatchProfile(1, 1, 4),)

    def open_it(path, bundle=shared_bundle, **options):
        return DeviceEstimator.open(bundle, "fp32", plan=path, loader=device.loader, **options)

    with pytest.raises(PlanMismatchError, match=r"runs on compute capability 7\.0"):
        open_it(write_plan(tmp_path, shared_bundle, "fp32", "7.0", profile))
    path = write_plan(tmp_path, shared_bundle, "fp32", capability, profile)
    other = replace(shared_bundle, spec=replace(shared_bundle.spec, image_size=32))
    with pytest.raises(UserError, match=r"is of another network: images \(N, \(3, 32, 32\)\) was expected"):
        open_it(path, other)
    trt.dtype = DataType.HALF
    with pytest.raises(UserError, match="float32 was expected"):
        open_it(path)
    trt.dtype = DataType.FLOAT
    trt.fail = "context"
    with open_it(path) as estimator, pytest.raises(DeviceError, match="no execution context: Requested amount of GPU"):
        estimator(picture(), BOXES)
    trt.fail = "shape"
    with open_it(path) as estimator, pytest.raises(DeviceError, match="refuses a batch of 3: setInputShape"):
        estimator(picture(), BOXES)
    trt.fail = "enqueue"
    with open_it(path) as estimator, pytest.raises(PredictionError, match="fails to run a batch of 3: Cask"):
        estimator(picture(), BOXES)
    trt.fail = ""
    for options, message in [
        ({"max_people": 0}, "max_people must be 1 or more, got 0"),
        ({"lanes": 0}, "max_people and lanes must be 1 or more"),
        ({"parts": ("hands",)}, "unknown part 'hands'; known: status, camera"),
        ({"focal_px": -1.0}, "focal length"),
        ({"ordinal": 7}, "there are 1 GPUs, numbered from 0; number 7 was asked for"),
    ]:
        with pytest.raises(UserError, match=message):
            open_it(path, **options)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(PlanMismatchError, match="is not the plan that"):
        open_it(path)


def test_a_plan_that_tensorrt_refuses(device, shared_bundle, tmp_path, monkeypatch):
    from metro_edge.cuda.context import DeviceContext
    from metro_edge.cuda.network import DeviceNetwork

    path = tmp_path / "other.plan"
    path.write_bytes(b"no plan")
    with DeviceContext() as context:
        with pytest.raises(UserError, match=r"tensorrt refuses plan .*other\.plan: Serialization assertion"):
            DeviceNetwork(path, shared_bundle.spec, StandIn())
        with pytest.raises(UserError, match="cannot read"):
            DeviceNetwork(tmp_path / "missing.plan", shared_bundle.spec, StandIn())
        assert not context.closed


@pytest.mark.skipif(not on_stand_in(), reason="a real GPU has too much memory")
def test_too_little_memory(device, shared_bundle, tmp_path, monkeypatch):
    with (
        pytest.raises(UserError, match=r"no .* MB of device memory left"),
        opened(device, shared_bundle, tmp_path, monkeypatch, max_people=10_000_000),
    ):
        pass


def test_outputs_that_are_no_bodies(device, shared_bundle, tmp_path, monkeypatch):
    with opened(device, shared_bundle, tmp_path, monkeypatch) as (estimator, _):
        people = estimator.infer_async(picture(), BOXES, camera_matrix=[[1e-3, 0, 50], [0, 1e-3, 50], [0, 0, 1]])
        with pytest.raises(PredictionError, match="behind the camera"):
            people.result()
        with pytest.raises(PredictionError, match="behind the camera"):
            people.result()


def test_words_of_the_driver():
    assert driver.words_of(2).startswith("CUDA_ERROR_OUT_OF_MEMORY")
    assert driver.words_of(987654)
    assert "end it" in driver.with_advice("cuEventQuery: CUDA_ERROR_ILLEGAL_ADDRESS, an illegal access")
    assert "end it" not in driver.with_advice("cuEventQuery: CUDA_ERROR_INVALID_HANDLE")


def test_a_result_that_does_not_come_in_time(made, device):
    """Work that is in the caller's stream and waits for this thread holds the frame up."""
    estimator, _ = made
    held = threading.Event()
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: held.wait(20) and None)
    stream, frame = device.driver.Stream(1), DeviceBuffer.of(picture())
    estimator(picture(), BOXES)  # what a first frame allocates would wait, too
    estimator(picture(), BOXES)
    failed: list[BaseException] = []

    def finish() -> None:
        try:
            with estimator.context:
                driver.call("cuLaunchHostFunc", ctypes.c_void_p(stream.handle), function, None)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=finish)
    thread.start()
    if not on_stand_in():  # there it runs at the call, or when something waits for it
        thread.join()
        pending = estimator.infer_async(DeviceFrame(frame.pointer, WIDTH, HEIGHT), BOXES, stream=stream)
        assert not pending.done()
        with pytest.raises(TimeoutError, match=r"not done after 0\.05 s"):
            pending.result(timeout_s=0.05)
        held.set()
        assert len(pending.result()) == 3
    held.set()
    thread.join()
    assert not failed
