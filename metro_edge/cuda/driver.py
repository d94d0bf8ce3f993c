"""What PyCUDA lacks of the CUDA driver: graphs, what a pointer and a stream belong to, other people's streams.

The functions are called in the driver library that PyCUDA itself has loaded; the context must be current.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

from metro_edge.errors import DeviceError, UserError

# From cuda.h: CUstreamCaptureMode, CUpointer_attribute, CUmemorytype, CUresult.
CAPTURE_THREAD_LOCAL = 1
POINTER_MEMORY_TYPE, POINTER_DEVICE_ORDINAL = 2, 9
POINTER_RANGE_START, POINTER_RANGE_SIZE = 11, 12
MEMORY_HOST, MEMORY_DEVICE = 1, 2
INVALID_VALUE, NOT_READY = 1, 600
EVENT_DISABLE_TIMING = 2
# Errors after which nothing works in the process any more.
LOST = ("ILLEGAL_ADDRESS", "LAUNCH_FAILED", "DEVICE_LOST", "ECC", "HARDWARE_STACK", "ILLEGAL_INSTRUCTION", "NVLINK")


class KernelNodeParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v1 of cuda.h, the one that drivers of CUDA 11, 12 and 13 all take."""

    _fields_ = (
        ("func", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("kernel_params", ctypes.POINTER(ctypes.c_void_p)),
        ("extra", ctypes.POINTER(ctypes.c_void_p)),
    )


@cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        raise UserError(f"the CUDA driver does not load: {error}") from None


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver; raises DeviceError with the driver's own words unless it succeeds."""
    result = getattr(_library(), name)(*arguments)
    if result:
        raise DeviceError(with_advice(f"{name}: {words_of(result)}"))


def with_advice(text: str) -> str:
    """Return an error's text, with what to do where it means that the GPU is lost to this process."""
    if any(word in text.upper().replace(" ", "_") for word in LOST):
        text += ". The GPU answers nothing more to this process: end it; `metro-edge selftest` says whether it recovers"
    return text


def words_of(result: int) -> str:
    """Return name and meaning of a CUresult, such as `CUDA_ERROR_OUT_OF_MEMORY, out of memory`."""
    words = []
    for function in ("cuGetErrorName", "cuGetErrorString"):
        text = ctypes.c_char_p()
        if getattr(_library(), function)(result, ctypes.byref(text)) == 0 and text.value:
            words.append(text.value.decode(errors="replace"))
    return ", ".join(words) or f"error {result}"


def check_memory(what: str, pointer: int, nbytes: int, ordinal: int) -> None:
    """Raise UserError unless `nbytes` from `pointer` on lie in one allocation on device `ordinal`.

    Finds memory that was freed, host memory, that of another GPU, and a frame larger than its buffer. Memory that
    several GPUs can reach counts as that of the GPU that owns it.
    """
    kind, owner, start, size = ctypes.c_uint(), ctypes.c_int(), ctypes.c_uint64(), ctypes.c_size_t()
    attributes = {
        POINTER_MEMORY_TYPE: kind,
        POINTER_DEVICE_ORDINAL: owner,
        POINTER_RANGE_START: start,
        POINTER_RANGE_SIZE: size,
    }
    for attribute, value in attributes.items():
        result = _library().cuPointerGetAttribute(ctypes.byref(value), attribute, ctypes.c_uint64(pointer))
        if result == INVALID_VALUE:
            raise UserError(f"{what} at {pointer:#x} is no memory that CUDA knows: it was freed, or is the host's")
        if result:
            raise DeviceError(f"cuPointerGetAttribute: {words_of(result)}")
        if attribute == POINTER_MEMORY_TYPE and kind.value != MEMORY_DEVICE:
            raise UserError(f"{what} at {pointer:#x} is in the host's memory, memory of GPU {ordinal} was expected")
    if owner.value != ordinal:
        raise UserError(f"{what} at {pointer:#x} is on GPU {owner.value}, this network runs on GPU {ordinal}")
    if pointer + nbytes > start.value + size.value:
        left = start.value + size.value - pointer
        raise UserError(f"{what} needs {nbytes} bytes from {pointer:#x} on, its memory ends after {left}")


def ordinal_of(pointer: int) -> int:
    """Return the number of the GPU whose memory `pointer` is in; raises DeviceError where CUDA does not know it."""
    owner = ctypes.c_int()
    call("cuPointerGetAttribute", ctypes.byref(owner), POINTER_DEVICE_ORDINAL, ctypes.c_uint64(pointer))
    return owner.value


def current_ordinal() -> int:
    """Return the number of the GPU whose context is current; raises DeviceError where none is."""
    ordinal = ctypes.c_int()
    call("cuCtxGetDevice", ctypes.byref(ordinal))
    return ordinal.value


def is_page_locked(pointer: int) -> bool:
    """Whether host memory at `pointer` is known to CUDA, so that copies of it need no staging."""
    kind = ctypes.c_uint()
    result = _library().cuPointerGetAttribute(ctypes.byref(kind), POINTER_MEMORY_TYPE, ctypes.c_uint64(pointer))
    return result == 0 and kind.value == MEMORY_HOST


def check_stream(handle: int, context: int) -> None:
    """Raise UserError unless a stream, by its CUstream handle, is one of `context`, a CUcontext handle.

    0 is the default stream. A stream that was destroyed cannot be told from one that never was, and CUDA may crash.
    """
    owner = ctypes.c_void_p()
    result = _library().cuStreamGetCtx(ctypes.c_void_p(handle), ctypes.byref(owner))
    if result:
        raise UserError(f"stream {handle:#x} is not usable here: {words_of(result)}")
    if owner.value != context:
        raise UserError(f"stream {handle:#x} is of another CUDA context: make it in this network's GPU's primary one")


class Event:
    """An event without a time. Unlike PyCUDA's it takes streams by their handles, which may be somebody else's."""

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        call("cuEventCreate", ctypes.byref(self._handle), EVENT_DISABLE_TIMING)

    def record(self, stream: int) -> None:
        """Put it behind what the stream was given so far."""
        call("cuEventRecord", self._handle, ctypes.c_void_p(stream))

    def hold(self, stream: int) -> None:
        """Let a stream wait for it; the processor does not."""
        call("cuStreamWaitEvent", ctypes.c_void_p(stream), self._handle, 0)

    def passed(self) -> bool:
        """Whether what it stands behind is done; also True before it was ever recorded."""
        result = _library().cuEventQuery(self._handle)
        if result not in (0, NOT_READY):
            raise DeviceError(with_advice(f"cuEventQuery: {words_of(result)}"))
        return bool(result == 0)

    def wait(self) -> None:
        """Wait until it has passed; other Python threads go on meanwhile."""
        call("cuEventSynchronize", self._handle)

    def close(self) -> None:
        """Free it; doing it twice is fine."""
        if self._handle:
            call("cuEventDestroy_v2", self._handle)
            self._handle = ctypes.c_void_p()
