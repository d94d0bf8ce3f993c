"""Opening a DeviceEstimator over the stand-in for TensorRT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from metro_edge.backends.gpu import first_gpu
from metro_edge.bundle import Bundle
from metro_edge.cuda import estimator as module
from metro_edge.cuda.estimator import DeviceEstimator
from metro_edge.plans.options import BatchProfile
from tests.virtual_gpu.device import Device
from tests.virtual_gpu.tensorrt import StandIn, write_plan

PROFILES = (BatchProfile(1, 1, 4),)


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
