"""Which NVIDIA GPU this is, asked from the driver itself, so that no CUDA package is needed to know."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

# From cuda.h (CUdevice_attribute).
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """Name, and compute capability such as `8.7`."""

    name: str
    compute_capability: str


def first_gpu() -> Gpu | None:
    """Return CUDA device 0, which TensorRT uses unless told otherwise; None without driver or device."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return gpu_from_driver(driver)


def gpu_from_driver(driver: ctypes.CDLL) -> Gpu | None:
    """Return device 0 of a loaded CUDA driver library; None when any of its calls fails."""
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    succeeded = (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
        and driver.cuDeviceGetName(name, len(name), device) == 0
        and driver.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device) == 0
        and driver.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device) == 0
    )
    if not succeeded:
        return None
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")
