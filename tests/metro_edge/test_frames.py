from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import itertools
import mmap
import subprocess
import sys
import threading
import weakref
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metro_edge import HostFrame, MeshEstimator
from metro_edge.cuda.arrays import BYTES_PER_PX, FORMATS, YUV_RULES, DeviceFrame, yuv_of_bgr
from metro_edge.errors import UserError

GAP = 77  # between the rows, never right


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def planes_of(format: str, width: int, height: int, seed: int = 0) -> list[np.ndarray]:
    """Rows of random bytes, as they lie in memory."""
    planes = [noise(height, width * BYTES_PER_PX[format], seed=seed)]
    if format == "nv12":
        planes.append(noise(height // 2, width, seed=seed + 1))
    return planes


def pitched(planes: list[np.ndarray], pitches: list[int]) -> np.ndarray:
    """The planes in one run of bytes, without the gap behind the last row."""
    rows = [np.full((len(plane), pitch), GAP, np.uint8) for plane, pitch in zip(planes, pitches, strict=True)]
    for row, plane in zip(rows, planes, strict=True):
        row[:, : plane.shape[1]] = plane
    flat = np.concatenate([row.ravel() for row in rows])
    return flat[: flat.size - (pitches[-1] - planes[-1].shape[1])].copy()


def expected_bgr(format: str, planes: list[np.ndarray]) -> np.ndarray:
    first = planes[0]
    if format in ("bgr", "rgb"):
        pixels = first.reshape(len(first), -1, 3)
        return pixels if format == "bgr" else pixels[..., ::-1]
    if format == "grey":
        return first[..., None].repeat(3, axis=2)
    if format == "nv12":
        return np.asarray(cv2.cvtColor(np.concatenate(planes), cv2.COLOR_YUV2BGR_NV12))
    return np.asarray(cv2.cvtColor(first.reshape(len(first), -1, 2), cv2.COLOR_YUV2BGR_YUY2))


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda n: (2 * n[0], 2 * n[1]))


@given(SIZES, st.sampled_from(FORMATS), st.integers(0, 40), st.integers(0, 40), st.integers(0, 99))
def test_every_format_and_pitch_is_the_same_picture(size, format, gap, uv_gap, seed):
    width, height = size
    planes = planes_of(format, width, height, seed)
    pitches = [planes[0].shape[1] + gap, planes[-1].shape[1] + uv_gap][: len(planes)]
    flat = pitched(planes, pitches)
    options = {"uv_pitch": pitches[1]} if format == "nv12" else {}
    frame = HostFrame(flat, width, height, format, pitch=pitches[0], **options)
    by_pointer = HostFrame.from_pointer(flat.ctypes.data, width, height, format, pitches[0], owner=flat, **options)
    assert frame.nbytes == flat.size
    for one in (frame, by_pointer):
        assert one.address == flat.ctypes.data
        assert one.pitch == pitches[0] and one.uv_pitch == (pitches[1] if format == "nv12" else 0)
        for view, plane in zip(one.planes(), planes, strict=True):
            np.testing.assert_array_equal(view, plane)
            assert np.shares_memory(view, flat) and not view.flags.writeable
        np.testing.assert_array_equal(one.bgr(), expected_bgr(format, planes))


def test_odd_sizes_of_the_formats_that_allow_them():
    for format in ("bgr", "rgb", "grey"):
        planes = planes_of(format, 7, 5)
        frame = HostFrame(planes[0], 7, 5, format)
        np.testing.assert_array_equal(frame.bgr(), expected_bgr(format, planes))
    planes = planes_of("yuyv", 6, 5)
    np.testing.assert_array_equal(HostFrame(planes[0], 6, 5, "yuyv").bgr(), expected_bgr("yuyv", planes))


def test_bgr_is_a_view_and_sees_the_next_picture():
    memory = bytearray(64 * 48)
    frame = HostFrame(memory, 20, 48, pitch=64)
    view = frame.bgr()
    assert view.shape == (48, 20, 3) and view.strides == (64, 3, 1)
    memory[64 * 3 + 5] = 99
    assert view[3, 1, 2] == 99
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0, 0] = 1


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda b: array.array("B", b), np.frombuffer], ids=[
    "bytes", "bytearray", "memoryview", "array", "numpy"])  # fmt: skip
def test_everything_with_the_buffer_protocol(wrap: Any):
    picture = noise(6, 8, 3)
    data = wrap(picture.tobytes()) if wrap is not np.frombuffer else np.frombuffer(picture.tobytes(), np.uint8)
    frame = HostFrame(data, 8, 6)
    np.testing.assert_array_equal(frame.bgr(), picture)
    assert frame.address == np.frombuffer(data, np.uint8).ctypes.data
    assert frame.owner is data


