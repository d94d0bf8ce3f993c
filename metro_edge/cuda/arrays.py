"""Arrays and frames in device memory, as the launchers take them: checked before anything is launched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from metro_edge.cuda.context import entered_context
from metro_edge.cuda.dlpack import DLPACK_CUDA, check_export, exported
from metro_edge.cuda.driver import current_ordinal, ordinal_of
from metro_edge.cuda.loading import load_pycuda
from metro_edge.errors import UserError
from metro_edge.preprocess import MAX_SIDE_PX

MAX_PEOPLE = 64  # of one launch, as in kernels/common.cuh; more take several
BYTES_PER_PX = {"bgr": 3, "rgb": 3, "grey": 1, "nv12": 1, "yuyv": 2}  # of the first plane
FORMATS = tuple(BYTES_PER_PX)

# (black level, gains of Y, of V in red, of U and V in green, of U in blue), in 2^-20; Y and the others count levels of
# 0 to 255. bt601 is what cv2.cvtColor does with NV12 and YUY2; the others follow from the coefficients Kr, Kb of
# ITU-R BT.601-7 and BT.709-6 with 219 (luma) and 224 (chroma) levels, or 255 where the range is full.
YUV_RULES = {
    "bt601": (16, 1220542, 1673527, -409993, -852492, 2116026),
    "bt709": (16, 1220945, 1879825, -223607, -558796, 2215014),
    "bt601-full": (0, 1048576, 1470104, -360853, -748826, 1858077),
    "bt709-full": (0, 1048576, 1651297, -196424, -490864, 1945738),
}
LUMA_SHARES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # Kr, Kb


def yuv_of_bgr(yuv: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what black is (3,) and the matrix (3, 3) with Y, U, V = black + matrix (b, g, r), all of 0 to 255.

    ITU-R BT.601-7 and BT.709-6; see YUV_RULES for the names.
    """
    red, blue = LUMA_SHARES[yuv.removesuffix("-full")]
    luma = np.array([blue, 1.0 - red - blue, red])
    matrix = np.stack([luma, ((1, 0, 0) - luma) / (2 * (1 - blue)), ((0, 0, 1) - luma) / (2 * (1 - red))])
    full = yuv.endswith("-full")
    if not full:
        matrix *= np.array([219.0, 224.0, 224.0])[:, None] / 255.0
    return np.array([0.0 if full else 16.0, 128.0, 128.0]), matrix


class _Exporting:
    """The protocols by which other libraries take an array without a copy; nothing is waited for."""

    def _described(self) -> DeviceArray:
        raise NotImplementedError

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        array = self._described()
        return {"shape": array.shape, "typestr": array.dtype.str, "data": (array.pointer, False), "version": 3}

    def __dlpack_device__(self) -> tuple[int, int]:
        array = self._described()
        return DLPACK_CUDA, ordinal_of(array.pointer) if array.ordinal is None else array.ordinal

    def __dlpack__(self, *, dl_device: tuple[int, int] | None = None, copy: bool | None = None, **_: Any) -> Any:
        """Return a capsule, without a copy; raises BufferError for a copy or another device."""
        array, ordinal = self._described(), self.__dlpack_device__()[1]
        check_export(ordinal, dl_device, copy)
        return exported(array.pointer, array.shape, array.dtype, ordinal, self)


