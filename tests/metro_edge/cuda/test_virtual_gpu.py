"""The stand-in for the GPU finds what it is there to find, and the tests of the kernels fail when a kernel is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from metro_edge.cuda import toolchain
from tests.test_layout import ROOT
from tests.virtual_gpu import build
from tests.virtual_gpu.device import MUTANT, SANITIZE, environment, on_stand_in

FAULTS = ROOT / "tests/virtual_gpu/faults.cu"
PREPARE = """
import os, sys
import numpy as np
from tests.virtual_gpu import build
from tests.virtual_gpu.device import Device, SANITIZE
device = Device()
cuda = device.driver
module = cuda.module_from_buffer(build.image(build.HERE / "faults.cu", os.environ.get(SANITIZE, "")).read_bytes())
def kernel(name):
    return module.get_function(name)
"""


def child(code: str, sanitize: str = "", **settings: str) -> str:
    """Run Python with a device and the kernels of faults.cu; returns all that it printed."""
    if not on_stand_in() or os.environ.get(SANITIZE):
        pytest.skip("tests of the stand-in itself, in its plain run")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VIRTUAL_GPU_")}
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + textwrap.dedent(code)],
        cwd=ROOT,
        env={**clean, **environment(sanitize), **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.gpu
def test_what_is_written_beyond_an_allocation_is_found():
    text = child("""
        memory = cuda.mem_alloc(64)
        kernel("write_beyond")(memory, np.int32(15), block=(32, 1, 1))
        device.wait()
        print("all well")
        kernel("write_beyond")(memory, np.int32(16), block=(32, 1, 1))
        device.wait()
    """)
    assert "all well" in text
    assert "written outside an allocation of 64 bytes" in text
    assert "cuCtxSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS" in text


@pytest.mark.gpu
@pytest.mark.parametrize(("code", "words"), [
    ("kernel('read_beyond')(cuda.mem_alloc(64), np.int32(16), cuda.mem_alloc(64), block=(32, 1, 1))", "AddressSan"),
    ("kernel('write_beyond')(cuda.mem_alloc(64), np.int32(16), block=(32, 1, 1))", "faults.cu:5"),
    ("kernel('overflow')(cuda.to_device(np.ones(1, 'i4')), block=(1, 1, 1))", "signed integer overflow"),
])  # fmt: skip
def test_the_sanitizers_see_into_kernels(code, words):
    assert words in child(f"{code}\ndevice.wait()", "address,undefined")


@pytest.mark.gpu
@pytest.mark.parametrize("sanitize", ["", "address,undefined"])
def test_barriers_and_shuffles_work_in_any_order(sanitize):
    for order in ("0", "1", "7"):
        text = child("""
            values = np.random.default_rng(0).integers(0, 1000, 5000).astype("i4")
            out = np.zeros(1, "i4")
            kernel("block_sum")(cuda.In(values), np.int32(5000), cuda.InOut(out), block=(256, 1, 1), grid=(20, 1))
            print("right" if out[0] == values.sum() else "wrong")
        """, sanitize, VIRTUAL_GPU_ORDER=order)  # fmt: skip
        assert "right" in text, text


@pytest.mark.gpu
def test_a_missing_barrier_and_a_race_are_found():
    text = child("""
        values = np.arange(256, dtype="i4")
        out = np.zeros(1, "i4")
        name = "block_sum_without_barrier"
        kernel(name)(cuda.In(values), np.int32(256), cuda.InOut(out), block=(256, 1, 1), grid=(1, 1))
        print("wrong" if out[0] != values.sum() else "right")
    """)
    assert "wrong" in text, text
    seen = {
        child("""
            out = np.zeros(1, "i4")
            kernel("race")(cuda.InOut(out), block=(32, 1, 1), grid=(2, 1))
            print("last", out[0])
        """, VIRTUAL_GPU_ORDER=order).split("last")[1].split()[0]
        for order in ("0", "1", "7")
    }  # fmt: skip
    assert len(seen) > 1


@pytest.mark.gpu
def test_a_deadlock_ends_the_process():
    assert "deadlock" in child("kernel('divergent')(cuda.mem_alloc(128), block=(32, 1, 1))\nprint('not here')")


LAZY = """
stream = cuda.Stream()
host, back = cuda.pagelocked_empty(8, "f4"), cuda.pagelocked_empty(8, "f4")
host[:], back[:] = 1, 0
memory = cuda.mem_alloc(host.nbytes)
cuda.memcpy_htod_async(memory, host, stream)
kernel("twice")(memory, np.int32(8), block=(32, 1, 1), stream=stream)
cuda.memcpy_dtoh_async(back, memory, stream)
"""


@pytest.mark.gpu
@pytest.mark.parametrize(("lazy", "then", "expected"), [
    ("0", "", "2.0"), ("1", "", "0.0"), ("1", "stream.synchronize()", "2.0"),
    ("1", "host[:] = 9; stream.synchronize()", "18.0"),
    ("1", "cuda.Event().record(stream).synchronize()", "2.0"),
    ("1", "other = cuda.Stream(1); other.wait_for_event(cuda.Event().record(stream)); other.synchronize()", "2.0"),
    ("1", "while not stream.is_done(): pass", "2.0"),
])  # fmt: skip
def test_lazy_streams_show_what_nobody_waited_for(lazy, then, expected):
    text = child(f"{LAZY}\n{then}\nprint('value', float(back[0]))", VIRTUAL_GPU_LAZY=lazy)
    assert f"value {expected}" in text, text


@pytest.mark.gpu
@pytest.mark.parametrize(("code", "words"), [
    ("m = cuda.mem_alloc(64); p = int(m); m.free(); kernel('overflow')(np.uint64(p), block=(1, 1, 1))", "ILLEGAL_ADDR"),
    ("kernel('twice')(cuda.mem_alloc(64), block=(1, 1, 1))", "arguments are 8 bytes, the kernel takes 12"),
    ("kernel('overflow')(cuda.mem_alloc(64), block=(33, 32, 1))", "a block of 33 x 32 x 1"),
    ("kernel('overflow')(cuda.mem_alloc(64), block=(1, 1, 1), grid=(1, 70000))", "a grid of 1 x 70000 x 1"),
    ("cuda.memcpy_htod(int(cuda.mem_alloc(8)) + (1 << 40), np.ones(2))", "not device memory"),
    ("cuda.mem_alloc(1 << 50)", "OUT_OF_MEMORY|MemoryError"), ("kernel('nothing')", "NOT_FOUND"),
    ("cuda.module_from_buffer(b'// ptx\\0')", "UNSUPPORTED_PTX_VERSION"),
])  # fmt: skip
def test_misuse_is_an_error(code, words):
    text = child(code)
    assert any(word in text for word in words.split("|")), text


@pytest.mark.gpu
def test_errors_can_be_asked_for_and_memory_is_counted():
    text = child("""
        from metro_edge.cuda.arrays import DeviceBuffer
        from metro_edge.errors import UserError
        before = device.count("bytes in use")
        buffer = DeviceBuffer((1000,), np.float32)
        print("in use", device.count("bytes in use") - before)
        del buffer
        print("left", device.count("bytes in use") - before)
        os.environ["VIRTUAL_GPU_FAIL"] = "cuMemAlloc:1:2"
        try:
            DeviceBuffer((1000,), np.float32)
        except UserError as error:
            print(error)
    """)
    assert "in use 4000\nleft 0\nno 0.0 MB of device memory left for (1000,) float32" in text


# Faults that a hand could make: file, what stands there, what would stand there instead.
MUTANTS = [
    ("preprocess", "x >= target.size ||", "x > target.size ||"),
    ("preprocess", "x >= frame.width ||", "x > frame.width ||"),
    ("preprocess", "y >= frame.height)", "y > frame.height)"),
    ("preprocess", "data + y * frame.pitch", "data + y * 3 * frame.width"),
    ("preprocess", "return {row[3 * x + 2], row[3 * x + 1], row[3 * x]}", "return {row[3 * x], row[3 * x + 1], 0}"),
    ("preprocess", "(x & ~1)", "x"),
    ("preprocess", "(i ? u : 1.0f - u)", "(i ? v : 1.0f - u)"),
    ("preprocess", "sum.g += __float2int_rn(g)", "sum.g += (int)g"),
    ("preprocess", "(sum + 2) >> 2", "sum >> 2"),
    ("preprocess", "min(max(level, -128), 127)", "level"),
    ("preprocess", "low * ONE_PX", "(low - 1) * ONE_PX"),
    ("preprocess", "(size_t)person * 3 * plane", "(size_t)person * plane"),
    ("preprocess", "rintf(column_g)", "column_g"),
    ("preprocess", "fmaxf((float)axis.length / (float)axis.resized, 1.0f)", "(float)axis.length / (float)axis.resized"),
    ("preprocess", "row += p.top;", ""),
    ("preprocess", "place_x - (float)column", "0.0f"),
    ("preprocess", "pixel(data, uv, frame, column + 1, row + 1, frame.border)",
     "pixel(data, uv, frame, column, row + 1, frame.border)"),
    # The last bits alone: which of OpenCV's operations are fused decides between two levels.
    ("preprocess", "__fadd_rn(__fmul_rn(p.step_y, (float)(y * p.taps + j)), p.start_y)",
     "fmaf(p.step_y, (float)(y * p.taps + j), p.start_y)"),
    ("preprocess", "fmaf(p.step_x, (float)(x * p.taps + i), p.start_x)",
     "__fadd_rn(__fmul_rn(p.step_x, (float)(x * p.taps + i)), p.start_x)"),
    ("common", "luma + rule.green_u * u + rule.green_v * v", "luma + rule.green_v * u + rule.green_u * v"),
    ("postprocess", "bits = 16; bits;", "bits = 8; bits;"),
    ("postprocess", "if (row >= rows) return;", ""),
    ("postprocess", "k < columns; k += 32", "k < columns - 1; k += 32"),
    ("postprocess", "/= (float)root.count", "/= 1.0f"),
    ("postprocess", "y = given[2] + at[1]", "y = given[2] - at[1]"),
    ("postprocess", "y + views.y[person] / metre_px", "y + views.x[person] / metre_px"),
    ("postprocess", "fmaf(y + translations[3 * person + 1], gain, camera.centre_y)", "fmaf(y, gain, camera.centre_y)"),
    ("postprocess", "if (solid && depth", "if (!solid && depth"),
    ("postprocess", "(1.0f - share) * speeds[memory]", "speeds[memory]"),
    ("postprocess", "fmaf(filter.beta, fabsf(speed),", "fmaf(filter.beta, speed,"),
    ("postprocess", "last[memory] = value", "last[memory] = values[at]"),
    ("postprocess", "k < first[i + 1]", "k < first[i + 1] - 1"),
    ("overlay", "if (t.area < 0)", "if (t.area > 0)"),
    ("overlay", "(least(t.ax, t.bx, t.cx) + SUBSAMPLES - 1) >> 8", "(least(t.ax, t.bx, t.cx) + SUBSAMPLES) >> 8"),
    ("overlay", "(~__float_as_uint(depth)) << 32", "(__float_as_uint(depth)) << 32"),
    ("overlay", "atomicMin(&nearest[(size_t)y * view.width + x], key);", "nearest[(size_t)y * view.width + x] = key;"),
    ("overlay", "(int)min((long long)view.width - 1, most", "(int)min((long long)view.width, most"),
    ("overlay", "clay.base[person % clay.count]", "clay.base[person]"),
    ("overlay", "bool seen = z >= view.near_m", "bool seen = z != 0.0f"),
    ("overlay", "opacity += 0.25f * l.alpha", "opacity += 0.5f * l.alpha"),
    ("overlay", "pixel[0] = level(pixel[0] * under + (rgb ? l.r : l.b))", "pixel[0] = level(pixel[0] * under + l.b)"),
    ("overlay", "unit_range(radius + 0.5f", "unit_range(radius"),
    ("overlay", "x <= s.right", "x <= s.right - 3"),
    ("overlay", "layer.alpha * under + alpha", "layer.alpha + alpha"),
]  # fmt: skip
TESTS_OF = {
    "preprocess": ["test_preprocess.py"],
    "common": ["test_preprocess.py"],
    "postprocess": ["test_postprocess.py", "test_smoothing.py"],
    "overlay": ["test_overlay.py"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "right", "wrong"), MUTANTS, ids=[f"{m[0]}-{i}" for i, m in enumerate(MUTANTS)])
def test_a_wrong_kernel_fails_the_tests(tmp_path: Path, name: str, right: str, wrong: str) -> None:
    try:
        variables = environment()
    except build.UnavailableError as error:
        pytest.skip(str(error))
    folder = tmp_path / "kernels"
    shutil.copytree(toolchain.KERNELS, folder)
    source = next(folder.glob(f"{name}.cu*"))
    text = source.read_text("utf-8")
    assert text.count(right) >= 1, f"{name} has no {right!r} any more"
    source.write_text(text.replace(right, wrong))
    tests = [str(ROOT / "tests/metro_edge/cuda" / test) for test in TESTS_OF[name]]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env={**variables, MUTANT: str(folder), "METRO_EDGE_VIRTUAL_GPU": str(tmp_path / "built")},
        capture_output=True,
        text=True,
        check=False,
    )
    # 1: tests failed; a signal: the stand-in or the kernel ended the process.
    assert done.returncode == 1 or done.returncode < 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "RuntimeError: g++" not in done.stdout, "the wrong kernel does not even compile"