def test_a_mapped_file_and_ctypes(tmp_path: Path):
    picture = noise(6, 8, 3)
    file = tmp_path / "frame.raw"
    file.write_bytes(picture.tobytes())
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        frame = HostFrame(mapped, 8, 6)
        np.testing.assert_array_equal(frame.bgr(), picture)
        with pytest.raises(BufferError):  # Python itself keeps the memory in place
            mapped.close()
        del frame
        mapped.close()
    held = (ctypes.c_ubyte * 144).from_buffer_copy(picture.tobytes())
    assert HostFrame(held, 8, 6).address == ctypes.addressof(held)


def test_shared_memory_of_another_process():
    """A camera process writes, this one reads where it lies."""
    picture = noise(48, 64, 3)
    memory = shared_memory.SharedMemory(create=True, size=48 * 256)
    try:
        frame = HostFrame(memory.buf, 64, 48, pitch=256)
        code = (
            "import sys; from multiprocessing import shared_memory as s; m = s.SharedMemory(sys.argv[1], track=False) "
            "if sys.version_info >= (3, 13) else s.SharedMemory(sys.argv[1]); d = sys.stdin.buffer.read()\n"
            "for y in range(48): m.buf[y * 256:y * 256 + 192] = d[y * 192:y * 192 + 192]\n"
            "m.close()"
        )
        subprocess.run([sys.executable, "-c", code, memory.name], input=picture.tobytes(), check=True)
        np.testing.assert_array_equal(frame.bgr(), picture)
        with pytest.raises(BufferError):
            memory.close()
        del frame
        memory.close()
    finally:
        with contextlib.suppress(FileNotFoundError):  # before Python 3.13 the other process's tracker removes it
            memory.unlink()


def test_arrays_bring_their_own_pitch():
    picture = noise(40, 60, 3)
    part = picture[10:30, 5:25]
    frame = HostFrame(part, 20, 20)
    assert frame.pitch == 180 and frame.address == part.ctypes.data
    np.testing.assert_array_equal(frame.bgr(), part)
    again = HostFrame.from_array(part, "rgb")
    assert (again.width, again.height, again.pitch) == (20, 20, 180)
    np.testing.assert_array_equal(again.bgr(), part[..., ::-1])
    rows = noise(30, 64)
    wide = HostFrame(rows, 10, 20, "nv12")  # rows of 64 bytes of which 10 are the picture
    assert wide.pitch == wide.uv_pitch == 64
    np.testing.assert_array_equal(wide.planes()[1], rows[20:, :10])
    np.testing.assert_array_equal(HostFrame.from_array(rows, "nv12").planes()[1], rows[20:])
    assert HostFrame.from_array(rows, "grey").height == 30
    assert HostFrame.from_array(noise(4, 6, 2), "yuyv").width == 6
    assert HostFrame.from_array(noise(4, 6, 1), "grey").width == 6
    one_row = noise(5, 60, 3)[2:3, 4:9]
    np.testing.assert_array_equal(HostFrame.from_array(one_row).bgr(), one_row)


def test_decoders_pad_the_height_too():
    y, uv = planes_of("nv12", 10, 6)
    held = np.concatenate([np.pad(y, ((0, 2), (0, 6))), np.pad(uv, ((0, 0), (0, 6)))])
    frame = HostFrame(held.tobytes(), 10, 6, "nv12", pitch=16, uv_offset=16 * 8)
    np.testing.assert_array_equal(frame.planes()[1], uv)
    assert (frame.uv_offset, HostFrame(bytes(90), 10, 6, "nv12").uv_offset) == (128, 60)
    np.testing.assert_array_equal(frame.bgr(), expected_bgr("nv12", [y, uv]))