@dataclass(frozen=True)
class DeviceArray(_Exporting):
    """A C-contiguous array in device memory that somebody else owns and keeps alive, also from who takes its DLPack.

    Attributes:
        pointer: address of the first element.
        shape, dtype: as NumPy's.
        ordinal: number of its GPU, None where the driver must be asked, in a thread with a context.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    ordinal: int | None = field(default=None, compare=False, repr=False)

    def _described(self) -> DeviceArray:
        return self

    @classmethod
    def of(cls, array: Any, name: str = "array") -> DeviceArray:
        """Return any object with __cuda_array_interface__ (PyCUDA, CuPy, PyTorch, Numba) as one.

        Raises UserError for another object, or one that is not C-contiguous.
        """
        if isinstance(array, DeviceArray):
            return array
        if isinstance(array, DeviceBuffer):
            return array._described()
        interface = getattr(array, "__cuda_array_interface__", None)
        if not isinstance(interface, dict):
            raise UserError(
                f"{name} must be in device memory: a DeviceArray or an object with __cuda_array_interface__, "
                f"got {type(array).__name__}"
            )
        pointer, shape, dtype, strides = described_by(interface, name)
        if strides is not None and 0 not in shape and _c_strides(shape, dtype) != _without_ones(shape, strides):
            raise UserError(f"{name} must be C-contiguous, got shape {shape} with strides {strides} bytes")
        return cls(pointer, shape, dtype)

    def rows(self, first: int, last: int) -> DeviceArray:
        """Return the rows `first` to `last` - 1 of the leading axis."""
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        return DeviceArray(self.pointer + first * row, (last - first, *self.shape[1:]), self.dtype, self.ordinal)


class DeviceBuffer(_Exporting):
    """An array in device memory of the current context, freed with the object, or with its DeviceContext before.

    Attributes:
        shape, dtype: as NumPy's; the content is undefined until something is written.
        ordinal: number of its GPU.

    Raises:
        UserError: when the memory is not there.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._driver = load_pycuda()
        self.ordinal = current_ordinal()
        nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        try:
            self._memory = self._driver.mem_alloc(nbytes) if nbytes else None
        except self._driver.MemoryError:
            raise UserError(f"no {nbytes / 1e6:.1f} MB of device memory left for {self.shape} {self.dtype}") from None
        if (context := entered_context()) is not None:
            context.owns(self)

    def _described(self) -> DeviceArray:
        return DeviceArray(self.pointer, self.shape, self.dtype, self.ordinal)

    def close(self) -> None:
        """Free it; doing it twice is fine."""
        if self._memory is not None:
            self._memory.free()
            self._memory = None

    @classmethod
    def of(cls, array: NDArray[Any]) -> DeviceBuffer:
        """Return a copy of a NumPy array."""
        buffer = cls(array.shape, array.dtype)
        if buffer._memory is not None:
            buffer._driver.memcpy_htod(buffer._memory, np.ascontiguousarray(array))
        return buffer

    @property
    def pointer(self) -> int:
        """Address of the first element; 0 of an array without any, and when it was freed."""
        return int(self._memory) if self._memory is not None else 0

    def rows(self, first: int, last: int) -> DeviceArray:
        """Return the rows `first` to `last` - 1 of the leading axis, which live as long as this object."""
        return DeviceArray.of(self).rows(first, last)

    def get(self) -> NDArray[Any]:
        """Return a copy as a NumPy array; waits for the work of all streams that wait for the default one."""
        array = np.empty(self.shape, self.dtype)
        if self._memory is not None:
            self._driver.memcpy_dtoh(array, self._memory)
        elif array.size:
            raise UserError(f"the buffer of {self.shape} {self.dtype} was freed")
        return array


