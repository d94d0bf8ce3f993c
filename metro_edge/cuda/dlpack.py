"""DLPack of arrays on the GPU, both ways: what PyTorch, CuPy, JAX and C++ libraries hand over without a copy.

The structures are those of dlpack.h, version 0.x and unversioned, which every library reads and writes.
https://dmlc.github.io/dlpack/latest/python_spec.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from metro_edge.errors import UserError

DLPACK_CUDA = 2  # kDLCUDA
FRESH, USED = b"dltensor", b"used_dltensor"
CODES = {0: "i", 1: "u", 2: "f"}  # kDLInt, kDLUInt, kDLFloat


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", _Deleter))


_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)


@dataclass
class Imported:
    """An array of another library, given back to it with this object.

    Attributes:
        pointer: of the first element.
        shape, dtype: as NumPy's.
        strides: in bytes, None of an array without gaps.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] | None
    _give_back: Callable[[], None] = field(repr=False)

    def __del__(self) -> None:
        self._give_back()


def imported(array: Any) -> Imported:
    """Return what an object with __dlpack__ describes, on whatever device.

    The producer orders nothing: the caller waits for its stream. Raises UserError for types that NumPy does not have.
    """
    capsule = array.__dlpack__(stream=-1)
    address = _api.PyCapsule_GetPointer(capsule, FRESH)
    managed = _Managed.from_address(address)
    _api.PyCapsule_SetName(capsule, USED)

    def give_back() -> None:
        if managed.deleter:
            managed.deleter(address)

    tensor = managed.tensor
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.code not in CODES or tensor.lanes != 1 or tensor.bits % 8:
        give_back()
        raise UserError(f"DLPack type {tensor.code} of {tensor.bits} bits x {tensor.lanes} is none that can be read")
    dtype = np.dtype(f"{CODES[tensor.code]}{tensor.bits // 8}")
    strides = tuple(tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim)) if tensor.strides else None
    return Imported(int(tensor.data or 0) + int(tensor.byte_offset), shape, dtype, strides, give_back)


class _Export:
    """What a capsule points at, kept until its consumer or the capsule itself lets go."""

    alive: ClassVar[dict[int, _Export]] = {}

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], ordinal: int, owner: Any) -> None:
        self.owner = owner
        self.shape = (ctypes.c_int64 * max(len(shape), 1))(*shape)
        self.managed = _Managed()
        tensor = self.managed.tensor
        tensor.data, tensor.device_type, tensor.device_id = pointer, DLPACK_CUDA, ordinal
        tensor.ndim, tensor.shape = len(shape), ctypes.cast(self.shape, ctypes.POINTER(ctypes.c_int64))
        tensor.code = {kind: code for code, kind in CODES.items()}[dtype.kind]
        tensor.bits, tensor.lanes = dtype.itemsize * 8, 1
        self.managed.deleter = _DELETE
        self.alive[ctypes.addressof(self.managed)] = self


def _delete(address: int) -> None:
    _Export.alive.pop(address, None)


def _drop(capsule: int) -> None:
    """A capsule goes that nobody took: so does what it points at."""
    held = ctypes.cast(capsule, ctypes.py_object)
    try:
        address = _api.PyCapsule_GetPointer(held, FRESH)
    except ValueError:  # taken: the consumer calls the deleter
        return
    _Export.alive.pop(address, None)


_DELETE, _DROP = _Deleter(_delete), _Deleter(_drop)


def exported(pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], ordinal: int, owner: Any) -> Any:
    """Return a DLPack capsule of a C-contiguous array on a GPU; `owner` lives as long as its consumer wants."""
    export = _Export(pointer, shape, dtype, ordinal, owner)
    return _api.PyCapsule_New(ctypes.addressof(export.managed), FRESH, ctypes.cast(_DROP, ctypes.c_void_p))
