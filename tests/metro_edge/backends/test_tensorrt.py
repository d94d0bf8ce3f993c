"""The TensorRT session for images on the host, over the stand-in for TensorRT's runtime."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import metro_edge
from metro_edge import cli
from metro_edge.backends import open_session
from metro_edge.backends import tensorrt as module
from metro_edge.backends.gpu import first_gpu
from metro_edge.errors import PredictionError, UserError
from metro_edge.plans.options import BatchProfile
from tests.metro_edge.cuda.conftest import device, session_device  # noqa: F401 - fixtures
from tests.metro_edge.video.clips import write_clip
from tests.virtual_gpu.device import on_stand_in
from tests.virtual_gpu.tensorrt import StandIn, write_plan


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(0, 1, (count, 3, 64, 64)).astype(np.float32)


@pytest.fixture
def session_of(device, shared_bundle, tmp_path, monkeypatch):  # noqa: F811
    """Opens sessions of a plan of the stand-in for batches of 1 to 4."""
    trt = StandIn()
    monkeypatch.setattr(module, "load_library", lambda name="auto": trt)

    def open_it(**options):
        plan = write_plan(tmp_path, shared_bundle, "fp32", first_gpu().compute_capability, (BatchProfile(1, 1, 4),))
        return open_session(shared_bundle, "fp32", "tensorrt", plan=plan, **options)

    open_it.trt = trt
    return open_it


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_any_number_of_images(session_of, shared_bundle, count):
    batch = images(count)
    with session_of() as session, open_session(shared_bundle) as reference:
        expected = reference.infer(batch)
        for _ in range(2):
            outputs = session.infer(batch)
            for name, values in expected.given.items():
                np.testing.assert_allclose(getattr(outputs, name), values, atol=2e-5)
        assert session.device.startswith("tensorrt 10.13.3 on ")
    assert max(session_of.trt.runs, default=0) <= 4 and sum(session_of.trt.runs) == 2 * count


@pytest.mark.gpu
def test_images_that_are_not_contiguous(session_of, shared_bundle):
    batch = images(2)[:, ::-1]
    with session_of() as session, open_session(shared_bundle) as reference:
        np.testing.assert_allclose(session.infer(batch).vertices, reference.infer(batch).vertices, atol=2e-5)


@pytest.mark.gpu
def test_closing_and_failing(session_of):
    session = session_of()
    session_of.trt.fail = "enqueue"
    with pytest.raises(PredictionError, match="fails to run a batch of 2: Cask convolution"):
        session.infer(images(2))
    session_of.trt.fail = ""
    assert session.infer(images(1)).camera.shape == (1, 3)
    session.close()
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.infer(images(1))
    with pytest.raises(UserError, match="tensorrt has no option threads; it has plan, library, ordinal"):
        session_of(threads=2)
    with pytest.raises(UserError, match="number 9 was asked for"):
        session_of(ordinal=9)


@pytest.mark.gpu
@pytest.mark.skipif(not on_stand_in(), reason="the stand-in fails on request")
@pytest.mark.parametrize(("call", "more"), [("cuMemAlloc", 1), ("cuMemAlloc", 4), ("cuStreamCreate", 1)])
def test_memory_that_runs_out_while_opening(session_of, device, monkeypatch, call, more):  # noqa: F811
    gc.collect()
    before = device.count("bytes in use"), device.count("allocations")
    monkeypatch.setenv("VIRTUAL_GPU_FAIL", f"{call}:{device.count(call) + more}:2")
    with pytest.raises(UserError, match="memory left") as held:
        session_of()
    monkeypatch.setenv("VIRTUAL_GPU_FAIL", "")
    assert (device.count("bytes in use"), device.count("allocations")) == before and held
    with session_of() as session:
        assert len(session.infer(images(1)).camera) == 1
    gc.collect()
    assert (device.count("bytes in use"), device.count("allocations")) == before
    with pytest.raises(UserError, match="the number of a GPU must be whole, got 'x'"):
        session_of(ordinal="x")


@pytest.mark.gpu
def test_a_video_on_the_gpu(device, shared_bundle, tmp_path, monkeypatch):  # noqa: F811
    """The engine has no threads to set, and runs in the thread of whoever reads the stream."""
    plan = write_plan(tmp_path, shared_bundle, "fp32", first_gpu().compute_capability, (BatchProfile(1, 1, 4),))
    monkeypatch.setattr(module, "load_library", lambda name="auto": StandIn())
    monkeypatch.setattr(module, "named_or_cached", lambda *_: plan)
    frames = [np.random.default_rng(k).integers(0, 256, (120, 160, 3), dtype=np.uint8) for k in range(4)]
    boxes = [[10.0, 10, 60, 90], [70.0, 20, 60, 90]]
    with (
        metro_edge.stream(frames, shared_bundle, boxes=boxes, backend="tensorrt") as found,
        metro_edge.stream(frames, shared_bundle, boxes=boxes) as wanted,
    ):
        for one, other in zip(found, wanted, strict=True):
            assert len(one.bodies) == len(other.bodies) == 2
            for a, b in zip(one.bodies, other.bodies, strict=True):
                np.testing.assert_allclose(a.vertices, b.vertices, atol=1e-4)
    command = ["run", "--bundle", str(shared_bundle.path), "--backend", "tensorrt", "--box", "0,0,64,48"]
    clip = write_clip(tmp_path / "a.mp4", 3)
    assert cli.main([*command, str(clip), "--write", "jsonl", "-o", str(tmp_path / "out")]) == 0
    assert len((tmp_path / "out" / "a.jsonl").read_text().splitlines()) == 5


def test_without_a_gpu_the_backend_says_so(shared_bundle, monkeypatch):
    monkeypatch.setattr(module, "load_library", lambda name="auto": object())
    monkeypatch.setattr(module, "first_gpu", lambda: None)
    with pytest.raises(UserError, match="there is none here: use the backend onnxruntime"):
        open_session(shared_bundle, "fp32", "tensorrt")