@pytest.mark.parametrize("yuv", YUV_RULES)
@pytest.mark.parametrize("format", ["nv12", "yuyv"])
def test_colours_are_those_of_the_standards(format, yuv):
    """By the exact inverse of the standard's matrix. cv2.transform counts in 2^-10: half a level and 3 x 255 x 2^-11.

    OpenCV's bt601 has constants of 3 digits: 1.3.
    """
    planes = planes_of(format, 32, 16)
    if format == "nv12":
        u, v = (planes[1][:, i::2].repeat(2, axis=0).repeat(2, axis=1) for i in (0, 1))
        y = planes[0]
    else:
        y = planes[0][:, 0::2]
        u, v = (planes[0][:, i::4].repeat(2, axis=1) for i in (1, 3))
    black, matrix = yuv_of_bgr(yuv)
    levels = np.stack([np.maximum(y, black[0]), u, v], axis=-1).astype(float) - black
    exact = np.clip(levels @ np.linalg.inv(matrix).T, 0, 255)
    got = HostFrame(np.concatenate(planes) if format == "nv12" else planes[0], 32, 16, format, yuv=yuv).bgr()
    assert np.abs(got - exact).max() < (1.3 if yuv == "bt601" else 0.5 + 3 * 255 / 2**11)


def test_the_owner_lives_as_long_as_the_frame_or_a_view_of_it():
    class Owner:
        def __init__(self) -> None:
            self.memory = noise(4, 6, 3)

    owner = Owner()
    seen = weakref.ref(owner)
    frame = HostFrame.from_pointer(owner.memory.ctypes.data, 6, 4, owner=owner)
    assert frame.owner is owner
    del owner
    gc.collect()
    assert seen() is not None
    view = frame.bgr()
    del frame
    gc.collect()
    assert seen() is not None and view.shape == (4, 6, 3)
    del view
    gc.collect()
    assert seen() is None

    memory = bytearray(72)
    frame = HostFrame(memory, 6, 4)
    with pytest.raises(BufferError):
        memory.extend(b"more")
    del frame
    memory.extend(b"more")


def test_dlpack_of_other_libraries():
    tensor = torch.from_numpy(noise(40, 60, 3))
    frame = HostFrame.from_dlpack(tensor)
    assert frame.address == tensor.data_ptr() and frame.owner is tensor
    np.testing.assert_array_equal(frame.bgr(), tensor.numpy())
    part = HostFrame.from_dlpack(tensor[3:9, 10:20], "rgb")
    assert part.pitch == 180 and part.address == tensor.data_ptr() + 3 * 180 + 30
    y_uv = torch.from_numpy(noise(30, 16))
    assert HostFrame.from_dlpack(y_uv, "nv12").height == 20


class Elsewhere:
    """An array that says where it is, as those of GPU libraries do."""

    def __init__(self, device: tuple[int, int], error: Exception | None = None) -> None:
        self.device, self.error = device, error

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **_options: Any) -> Any:
        raise self.error or AssertionError("memory that the CPU does not read was asked for")


@pytest.mark.parametrize(("device", "text"), [
    ((2, 1), r"device 1 \(CUDA\)"), ((10, 0), "ROCm"), ((8, 0), "Metal"), ((77, 3), r"device 3 \(unknown type 77\)"),
])  # fmt: skip
def test_dlpack_of_another_device_is_named(device, text):
    with pytest.raises(UserError, match=text):
        HostFrame.from_dlpack(Elsewhere(device))


def test_dlpack_that_gives_nothing():
    with pytest.raises(UserError, match="__dlpack__ and __dlpack_device__, got bytes"):
        HostFrame.from_dlpack(b"123")
    with pytest.raises(UserError, match="Elsewhere does not give its memory through DLPack: it was freed"):
        HostFrame.from_dlpack(Elsewhere((1, 0), BufferError("it was freed")))
    with pytest.raises(UserError, match="float32|'f'"):
        HostFrame.from_dlpack(torch.zeros(4, 6, 3))
    with pytest.raises(UserError, match="rows of a frame must be contiguous"):
        HostFrame.from_dlpack(torch.zeros(3, 4, 6, dtype=torch.uint8).permute(1, 2, 0))


def released() -> memoryview:
    view = memoryview(bytes(72))
    view.release()
    return view


PICTURE = noise(8, 12, 3)


