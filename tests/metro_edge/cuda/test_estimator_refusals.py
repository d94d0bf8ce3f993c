"""What a DeviceEstimator refuses, and how it says so."""

from __future__ import annotations

import ctypes
import gc
import threading
from dataclasses import replace

import numpy as np
import pytest

from metro_edge.backends import open_session
from metro_edge.cuda import driver
from metro_edge.cuda.arrays import DeviceBuffer, DeviceFrame
from metro_edge.cuda.context import DeviceContext
from metro_edge.cuda.estimator import DeviceEstimator
from metro_edge.cuda.network import DeviceNetwork
from metro_edge.errors import DeviceError, PredictionError, UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.plans.info import PlanMismatchError
from metro_edge.plans.options import BatchProfile
from tests.metro_edge.cuda.session import BOXES, HEIGHT, WIDTH, OnGpu, compare, opened, picture
from tests.virtual_gpu.device import on_stand_in
from tests.virtual_gpu.tensorrt import DataType, StandIn, write_plan

pytestmark = pytest.mark.gpu


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


@pytest.mark.parametrize("values", [((-1,),), (3,), (("1",),), ((1,), (0, 5)), ((1,), (5,))])
def test_warming_up_for_nothing_that_comes(made, values):
    with pytest.raises(UserError, match="warm_up takes"):
        made[0].warm_up(*values)


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
        ({"max_people": "3"}, "max_people must be 1 or more, got '3'"),
        ({"lanes": 1.5}, r"max_people and lanes must be 1 or more, got 16 and 1\.5"),
        ({"ordinal": "x"}, "the number of a GPU must be whole, got 'x'"),
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


@pytest.mark.parametrize("setting", ["strip_weights", "version_compatible", "refit"])
def test_plans_of_other_kinds(device, shared_bundle, tmp_path, monkeypatch, setting):
    """Without weights, which come from the bundle's graph; with a runtime of their own, which must be allowed."""
    trt = StandIn()
    monkeypatch.setattr("metro_edge.cuda.estimator.load_library", lambda name="auto": trt)
    monkeypatch.setattr("metro_edge.backends.tensorrt.load_library", lambda name="auto": trt)
    capability = ".".join(map(str, device.driver.Device(0).compute_capability()))
    path = write_plan(tmp_path, shared_bundle, "fp32", capability, (BatchProfile(1, 1, 4),), settings={setting: True})
    with (
        DeviceEstimator.open(shared_bundle, "fp32", plan=path, loader=device.loader) as estimator,
        MeshEstimator.from_bundle(shared_bundle) as reference,
        open_session(shared_bundle, "fp32", "tensorrt", plan=path) as session,
    ):
        compare(estimator(picture(), BOXES), reference(picture(), BOXES))
        assert session.infer(np.zeros((1, 3, 64, 64), np.float32)).camera.shape == (1, 3)
    if setting == "strip_weights":
        trt.fail = "refit"
        with pytest.raises(UserError, match=r"has no weights, and tensorrt cannot take them .*: Failed to refit"):
            DeviceEstimator.open(shared_bundle, "fp32", plan=path, loader=device.loader)
        with DeviceContext(), pytest.raises(UserError, match="has no weights, and no graph"):
            DeviceNetwork(path, shared_bundle.spec, trt)


def test_a_plan_that_tensorrt_refuses(device, shared_bundle, tmp_path, monkeypatch):
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


@pytest.mark.skipif(not on_stand_in(), reason="the stand-in fails on request")
@pytest.mark.parametrize("call", ["cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate"])
def test_memory_that_runs_out_while_opening(device, shared_bundle, tmp_path, monkeypatch, call):
    """Whatever comes too late, what came before is freed, although the error is still held."""
    gc.collect()
    before = device.count("bytes in use"), device.count("allocations")
    for more in (1, 2, 3, 8, 20):
        monkeypatch.setenv("VIRTUAL_GPU_FAIL", f"{call}:{device.count(call) + more}:2")
        try:
            with opened(device, shared_bundle, tmp_path, monkeypatch) as (estimator, _):
                estimator(picture(), BOXES)
        except UserError as error:
            held = error
            assert "memory left" in str(error) or "OUT_OF_MEMORY" in str(error)
            assert (device.count("bytes in use"), device.count("allocations")) == before, more
        else:
            break
        finally:
            monkeypatch.setenv("VIRTUAL_GPU_FAIL", "")
    assert held
    with opened(device, shared_bundle, tmp_path, monkeypatch) as (estimator, _):
        assert len(estimator(picture(), BOXES)) == 3


@pytest.mark.skipif(not on_stand_in(), reason="the stand-in fails on request")
def test_page_locked_memory_that_runs_out_later(made, device, monkeypatch):
    """A frame larger than those before needs more of it; the lane goes on as before."""
    estimator, _ = made
    estimator.warm_up((3,), (HEIGHT, WIDTH))
    large = picture(1, 2 * HEIGHT, 2 * WIDTH)
    monkeypatch.setenv("VIRTUAL_GPU_FAIL", f"cuMemHostAlloc:{device.count('cuMemHostAlloc') + 1}:2")
    for _ in range(2):
        with pytest.raises(
            DeviceError, match=r"the upload of a frame of 314 x 238 px: no memory left \(cuMemHostAlloc"
        ):
            estimator(large, BOXES)
    assert len(estimator(picture(), BOXES)) == 3
    monkeypatch.setenv("VIRTUAL_GPU_FAIL", "")
    assert len(estimator(large, BOXES)) == len(estimator(large, BOXES)) == 3


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
