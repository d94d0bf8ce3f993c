"""Frames as callers have them: on the host or on a GPU, described without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.cuda.arrays import BYTES_PER_PX, DeviceFrame
from metro_edge.cuda.dlpack import DLPACK_CUDA, imported
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
        planes: (rows, bytes of a row) uint8, views of the caller's memory.
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


def given_frame(frame: Any, ordinal: int) -> GivenFrame:
    """Return any kind of frame as one.

    Args:
        frame: a HostFrame or a DeviceFrame of any format; (H, W, 3) uint8 BGR as a NumPy array, or as an object with
            __cuda_array_interface__ or DLPack on a GPU (PyTorch, CuPy, Numba, PyCUDA), rows with or without gaps.
        ordinal: of the GPU that it must be on, if it is on any.

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
        pointer, shape = int(interface["data"][0] or 0), tuple(map(int, interface["shape"]))
        described = _bgr(pointer, shape, np.dtype(interface["typestr"]), interface.get("strides"))
        stream = interface.get("stream")
        return _on_device(described, None if stream is None else int(stream), frame, ordinal)
    if not isinstance(frame, np.ndarray) and hasattr(frame, "__dlpack_device__"):
        kind, number = (int(value) for value in frame.__dlpack_device__())
        if kind == DLPACK_CUDA:
            if number != ordinal:
                raise UserError(f"the frame is on GPU {number}, this network runs on GPU {ordinal}")
            tensor = imported(frame)
            described = _bgr(tensor.pointer, tensor.shape, tensor.dtype, tensor.strides)
            return _on_device(described, None, tensor, ordinal)
        frame = np.from_dlpack(frame)
    checked = check_frame(frame)
    height, width = checked.shape[:2]
    rows = checked.reshape(height, width * 3) if checked.flags.c_contiguous else _rows(checked)
    return GivenFrame(width, height, "bgr", "bt601", None, (rows,), None, frame)


def stream_handle(stream: Any) -> int | None:
    """Return the CUstream handle of a stream of PyCUDA, PyTorch, CuPy, Numba or of a number; None of None.

    Raises UserError for something else.
    """
    if stream is None or isinstance(stream, (int, np.integer)):
        return None if stream is None else int(stream)
    if hasattr(stream, "__cuda_stream__"):
        value = stream.__cuda_stream__() if callable(stream.__cuda_stream__) else stream.__cuda_stream__
        return int(value[1])
    for name in ("handle", "cuda_stream", "ptr"):  # PyCUDA and Numba, PyTorch, CuPy
        value = getattr(stream, name, None)
        value = getattr(value, "value", value)
        if isinstance(value, int):
            return value
    raise UserError(f"a stream must be a CUstream handle or a stream of a CUDA library, got {type(stream).__name__}")


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
    """Return a frame whose rows lie apart as (rows, bytes), without a copy where its pixels follow each other."""
    height, width = frame.shape[:2]
    if frame.strides[1:] == (3, 1) and frame.strides[0] > 0:
        return np.lib.stride_tricks.as_strided(frame, (height, width * 3), (frame.strides[0], 1), writeable=False)
    return np.ascontiguousarray(frame).reshape(height, width * 3)