def launches(people: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last + 1 of the people of each launch."""
    for first in range(0, people, MAX_PEOPLE):
        yield first, min(first + MAX_PEOPLE, people)


def _c_strides(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    strides = [dtype.itemsize * int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]
    return _without_ones(shape, strides)


def _without_ones(shape: tuple[int, ...], strides: Any) -> tuple[int, ...]:
    """Return the strides that matter: along an axis of one element any will do."""
    return tuple(int(stride) for n, stride in zip(shape, strides, strict=True) if n != 1)


def described_by(
    interface: dict[str, Any], name: str
) -> tuple[int, tuple[int, ...], np.dtype[Any], tuple[int, ...] | None]:
    """Return pointer, shape, type and strides (None: no gaps) of a __cuda_array_interface__; raises UserError."""
    try:
        shape = tuple(int(n) for n in interface["shape"])
        strides = interface.get("strides")
        strides = None if strides is None else tuple(int(n) for _, n in zip(shape, strides, strict=True))
        return int(interface["data"][0] or 0), shape, np.dtype(interface["typestr"]), strides
    except (KeyError, IndexError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{name} has a __cuda_array_interface__ that cannot be read ({why}): {interface!r}") from None


def people_of(array: Any, name: str) -> int:
    """Return the length of a device array's leading axis; raises UserError for one without axes."""
    shape = DeviceArray.of(array, name).shape
    if not shape:
        raise UserError(f"{name} must have an axis of people, got a single value")
    return shape[0]


def pointer_of(name: str, array: Any, shape: tuple[int, ...], dtype: DTypeLike) -> np.uint64:
    """Return the address of a device array for a launch; raises UserError unless it has this shape and type."""
    held = DeviceArray.of(array, name)
    if held.shape != shape or held.dtype != np.dtype(dtype):
        raise UserError(f"{name} must be {shape} {np.dtype(dtype).name}, got {held.shape} {held.dtype.name}")
    if not held.pointer and 0 not in shape:
        raise UserError(f"{name} is at address 0: it was freed, or never allocated")
    if held.pointer % np.dtype(dtype).itemsize:
        raise UserError(f"{name} is at {held.pointer:#x}, which is no multiple of {np.dtype(dtype).itemsize} bytes")
    address: np.uint64 = np.uint64(held.pointer)
    return address


@dataclass(frozen=True)
class DeviceFrame:
    """A picture in device memory, as cameras and decoders give it; somebody else owns it and keeps it alive.

    Attributes:
        pointer: address of the first row.
        width, height: in px; even for `nv12`, an even width for `yuyv`.
        format: `bgr`, `rgb` (3 bytes a pixel), `grey` (1), `nv12` (Y, then pairs U, V at half the resolution both ways)
            or `yuyv` (Y0, U, Y1, V for two pixels).
        pitch: bytes from one row to the next; 0 stands for rows without a gap.
        uv_pointer, uv_pitch: of nv12's second plane; 0 stands for right behind the first, with its pitch.
        yuv: a name of YUV_RULES, what the colours of nv12 and yuyv mean.

    Raises:
        UserError: for values that do not fit the above.
    """

    pointer: int
    width: int
    height: int
    format: str = "bgr"
    pitch: int = 0
    uv_pointer: int = 0
    uv_pitch: int = 0
    yuv: str = "bt601"

    def __post_init__(self) -> None:
        if self.format not in FORMATS or self.yuv not in YUV_RULES:
            raise UserError(
                f"unknown format {self.format!r} or YUV rule {self.yuv!r}; "
                f"known: {', '.join(FORMATS)}; {', '.join(YUV_RULES)}"
            )
        for name in ("pointer", "width", "height", "pitch", "uv_pointer", "uv_pitch"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)):
                raise UserError(f"{name} of a frame must be a whole number, got {value!r}")
            object.__setattr__(self, name, int(value))
        size = f"{self.width} x {self.height} px"
        if not (1 <= self.width <= MAX_SIDE_PX and 1 <= self.height <= MAX_SIDE_PX):
            raise UserError(f"a frame must be 1 to {MAX_SIDE_PX} px in width and height, got {size}")
        if (self.format in ("nv12", "yuyv") and self.width % 2) or (self.format == "nv12" and self.height % 2):
            raise UserError(f"{self.format} needs an even width{' and height' * (self.format == 'nv12')}, got {size}")
        row = self.width * BYTES_PER_PX[self.format]
        for name, pitch in (("pitch", self.pitch), ("uv_pitch", self.uv_pitch)):
            if pitch and pitch < row:
                raise UserError(f"{name} {pitch} is below the {row} bytes of a row of {self.width} px {self.format}")
        if self.pointer <= 0 or self.uv_pointer < 0:
            raise UserError(f"a frame needs its address in device memory, got {self.pointer} and {self.uv_pointer}")
        if self.format != "nv12" and (self.uv_pointer or self.uv_pitch):
            raise UserError(f"{self.format} has one plane, but uv_pointer or uv_pitch is given")

    @property
    def row_pitch(self) -> int:
        """Bytes from row to row of the first plane."""
        return self.pitch or self.width * BYTES_PER_PX[self.format]

    @property
    def uv_row_pitch(self) -> int:
        """Bytes from row to row of nv12's second plane, else 0."""
        return (self.uv_pitch or self.row_pitch) if self.format == "nv12" else 0

    @property
    def uv_address(self) -> int:
        """Address of nv12's second plane, else 0."""
        return (self.uv_pointer or self.pointer + self.row_pitch * self.height) if self.format == "nv12" else 0
