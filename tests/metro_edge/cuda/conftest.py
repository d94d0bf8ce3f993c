"""The device of tests marked `gpu`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