@pytest.mark.parametrize(("make", "text"), [
    (lambda: HostFrame([1, 2, 3], 6, 4), "buffer protocol .*got list"),
    (lambda: HostFrame(torch.zeros(72, dtype=torch.uint8), 6, 4), "got Tensor; HostFrame.from_dlpack"),
    (lambda: HostFrame(released(), 6, 4), "gone, or not to be had: .*released"),
    (lambda: HostFrame(b"", 6, 4), "empty"),
    (lambda: HostFrame(np.zeros((4, 6, 3), np.float32), 6, 4), "format 'f' and 4 bytes"),
    (lambda: HostFrame(np.zeros((4, 6, 3), np.int8), 6, 4), "must hold bytes"),
    (lambda: HostFrame(np.zeros((4, 6, 3), bool), 6, 4), "must hold bytes"),
    (lambda: HostFrame(bytes(71), 6, 4), "take 72 bytes, the buffer has 71"),
    (lambda: HostFrame(bytes(77), 6, 4, pitch=20), "take 78 bytes, the buffer has 77"),
    (lambda: HostFrame(bytes(35), 6, 4, "nv12"), "take 36 bytes"),
    (lambda: HostFrame(bytes(72), 6, 4, pitch=17), "pitch 17 is below the 18 bytes"),
    (lambda: HostFrame(bytes(72), 6, 4, pitch=-18), "pitch -18 is below"),
    (lambda: HostFrame(bytes(72), 6, 4, "nv12", uv_pitch=5), "uv_pitch 5 is below"),
    (lambda: HostFrame(bytes(72), 6, 4, "nv12", uv_offset=23), "inside the first plane, which ends after 24"),
    (lambda: HostFrame(bytes(72), 6, 4, "nv12", uv_offset=-1), "0 or more"),
    (lambda: HostFrame(bytes(72), 6, 4, "nv12", uv_offset=70), "the buffer has 72"),
    (lambda: HostFrame(bytes(72), 6, 4, uv_pitch=18), "one plane"),
    (lambda: HostFrame(bytes(72), 6, 4, "bgra"), "unknown format 'bgra'.*nv12"),
    (lambda: HostFrame(bytes(72), 6, 4, "nv12", yuv="bt2020"), "'bt2020'.*bt709"),
    (lambda: HostFrame(bytes(72), 0, 4), "1 to 32766 px"),
    (lambda: HostFrame(bytes(72), 6.0, 4), "width must be a whole number, got 6.0"),
    (lambda: HostFrame(bytes(72), 6, None), "height must be a whole number"),
    (lambda: HostFrame(bytes(72), 5, 4, "nv12"), "nv12 needs an even width and height, got 5 x 4"),
    (lambda: HostFrame(bytes(72), 6, 3, "nv12"), "nv12 needs an even width and height"),
    (lambda: HostFrame(bytes(72), 5, 4, "yuyv"), "yuyv needs an even width, got"),
    (lambda: HostFrame(PICTURE[:, ::2], 6, 8), "rows of a frame must be contiguous.*ascontiguousarray"),
    (lambda: HostFrame(PICTURE[..., ::-1], 12, 8), "rows of a frame must be contiguous"),
    (lambda: HostFrame(PICTURE[::-1], 12, 8), "follow each other in memory, got -36"),
    (lambda: HostFrame(np.broadcast_to(PICTURE[:1], (8, 12, 3)), 12, 8), "follow each other in memory, got 0"),
    (lambda: HostFrame(PICTURE.ravel()[::2], 6, 8), "step of 2 bytes"),
    (lambda: HostFrame(PICTURE, 12, 8, pitch=40), "pitch 40 is not that of the array"),
    (lambda: HostFrame(PICTURE, 11, 8), "does not fit an array"),
    (lambda: HostFrame(PICTURE, 12, 9), "take 324 bytes, the buffer has 288"),
    (lambda: HostFrame(noise(8, 40)[:, :30], 12, 8), r"has 36 bytes, got \(8, 30\)"),
    (lambda: HostFrame.from_array(PICTURE, "grey"), r"a grey picture must be \(H, W\) uint8, got shape \(8, 12, 3\)"),
    (lambda: HostFrame.from_array(PICTURE[..., 0].copy()), r"a bgr picture must be \(H, W, 3\)"),
    (lambda: HostFrame.from_array(PICTURE, "nv12"), r"\(H \* 3 / 2, W\)"),
    (lambda: HostFrame.from_array(noise(8, 12), "nv12"), "got 8, which no height gives"),
    (lambda: HostFrame.from_array(PICTURE, "p010"), "unknown format 'p010'"),
    (lambda: HostFrame.from_pointer(0, 6, 4), "address of its first row, got 0"),
    (lambda: HostFrame.from_pointer(-5, 6, 4), "got -5"),
    (lambda: HostFrame.from_pointer(2**64, 6, 4), "address of its first row"),
    (lambda: HostFrame.from_pointer(None, 6, 4), "address must be a whole number"),
    (lambda: HostFrame.from_pointer(4096, 6, 4, pitch=5), "pitch 5 is below"),
])  # fmt: skip
def test_bad_frames(make, text):
    with pytest.raises(UserError, match=text):
        make()


