"""Frames as callers have them: on the host or on a GPU, described without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.cuda.arrays import BYTES_PER_PX, DeviceFrame, described_by
from metro_edge.cuda.dlpack import DLPACK_CUDA, NO_WAIT, imported
from metro_edge.cuda.driver import check_memory
from metro_edge.errors import UserError
from metro_edge.frames import HostFrame
from metro_edge.preprocess import check_frame


@dataclass(frozen=True)
class GivenFrame:
    """A frame that was checked: `device` of one on the GPU, `planes` of one on the host.

    Attributes:
        width, height: in px.
        format, yuv: as of DeviceFrame.
        device: what to read, None for a frame on the host.
        planes: (rows, bytes of a row) uint8, or (rows, px, 3) where the pixels lie apart: views of the caller's memory.
        stream: CUstream handle of what fills it, None where nothing says.
        owner: what keeps its memory.
    """

    width: int
    height: int
    format: str
    yuv: str
    device: DeviceFrame | None
    planes: tuple[NDArray[np.uint8], ...]
    stream: int | None
    owner: Any


def given_frame(frame: Any, ordinal: int, reader: int = NO_WAIT) -> GivenFrame:
    """Return any kind of frame as one.

    Args:
        frame: a HostFrame or a DeviceFrame of any format; (H, W, 3) uint8 BGR as a NumPy array, or as an object with
            __cuda_array_interface__ or DLPack on a GPU (PyTorch, CuPy, Numba, PyCUDA), rows with or without gaps.
        ordinal: of the GPU that it must be on, if it is on any.
        reader: CUstream handle of who will read it; a library that hands its array over by DLPack lets that stream wait
            for what fills the array. NO_WAIT: the caller waits, for a stream that it knows.

    Raises:
        UserError: another type, shape, or layout; memory that was freed, that is too small, or of another GPU.
    """
    if isinstance(frame, DeviceFrame):
        return _on_device(frame, None, frame, ordinal)
    if isinstance(frame, HostFrame):
        return GivenFrame(frame.width, frame.height, frame.format, frame.yuv, None, frame.planes(), None, frame)
    if isinstance(getattr(frame, "__cuda_array_interface__", None), dict):
        interface = frame.__cuda_array_interface__
        if interface.get("mask") is not None:
            raise UserError("a frame with a mask cannot be read")
        described = _bgr(*described_by(interface, "the frame"))
        stream = interface.get("stream")
        if stream is not None and (not isinstance(stream, (int, np.integer)) or stream < 1):
            # By the protocol: 0 would be ambiguous, 1 is the default stream, 2 that of the thread.
            raise UserError(f"the frame's __cuda_array_interface__ must name a stream by a handle or 1, got {stream!r}")
        return _on_device(described, None if stream is None else int(stream), frame, ordinal)
    if not isinstance(frame, np.ndarray) and hasattr(frame, "__dlpack_device__"):
        kind, number = _dlpack_device(frame)
        if kind == DLPACK_CUDA:
            if number != ordinal:
                raise UserError(f"the frame is on GPU {number}, this network runs on GPU {ordinal}")
            tensor = imported(frame, reader)
            described = _bgr(tensor.pointer, tensor.shape, tensor.dtype, tensor.strides)
            return _on_device(described, None, tensor, ordinal)
        frame = _host_array(frame)
    checked = check_frame(frame)
    height, width = checked.shape[:2]
    rows = checked.reshape(height, width * 3) if checked.flags.c_contiguous else _rows(checked)
    return GivenFrame(width, height, "bgr", "bt601", None, (rows,), None, frame)


def stream_handle(stream: Any) -> int | None:
    """Return the CUstream handle of a stream of PyCUDA, PyTorch, CuPy, Numba or of a number; None of None.

    Raises UserError for something else.
    """
    if stream is None:
        return None
    value = stream
    if hasattr(stream, "__cuda_stream__"):
        value = stream.__cuda_stream__() if callable(stream.__cuda_stream__) else stream.__cuda_stream__
        value = value[1] if isinstance(value, (tuple, list)) and len(value) == 2 else None
    elif not isinstance(stream, (int, np.integer)):
        found = (
            getattr(stream, name, None) for name in ("handle", "cuda_stream", "ptr")
        )  # PyCUDA, Numba; PyTorch; CuPy
        value = next((one for one in found if one is not None), None)
        if value is not None and hasattr(value, "value"):
            value = value.value or 0  # ctypes gives None for the address 0, the default stream
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 0:
        got = repr(stream) if isinstance(stream, (int, np.integer)) else type(stream).__name__
        raise UserError(f"a stream must be a CUstream handle or a stream of a CUDA library, got {got}")
    return int(value)


def _dlpack_device(frame: Any) -> tuple[int, int]:
    try:
        kind, number = frame.__dlpack_device__()
        return int(kind), int(number)
    except Exception as error:  # whatever another library raises
        raise UserError(f"{type(frame).__name__} does not say which device it is on: {error}") from None


def _host_array(frame: Any) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.from_dlpack(frame)
    except Exception as error:
        raise UserError(f"NumPy cannot read the {type(frame).__name__} by DLPack: {error}") from None
    return array


def _bgr(pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], strides: Any) -> DeviceFrame:
    if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
        raise UserError(f"a frame on the GPU must be (H, W, 3) uint8 BGR, got {shape} {dtype}; DeviceFrame says others")
    height, width, _ = shape
    pitch = width * 3
    if strides is not None and height:
        if tuple(strides[1:]) != (3, 1):
            raise UserError(f"the pixels of a frame's row must follow each other, got strides {tuple(strides)} bytes")
        pitch = int(strides[0]) if height > 1 else pitch
    return DeviceFrame(pointer, width, height, "bgr", pitch)


def _on_device(frame: DeviceFrame, stream: int | None, owner: Any, ordinal: int) -> GivenFrame:
    row = frame.width * BYTES_PER_PX[frame.format]
    check_memory("the frame", frame.pointer, frame.row_pitch * (frame.height - 1) + row, ordinal)
    if frame.format == "nv12":
        rows = frame.height // 2
        check_memory("the frame's UV plane", frame.uv_address, frame.uv_row_pitch * (rows - 1) + row, ordinal)
    return GivenFrame(frame.width, frame.height, frame.format, frame.yuv, frame, (), stream, owner)


def _rows(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a view of a frame with rows that lie apart: (rows, bytes) where its pixels follow each other."""
    height, width = frame.shape[:2]
    if frame.strides[1:] == (3, 1) and frame.strides[0] > 0:
        return np.lib.stride_tricks.as_strided(frame, (height, width * 3), (frame.strides[0], 1), writeable=False)
    return frame  # not copied yet: a stream may still fill it
