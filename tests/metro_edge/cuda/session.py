"""Opening a DeviceEstimator over the stand-in for TensorRT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from metro_edge.backends.gpu import first_gpu
from metro_edge.bundle import Bundle
from metro_edge.cuda import estimator as module
from metro_edge.cuda.arrays import DeviceBuffer
from metro_edge.cuda.estimator import DeviceEstimator
from metro_edge.plans.options import BatchProfile
from tests.virtual_gpu.device import Device
from tests.virtual_gpu.tensorrt import StandIn, write_plan

PROFILES = (BatchProfile(1, 1, 4),)
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


@contextmanager
def opened(
    device: Device,
    bundle: Bundle,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    profiles: tuple[BatchProfile, ...] = PROFILES,
    precision: str = "fp32",
    trt: StandIn | None = None,
    **options: Any,
) -> Iterator[tuple[DeviceEstimator, StandIn]]:
    """An estimator of a plan of the stand-in, and the library."""
    trt = trt or StandIn()
    for file, kernel in (("preprocess", "crop_boxes"), ("postprocess", "place")):
        device.loader.function(file, kernel)  # loading may wait for the GPU, and Python's network there for Python
    monkeypatch.setattr(module, "load_library", lambda name="auto": trt)
    gpu = first_gpu()
    assert gpu is not None
    plan = write_plan(folder, bundle, precision, gpu.compute_capability, profiles)
    with DeviceEstimator.open(bundle, precision, plan=plan, loader=device.loader, **options) as estimator:
        yield estimator, trt
