"""The device of tests marked `gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metro_edge.bundle import Bundle
from tests.metro_edge.cuda.capturing import Driver
from tests.metro_edge.cuda.session import opened
from tests.virtual_gpu.device import Device


@pytest.fixture(scope="session")
def session_device() -> Iterator[Device]:
    device = Device()
    yield device
    device.close()


@pytest.fixture
def device(session_device: Device) -> Iterator[Device]:
    """A CUDA context; fails at the end when a kernel of the test wrote outside an allocation."""
    yield session_device
    session_device.wait()


@pytest.fixture
def driver(device: Device) -> Driver:
    """The driver that the device is on, by ctypes."""
    return Driver()


@pytest.fixture
def made(device: Device, shared_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An estimator of the tests' bundle on the GPU, and the library that runs its plan."""
    with opened(device, shared_bundle, tmp_path, monkeypatch) as (estimator, trt):
        yield estimator, trt
