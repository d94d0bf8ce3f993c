"""HostFrame: a picture in host memory as cameras and decoders give it, described and never copied."""

from __future__ import annotations

import ctypes
import operator
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.cuda.arrays import BYTES_PER_PX, YUV_RULES, DeviceFrame  # no GPU library: numbers and their checks
from metro_edge.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

Plane = NDArray[np.uint8]

# DLDeviceType of DLPack 1.1; what the CPU can read comes first.
READABLE_DEVICES = {1: "CPU", 3: "pinned by CUDA", 11: "pinned by ROCm", 13: "CUDA managed"}
OTHER_DEVICES = {
    2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 9: "VPI", 10: "ROCm", 12: "an extension",
    14: "oneAPI", 15: "WebGPU", 16: "Hexagon", 17: "MAIA",
}  # fmt: skip
UNSIGNED_BYTES = {"B", "c"}  # struct's letters, after its sign of byte order


class HostFrame:
    """A picture in host memory that somebody else owns: read in place, and its owner is kept alive.

        frame = HostFrame(buffer, 1920, 1080, "nv12", pitch=2048)
        bodies = estimator(frame, boxes)

    Args:
        data: anything with the buffer protocol that holds bytes: bytes, bytearray, memoryview, mmap, ctypes, NumPy.
            Flat, it holds the rows one after the other; with two or three axes each entry of the first is a row, and
            the rows may have gaps (`picture[10:90, 20:60]`), a pixel's bytes and a row's pixels may not.
        width, height: in px; even for `nv12`, an even width for `yuyv`.
        format: `bgr`, `rgb` (3 bytes a pixel), `grey` (1), `nv12` (Y, then pairs U, V at half the resolution both ways)
            or `yuyv` (Y0, U, Y1, V for two pixels).
        pitch: bytes from one row to the next; 0 stands for rows without a gap, or the gaps of the array's own.
        uv_pitch: of nv12's second plane; 0 stands for the first one's.
        yuv: what the colours of nv12 and yuyv mean: bt601, bt709, bt601-full or bt709-full.
        uv_offset: bytes from the first row of nv12 to its second plane; 0 stands for right behind the first.

    The picture may change between calls, not during one. Nothing is written to it.

    Raises:
        UserError: for values that do not fit the above, a buffer that is too short, was released, or holds no bytes.
    """

    def __init__(
        self,
        data: Any,
        width: int,
        height: int,
        format: str = "bgr",
        pitch: int = 0,
        uv_pitch: int = 0,
        yuv: str = "bt601",
        uv_offset: int = 0,
    ) -> None:
        rows = _bytes_of(data)
        pitch = _pitch_of(rows, _whole("pitch", pitch)) if rows.ndim > 1 else pitch
        address = int(rows.__array_interface__["data"][0])
        self._layout = _layout(address, width, height, format, pitch, uv_pitch, yuv, uv_offset)
        _check_rows(rows, self)
        self.owner = data
        self._planes = self._cut(rows)

    @classmethod
    def from_pointer(
        cls,
        address: int,
        width: int,
        height: int,
        format: str = "bgr",
        pitch: int = 0,
        owner: Any = None,
        uv_pitch: int = 0,
        yuv: str = "bt601",
        uv_offset: int = 0,
    ) -> Self:
        """Describe the picture at an address, as a C or C++ program gives it.

        Args:
            address: of the first row. Nobody can check it: a wrong one ends the process.
            owner: kept alive as long as the frame; None where the caller keeps the memory valid itself.
            width, height, format, pitch, uv_pitch, yuv, uv_offset: as of HostFrame.

        Raises:
            UserError: an address that is none, or values that do not fit.
        """
        address = _whole("address", address)
        if not 0 < address < 2**64:
            raise UserError(f"a frame needs the address of its first row, got {address}: freed, or never allocated?")
        self = cls.__new__(cls)
        self._layout = _layout(address, width, height, format, pitch, uv_pitch, yuv, uv_offset)
        memory = (ctypes.c_uint8 * self.nbytes).from_address(address)
        memory.owner = owner  # type: ignore[attr-defined]  # so that views of the planes keep it as well
        self.owner = owner
        rows = np.ctypeslib.as_array(memory)
        self._planes = self._cut(rows)
        return self

    @classmethod
    def from_array(cls, array: Any, format: str = "bgr", yuv: str = "bt601") -> Self:
        """Describe an array of bytes by its own shape and strides.

        Args:
            array: (H, W, 3) for bgr and rgb, (H, W) or (H, W, 1) for grey, (H, W, 2) for yuyv, (H * 3 / 2, W) for nv12.
            format, yuv: as of HostFrame.

        Raises:
            UserError: an array of another shape or type, or whose rows are not contiguous.
        """
        rows = _bytes_of(array)
        each = BYTES_PER_PX.get(format, 0)
        grey_or_y = rows.ndim == 2 and each == 1
        if each and not (grey_or_y or (rows.ndim == 3 and rows.shape[2] == each and format != "nv12")):
            shape = f"({'H * 3 / 2' if format == 'nv12' else 'H'}, W{f', {each}' if each > 1 else ''})"
            raise UserError(f"a {format} picture must be {shape} uint8, got shape {rows.shape}")
        if format == "nv12" and len(rows) % 3:
            raise UserError(f"an nv12 picture has H * 3 / 2 rows, got {len(rows)}, which no height gives")
        height = len(rows) * 2 // 3 if format == "nv12" else len(rows)
        return cls(array, rows.shape[1] if rows.ndim > 1 else 0, height, format, yuv=yuv)

    @classmethod
    def from_dlpack(cls, obj: Any, format: str = "bgr", yuv: str = "bt601") -> Self:
        """Describe the array of another library (PyTorch, JAX, CuPy's pinned memory, nanobind) in memory of the CPU.

        Args:
            obj: has `__dlpack__` and `__dlpack_device__`; the shapes are those of `from_array`.
            format, yuv: as of HostFrame.

        Raises:
            UserError: an object without DLPack, memory of a device that the CPU does not read, or what `from_array`
                refuses.
        """
        if not (hasattr(obj, "__dlpack__") and hasattr(obj, "__dlpack_device__")):
            raise UserError(f"from_dlpack needs an object with __dlpack__ and __dlpack_device__, got {_name(obj)}")
        kind, number = (int(value) for value in obj.__dlpack_device__())
        if kind not in READABLE_DEVICES:
            name = OTHER_DEVICES.get(kind, f"unknown type {kind}")
            raise UserError(
                f"the picture is in memory of device {number} ({name}), which the CPU does not read: "
                "copy it to the host first, or give a frame on a CUDA device to the estimator of CUDA frames"
            )
        try:
            array = np.from_dlpack(obj)
        except (BufferError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{_name(obj)} does not give its memory through DLPack: {error}") from None
        frame = cls.from_array(array, format, yuv)
        frame.owner = obj
        return frame

    def _cut(self, rows: NDArray[np.uint8]) -> tuple[Plane, ...]:
        """Return the planes as views of an array whose first byte is the picture's."""
        layout, size = self._layout, self.row_bytes
        planes = [_strided(rows, 0, layout.height, size, layout.row_pitch)]
        if layout.format == "nv12":
            planes.append(_strided(rows, self.uv_offset, layout.height // 2, size, layout.uv_row_pitch))
        return tuple(planes)

    @property
    def width(self) -> int:
        """In px."""
        return self._layout.width

    @property
    def height(self) -> int:
        """In px."""
        return self._layout.height

    @property
    def format(self) -> str:
        """Name of the format."""
        return self._layout.format

    @property
    def yuv(self) -> str:
        """Name of the rule of the colours of nv12 and yuyv."""
        return self._layout.yuv

    @property
    def address(self) -> int:
        """Address of the first row."""
        return self._layout.pointer

    @property
    def row_bytes(self) -> int:
        """Bytes of a row that are pixels; the same in both planes of nv12."""
        return self._layout.width * BYTES_PER_PX[self._layout.format]

    @property
    def pitch(self) -> int:
        """Bytes from one row to the next."""
        return self._layout.row_pitch

    @property
    def uv_pitch(self) -> int:
        """Bytes from row to row of nv12's second plane, else 0."""
        return self._layout.uv_row_pitch

    @property
    def uv_offset(self) -> int:
        """Bytes from the first row to nv12's second plane, else 0."""
        return self._layout.uv_address - self._layout.pointer if self._layout.format == "nv12" else 0

    @property
    def nbytes(self) -> int:
        """Bytes from the first of the picture to its last; the gap behind the last row does not count."""
        if self._layout.format == "nv12":
            return self.uv_offset + self.uv_pitch * (self.height // 2 - 1) + self.row_bytes
        return self.pitch * (self.height - 1) + self.row_bytes

    def planes(self) -> tuple[Plane, ...]:
        """Return the rows as they lie in memory, views (rows, row_bytes) uint8: one plane, or Y and UV of nv12."""
        return self._planes

    def bgr(self) -> NDArray[np.uint8]:
        """Return (H, W, 3) uint8 BGR: of a bgr frame a view, whatever its pitch, else converted.

        nv12 and yuyv by bt601 are what cv2.cvtColor makes of them, by the other rules within a level of the
        CUDA kernels. A pair U, V holds for the two or four pixels that share it.
        """
        first = self._planes[0]
        pixels = _pixels(first, self.width)
        if self.format == "bgr":
            return pixels
        if self.format == "rgb":
            made: Any = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        elif self.format == "grey":
            made = cv2.cvtColor(first, cv2.COLOR_GRAY2BGR)
        elif self.yuv != "bt601" and self.format == "yuyv":
            pairs = _pixels(first, self.width // 2)[..., 1::2]  # of Y0, U, Y1, V
            made = _bgr_by_rule(pixels[..., 0], np.ascontiguousarray(pairs), self.yuv)
        elif self.yuv != "bt601":
            made = _bgr_by_rule(first, _pixels(self._planes[1], self.width // 2), self.yuv)
        elif self.format == "yuyv":
            made = cv2.cvtColor(pixels, cv2.COLOR_YUV2BGR_YUY2)
        else:
            made = cv2.cvtColorTwoPlane(first, _pixels(self._planes[1], self.width // 2), cv2.COLOR_YUV2BGR_NV12)
        return np.asarray(made, np.uint8)

    def __repr__(self) -> str:
        return f"HostFrame({self.width} x {self.height} px {self.format}, pitch {self.pitch}, at {self.address:#x})"


def _name(value: Any) -> str:
    return type(value).__name__


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise UserError(f"{name} must be a whole number, got {value!r}") from None


def _layout(
    address: int, width: int, height: int, format: str, pitch: int, uv_pitch: int, yuv: str, uv_offset: int
) -> DeviceFrame:
    """Return the layout, checked by the one definition of what fits, for frames of the host and of a GPU."""
    offset = _whole("uv_offset", uv_offset)
    if offset < 0:
        raise UserError(f"uv_offset must be 0 or more bytes, got {offset}")
    sizes = (_whole("width", width), _whole("height", height))
    pitches = (_whole("pitch", pitch), _whole("uv_pitch", uv_pitch))
    layout = DeviceFrame(address, *sizes, format, pitches[0], address + offset if offset else 0, pitches[1], yuv)
    first = layout.row_pitch * (layout.height - 1) + layout.width * BYTES_PER_PX[format]
    if 0 < offset < first:
        raise UserError(f"uv_offset {offset} lies inside the first plane, which ends after {first} bytes")
    return layout


def _bytes_of(data: Any) -> NDArray[np.uint8]:
    """Return the bytes of a buffer as an array that keeps it exported; raises UserError."""
    try:
        view = memoryview(data)
    except TypeError:
        raise UserError(
            f"a frame needs an object with the buffer protocol (bytes, memoryview, mmap, NumPy), got {_name(data)}; "
            "HostFrame.from_dlpack and HostFrame.from_pointer take others"
        ) from None
    except (ValueError, BufferError) as error:
        raise UserError(f"the frame's memory is gone, or not to be had: {error}") from None
    if view.format.lstrip("@=<>!") not in UNSIGNED_BYTES:
        raise UserError(
            f"a frame must hold bytes (uint8), got items of format {view.format!r} and {view.itemsize} bytes each"
        )
    if not view.nbytes:
        raise UserError("the frame's buffer is empty")
    array: NDArray[np.uint8] = np.asarray(view).view(np.uint8)
    return array


def _pitch_of(rows: NDArray[np.uint8], pitch: int) -> int:
    """Return the strides from row to row of an array of rows; raises UserError where they are no pitch."""
    inner = rows.strides[1:]
    if inner != tuple(int(np.prod(rows.shape[i + 1 :])) for i in range(1, rows.ndim)):
        raise UserError(
            f"the rows of a frame must be contiguous, got shape {rows.shape} with strides {rows.strides} bytes; "
            "numpy.ascontiguousarray copies it into such rows"
        )
    own = rows.strides[0]
    if own <= 0 and len(rows) > 1:
        raise UserError(f"the rows of a frame must follow each other in memory, got {own} bytes from one to the next")
    if len(rows) == 1:
        own = max(own, int(np.prod(rows.shape[1:])))
    if pitch and pitch != own:
        raise UserError(f"pitch {pitch} is not that of the array, whose rows are {own} bytes apart")
    return own


def _check_rows(rows: NDArray[np.uint8], frame: HostFrame) -> None:
    """Raise UserError unless an array holds the frame."""
    if rows.ndim == 1:
        if rows.strides[0] != 1:
            raise UserError(f"a flat buffer must be contiguous, got a step of {rows.strides[0]} bytes")
        held = rows.size
    else:
        held = rows.strides[0] * (len(rows) - 1) + int(np.prod(rows.shape[1:]))
        if rows.ndim > 2 and rows.shape[1:] != (frame.width, frame.row_bytes // frame.width):
            raise UserError(f"a frame of {frame.width} px {frame.format} a row does not fit an array {rows.shape}")
        if int(np.prod(rows.shape[1:])) < frame.row_bytes:
            raise UserError(f"a row of {frame.width} px {frame.format} has {frame.row_bytes} bytes, got {rows.shape}")
    if held < frame.nbytes:
        raise UserError(
            f"{frame.width} x {frame.height} px {frame.format} with pitch {frame.pitch} take {frame.nbytes} bytes, "
            f"the buffer has {held}"
        )


def _strided(rows: NDArray[np.uint8], offset: int, height: int, size: int, pitch: int) -> Plane:
    """Return a view (height, size) from `offset` bytes behind the first on, which keeps what `rows` keeps."""
    plane: Plane = np.lib.stride_tricks.as_strided(rows, (height, size), (pitch, 1), writeable=False)
    if offset:
        flat = np.lib.stride_tricks.as_strided(rows, (offset + 1,), (1,), writeable=False)
        plane = np.lib.stride_tricks.as_strided(flat[offset:], (height, size), (pitch, 1), writeable=False)
    return plane


def _pixels(plane: Plane, width: int) -> NDArray[np.uint8]:
    """Return a plane as a view (rows, width, bytes of a pixel)."""
    each = plane.shape[1] // width
    shape, strides = (len(plane), width, each), (plane.strides[0], each, 1)
    return np.lib.stride_tricks.as_strided(plane, shape, strides, writeable=False)


def _bgr_by_rule(y: Plane, pairs: NDArray[np.uint8], yuv: str) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 BGR of Y (H, W) and U, V (h, w, 2) of coarser pixels, within a level of the rule."""
    black, luma, red_v, green_u, green_v, blue_u = YUV_RULES[yuv]
    gains = np.array([[luma, blue_u, 0], [luma, green_u, green_v], [luma, 0, red_v]]) / 2**20
    matrix = np.hstack([gains, -gains @ [[black], [128], [128]]])
    fine = cv2.resize(pairs, (y.shape[1], y.shape[0]), interpolation=cv2.INTER_NEAREST)
    levels = np.empty((*y.shape, 3), np.uint8)
    cv2.mixChannels([np.maximum(y, black), fine], [levels], [0, 0, 1, 1, 2, 2])
    return np.asarray(cv2.transform(levels, matrix), np.uint8)
