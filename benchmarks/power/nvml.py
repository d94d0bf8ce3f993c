"""Energy, power, heat, clocks and throttling of an NVIDIA GPU, from the driver's own library.

Source: nvml.h of the NVIDIA Management Library (docs.nvidia.com/deploy/nvml-api): names, argument types, units (mJ
since the driver was loaded, mW, degrees Celsius, MHz) and bits of the throttle reasons.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from benchmarks.power.reader import NoReaderError, Reader, Reading, Unwrapped
from metro_edge.errors import UserError

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_TEMPERATURE_GPU = 0
_CLOCKS = {"gpu": 1, "gpu memory": 2}  # NVML_CLOCK_SM, NVML_CLOCK_MEM
# Idle (1), clocks that the user set (2), sync boost (16) and the display's clocks (256) are no throttling.
_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class NvmlReader(Reader):
    """One GPU.

    Args:
        library: of NVML, loaded; None loads the system's.
        bus_id: PCI address of the GPU; None for CUDA's device 0, which engines take, or NVML's first without CUDA.

    Raises:
        NoReaderError: no library, no GPU, or one that tells neither energy nor power.
    """

    name = "nvml"

    def __init__(self, library: ctypes.CDLL | None = None, bus_id: str | None = None) -> None:
        self._library: Any = library or _loaded()
        self._open = False
        if (code := self._library.nvmlInit_v2()) != 0:
            raise NoReaderError(f"{LIBRARY} does not start (error {code}): no NVIDIA GPU, or its driver is not loaded")
        self._open = True
        self._device = ctypes.c_void_p()
        bus_id = bus_id or _first_bus_id()
        found = (
            self._library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(0), ctypes.byref(self._device))
            if bus_id is None
            else self._library.nvmlDeviceGetHandleByPciBusId_v2(bus_id.encode(), ctypes.byref(self._device))
        )
        if found != 0:
            self.close()
            raise NoReaderError(f"{LIBRARY} knows no GPU {bus_id or 0} (error {found})")
        self._unwrapped = Unwrapped("nvmlDeviceGetTotalEnergyConsumption", None)
        first = self.read()
        if not first.energy_j and not first.power_w:
            self.close()
            raise NoReaderError(f"{LIBRARY} tells neither energy nor power of this GPU, as on a Jetson")
        self.total = ("gpu",)
        buffer = ctypes.create_string_buffer(96)
        known = self._library.nvmlDeviceGetName(self._device, buffer, ctypes.c_uint(len(buffer))) == 0
        self.scope = f"GPU board ({buffer.value.decode(errors='replace') if known else 'GPU'}), without the host"

    def read(self) -> Reading:
        """Return what the GPU tells; raises UserError when it is closed or its energy counter fell."""
        if not self._open:
            raise UserError("this reader is closed")
        energy = self._asked("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())
        power = self._asked("nvmlDeviceGetPowerUsage", ctypes.c_uint())
        heat = self._asked("nvmlDeviceGetTemperature", ctypes.c_uint(), ctypes.c_int(_TEMPERATURE_GPU))
        clocks = {
            name: self._asked("nvmlDeviceGetClockInfo", ctypes.c_uint(), ctypes.c_int(kind))
            for name, kind in _CLOCKS.items()
        }
        reasons = self._asked("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong())
        return Reading(
            power_w={} if power is None else {"gpu": power / 1e3},
            energy_j={} if energy is None else {"gpu": self._unwrapped(energy) / 1e3},
            temperature_c={} if heat is None else {"gpu": float(heat)},
            clock_mhz={name: float(value) for name, value in clocks.items() if value is not None},
            throttled=tuple(words for bit, words in _REASONS.items() if reasons is not None and reasons & bit),
        )

    def _asked(self, function: str, result: Any, *arguments: Any) -> int | None:
        """Return what a function writes to its last argument; None when this GPU or library does not have it."""
        call = getattr(self._library, function, None)
        if call is None or call(self._device, *arguments, ctypes.byref(result)) != 0:
            return None
        return int(result.value)

    def close(self) -> None:
        """End NVML."""
        if self._open:
            self._open = False
            self._library.nvmlShutdown()


def _loaded() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        raise NoReaderError(f"no {LIBRARY}: no NVIDIA driver is installed") from None


def _first_bus_id() -> str | None:
    """Return the PCI address of CUDA's device 0, which need not be NVML's; None without CUDA."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    text, device = ctypes.create_string_buffer(64), ctypes.c_int()
    succeeded = (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
        and driver.cuDeviceGetPCIBusId(text, len(text), device) == 0
    )
    return text.value.decode() if succeeded else None
