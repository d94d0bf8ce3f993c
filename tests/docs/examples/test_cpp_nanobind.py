"""The extension in C++ compiles by the commands of docs/integration.md, and no frame or result is copied on its way."""

from __future__ import annotations

import gc
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from metro_edge import HostFrame, MeshEstimator, UserError
from metro_edge.demo import DemoAssets

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "docs" / "examples" / "cpp_nanobind"
pytestmark = pytest.mark.slow  # it compiles nanobind, 35 s of one core


def documented_commands(build: Path) -> list[list[str]]:
    """The two commands of docs/integration.md, with another build folder and this Python."""
    text = (ROOT / "docs" / "integration.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("cmake ")]
    assert len(lines) == 2
    replaced = {"build/cpp": str(build), '"$(which python)"': sys.executable}
    for old, new in replaced.items():
        lines = [line.replace(old, new) for line in lines]
    return [shlex.split(line) for line in lines]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("cmake", "ninja"):
        if not (Path(sys.executable).with_name(name).exists() or shutil.which(name)):
            pytest.fail(f"{name} is missing: pip install 'metro-edge[dev]'")
    if not shutil.which("g++") or not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        pytest.skip("no C++ compiler or no Python.h: apt-get install g++ python3-dev")
    build = tmp_path_factory.mktemp("cpp")
    environment = {"PATH": f"{Path(sys.executable).parent}:{Path('/usr/bin')}:{Path('/bin')}"}
    for command in documented_commands(build):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stdout + done.stderr
    return build


@pytest.fixture(scope="module")
def cpp(build: Path) -> ModuleType:
    (library,) = build.glob("cpp_pipeline*.so")
    spec = importlib.util.spec_from_file_location("cpp_pipeline", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Watched:
    """An estimator that remembers what went through it."""

    def __init__(self, estimator: MeshEstimator) -> None:
        self.estimator = estimator
        self.frames: list[HostFrame] = []
        self.bodies: list[Any] = []
        self.threads: list[int] = []

    def __call__(self, frame: HostFrame, boxes: Any) -> Any:
        self.frames.append(frame)
        self.threads.append(threading.get_ident())
        self.bodies = self.estimator(frame, boxes)
        return self.bodies

    def forget(self) -> None:
        self.frames, self.bodies = [], []
        gc.collect()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    full = DemoAssets.load().picture
    return np.ascontiguousarray(full[: full.shape[0] // 2 * 2, : full.shape[1] // 2 * 2])


@pytest.fixture(scope="module")
def estimator():
    with MeshEstimator.from_bundle() as made:
        yield made


@pytest.fixture
def watched(estimator) -> Watched:
    return Watched(estimator)


def frame_of(cpp: ModuleType, picture: np.ndarray, format: str) -> Any:
    height, width = picture.shape[:2]
    frame = cpp.Frame(width, height, format)
    if format == "bgr":
        frame.fill(picture.reshape(height, -1))
    else:
        i420 = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
        chroma = i420[height:].reshape(2, height // 2, width // 2)
        frame.fill(np.concatenate([i420[:height], np.dstack(list(chroma)).reshape(height // 2, width)]))
    return frame


@pytest.mark.parametrize("format", ["bgr", "nv12"])
def test_the_addresses_are_the_same_both_ways(cpp, watched, picture, format):
    height, width = picture.shape[:2]
    boxes = [(0.0, 0.0, float(width), float(height)), (width / 4, 0.0, width / 2, float(height))]
    frame = frame_of(cpp, picture, format)
    assert frame.pitch % 64 == 0
    people = cpp.Pipeline(watched)(frame, boxes)
    (seen,) = watched.frames
    assert seen.address == frame.address and seen.pitch == frame.pitch and seen.format == format
    assert seen.planes()[0].ctypes.data == frame.address
    if format == "bgr":
        assert seen.bgr().ctypes.data == frame.address
        np.testing.assert_array_equal(seen.bgr(), picture)
    assert len(people) == len(watched.bodies) == 2
    for person, body in zip(people, watched.bodies, strict=True):
        assert person.joints_address == body.joints.ctypes.data
        assert person.vertices_address == body.vertices.ctypes.data
        assert person.lowest_m == pytest.approx(float(body.vertices[:, 1].max() + body.translation[1]), abs=1e-5)
    for body, other in zip(watched.bodies, watched.estimator(seen.bgr().copy(), boxes), strict=True):
        np.testing.assert_array_equal(body.vertices, other.vertices)


def test_cpp_owns_its_frame_and_frees_it_when_nobody_looks(cpp, watched, picture):
    frame = frame_of(cpp, picture, "bgr")
    cpp.Pipeline(watched)(frame, [])
    view = watched.frames[0].bgr()
    del frame
    watched.forget()
    assert cpp.frames_alive() == 1
    np.testing.assert_array_equal(view, picture)
    del view
    gc.collect()
    assert cpp.frames_alive() == 0


def test_the_results_outlive_body_and_estimator(cpp, picture):
    height, width = picture.shape[:2]
    with MeshEstimator.from_bundle() as own:
        watched = Watched(own)
        (person,) = cpp.Pipeline(watched)(frame_of(cpp, picture, "bgr"), [(0, 0, width, height)])
        expected = watched.bodies[0].joints.copy()
        watched.forget()
        cpp.Pipeline(watched)(frame_of(cpp, picture[::-1].copy(), "bgr"), [(0, 0, width, height)])
    watched.forget()
    del watched, own
    gc.collect()
    np.testing.assert_array_equal(np.asarray(person.joints), expected)


def test_a_thread_of_cpp_may_call(cpp, watched, picture):
    height, width = picture.shape[:2]
    pipeline, frame = cpp.Pipeline(watched), frame_of(cpp, picture, "bgr")
    (there,) = pipeline.on_a_thread(frame, [(0, 0, width, height)])
    (here,) = pipeline(frame, [(0, 0, width, height)])
    assert watched.threads[0] != watched.threads[1] == threading.get_ident()
    np.testing.assert_array_equal(np.asarray(there.vertices), np.asarray(here.vertices))


def test_a_program_in_cpp_runs_python_inside(cpp, build, estimator):
    program = build / "cpp_program"
    if not sysconfig.get_config_var("Py_ENABLE_SHARED") and not program.exists():
        pytest.skip("this Python has no library that a program can link")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([program, "2"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    expected = []
    for number in range(2):
        frame, rows = cpp.Frame(640, 480, "nv12"), np.full((720, 640), 128, np.uint8)
        rows[:480] = (16 + (np.arange(480) + 40 * number) % 220)[:, None]
        frame.fill(rows)
        (person,) = cpp.Pipeline(estimator)(frame, [(160, 0, 320, 480)])
        expected.append(f"frame {number}: 14 joints, lowest point {person.lowest_m:.3f} m")
    assert done.stdout.splitlines() == expected


def test_a_program_says_what_python_said(build, tmp_path):
    program = build / "cpp_program"
    if not program.exists():
        pytest.skip("this Python has no library that a program can link")
    (tmp_path / "metro_edge.py").write_text("raise ImportError('not this one')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: not this one\n")


def test_errors_come_back_through_cpp(cpp, watched, picture):
    pipeline, frame = cpp.Pipeline(watched), frame_of(cpp, picture, "bgr")
    for call in (pipeline, pipeline.on_a_thread):
        with pytest.raises(UserError, match="not finite"):
            call(frame, [(float("nan"), 0, 10, 10)])
    with pytest.raises(ValueError, match="bgr or nv12"):
        cpp.Frame(4, 4, "yuyv")
    with pytest.raises(ValueError, match="do not fit"):
        frame.fill(np.zeros((3, 3), np.uint8))

    class Doubles:
        """Bodies of another type are refused, not converted into a copy."""

        joints = vertices = np.zeros((14, 3))
        translation = np.zeros(3, np.float32)

    with pytest.raises((RuntimeError, TypeError)):
        cpp.Pipeline(lambda _frame, _boxes: [Doubles()])(frame, [])