def test_the_checks_are_those_of_frames_on_a_gpu():
    for format, width, height, pitch in itertools.product(FORMATS, (5, 6), (3, 4), (0, 1, 64)):
        errors = []
        for make in (lambda *a: HostFrame(bytes(4096), *a), lambda *a: DeviceFrame(4096, *a)):
            try:
                made = make(width, height, format, pitch)
            except UserError as error:
                errors.append(str(error))
            else:
                errors.append(str(made.pitch or made.row_pitch))
        assert errors[0] == (errors[1] if errors[1] != "0" else errors[0])


@pytest.fixture(scope="module")
def estimator(shared_bundle):
    with MeshEstimator.from_bundle(shared_bundle) as made:
        yield made


def test_the_estimator_takes_one(estimator, frame):
    boxes = [(10, 5, 50, 100), (80, 20, 60, 90)]
    expected = estimator(frame, boxes)
    height, width = frame.shape[:2]
    held = pitched([frame.reshape(height, -1)], [width * 3 + 32])
    for got in (
        HostFrame(held, width, height, pitch=width * 3 + 32),
        HostFrame.from_array(frame[..., ::-1].copy(), "rgb"),
    ):
        for body, other in zip(estimator(got, boxes), expected, strict=True):
            np.testing.assert_array_equal(body.vertices, other.vertices)
    nv12 = HostFrame.from_array(noise(height * 3 // 2, width), "nv12")
    for body, other in zip(estimator(nv12, boxes), estimator(nv12.bgr(), boxes), strict=True):
        np.testing.assert_array_equal(body.joints, other.joints)
    (whole,) = estimator(nv12)
    np.testing.assert_array_equal(whole.box, (0, 0, width, height))


@pytest.mark.parametrize(("boxes", "text"), [
    ([(np.nan, 5, 50, 100)], "box 0 .*not finite"), ([(500, 5, 50, 100)], "outside"), ([(1, 2, 3)], r"\(N, 4\)"),
])  # fmt: skip
def test_boxes_of_a_host_frame_are_checked(estimator, frame, boxes, text):
    with pytest.raises(UserError, match=text):
        estimator(HostFrame.from_array(frame), boxes)


def test_what_a_body_gives_to_cpp(estimator, frame):
    """NumPy arrays of their own: contiguous float32, by the buffer protocol and by DLPack, at one address."""
    (body,) = estimator(HostFrame.from_array(frame))
    for values in (body.joints, body.vertices):
        view = memoryview(values)
        assert view.contiguous and view.format == "f"
        tensor = torch.from_dlpack(values)
        assert tensor.data_ptr() == values.ctypes.data == np.from_dlpack(values).ctypes.data
    kept = body.joints.copy()
    estimator(HostFrame.from_array(frame[:, ::-1].copy()))
    np.testing.assert_array_equal(body.joints, kept)  # no later call writes into it


def test_other_threads_run_while_the_network_does(estimator):
    """Python hands the GIL over only when a call gives it up: otherwise the first that this thread sees is the end."""
    images = np.zeros((1, 3, 64, 64), np.float32)
    estimator.session.infer(images)
    begun, seen, runs = threading.Event(), threading.Event(), []

    def infer() -> None:
        begun.set()
        while not seen.is_set() and len(runs) < 500:
            estimator.session.infer(images)
            runs.append(None)

    before = sys.getswitchinterval()
    thread = threading.Thread(target=infer)
    try:
        sys.setswitchinterval(1000.0)
        thread.start()
        begun.wait()
        seen.set()
    finally:
        sys.setswitchinterval(before)
        thread.join()
    assert len(runs) < 500


def test_the_lines_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "integration.md").read_text(encoding="utf-8")
    lines = page.split("```python\n")[1].split("```")[0].splitlines()
    buffer = noise(2048 * (1088 + 540) * 2)
    names = {"buffer": buffer, "picture": noise(600, 700, 3), "tensor": torch.zeros(4, 6, 3, dtype=torch.uint8),
             "address": buffer.ctypes.data, "made": []}  # fmt: skip
    exec("\n".join([lines[0], *(f"made.append({line.split('  #')[0]})" for line in lines[2:])]), names)
    made = names["made"]
    assert [frame.format for frame in made] == ["nv12", "nv12", "rgb", "bgr", "bgr"]
    assert [frame.pitch for frame in made] == [2048, 2048, 2100, 18, 5888]


def test_it_says_what_it_is():
    assert repr(HostFrame.from_pointer(4096, 6, 4, "nv12", 64)) == "HostFrame(6 x 4 px nv12, pitch 64, at 0x1000)"
