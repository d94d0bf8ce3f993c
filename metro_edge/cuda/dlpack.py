"""DLPack of arrays on the GPU, both ways: what PyTorch, CuPy, JAX and C++ libraries hand over without a copy.

The structures are those of dlpack.h, version 0.x and unversioned, which every library reads and writes.
https://dmlc.github.io/dlpack/latest/python_spec.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from metro_edge.errors import UserError

DLPACK_CUDA = 2  # kDLCUDA
FRESH, USED = b"dltensor", b"used_dltensor"
CODES = {0: "i", 1: "u", 2: "f", 6: "b"}  # kDLInt, kDLUInt, kDLFloat, kDLBool
NO_WAIT = -1  # in place of a stream, by the protocol


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
_api.PyCapsule_IsValid.argtypes = (ctypes.py_object, ctypes.c_char_p)
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


def imported(array: Any, stream: int = NO_WAIT) -> Imported:
    """Return what an object with __dlpack__ describes, on whatever device.

    Args:
        array: the object.
        stream: CUstream handle of who will read it: the object's library lets it wait for what fills the array.
            NO_WAIT: it orders nothing, the caller does.

    Raises:
        UserError: types that NumPy does not have, or an object that hands nothing over.
    """
    try:
        capsule = array.__dlpack__(stream=stream)
    except Exception as error:  # BufferError by the protocol, to which not every library holds
        raise UserError(f"{type(array).__name__} hands its memory over to nobody: {error}") from None
    if not _api.PyCapsule_IsValid(capsule, FRESH):
        raise UserError(f"{type(array).__name__}.__dlpack__ returned {type(capsule).__name__}, no DLPack capsule")
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


class _Claim:
    """What NumPy takes for an array, of memory that it never looks at; keeps the memory's owner."""

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = {"data": (pointer, False), "shape": shape, "typestr": dtype.str, "version": 3}


def exported(pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], ordinal: int, owner: Any) -> Any:
    """Return a DLPack capsule of a C-contiguous array on a GPU; `owner` lives as long as its consumer wants.

    The capsule is NumPy's, with another device written into it: it may be freed while an exception is on its way, and
    a destructor in Python would lose that. Raises BufferError for a type that DLPack does not have.
    """
    capsule = np.asarray(_Claim(pointer, shape, dtype, owner)).__dlpack__()
    tensor = _Managed.from_address(_api.PyCapsule_GetPointer(capsule, FRESH)).tensor
    tensor.device_type, tensor.device_id = DLPACK_CUDA, ordinal
    return capsule


def check_export(ordinal: int, dl_device: tuple[int, int] | None, copy: bool | None) -> None:
    """Raise BufferError, as the protocol asks, for a copy and for another device than CUDA's number `ordinal`."""
    if copy:
        raise BufferError("this array is handed over where it is, not as a copy: ask for copy=None, and copy it then")
    if dl_device is not None and tuple(map(int, dl_device)) != (DLPACK_CUDA, ordinal):
        raise BufferError(f"this array is on DLPack device {(DLPACK_CUDA, ordinal)}, {tuple(dl_device)} was asked for")
