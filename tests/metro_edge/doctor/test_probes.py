from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from metro_edge.doctor import probes
from metro_edge.doctor.probes import Answer, ask


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    """A folder whose modules are found before the installed ones."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_answers_of_what_is_installed():
    import cv2
    import onnxruntime

    answers = ask(["opencv", "onnxruntime", "cpu"])
    assert answers["opencv"] == Answer(cv2.__version__)
    assert answers["onnxruntime"].found.startswith(f"{onnxruntime.__version__}, ")
    assert "CPUExecutionProvider" in answers["onnxruntime"].found
    assert answers["cpu"].found.startswith("metro_edge, fp32 fp16 int8, one frame gave 14 joints")


def test_an_empty_package_is_no_tensorrt(libraries):
    (libraries / "tensorrt").mkdir()
    assert ask(["tensorrt"])["tensorrt"] == Answer(None, "not installed")


def test_a_library_with_a_builder_is_found_and_an_old_one_refused(libraries):
    (libraries / "tensorrt.py").write_text("__version__ = '10.3.0.26'\nclass Builder: pass\n")
    assert ask(["tensorrt"])["tensorrt"] == Answer("10.3.0.26")
    (libraries / "tensorrt.py").write_text("__version__ = '8.6.1'\nclass Builder: pass\n")
    answer = ask(["tensorrt"])["tensorrt"]
    assert answer.found is None and "8.6.1 is too old" in answer.problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "raise ImportError('libcuda.so.1: cannot open shared object file')",
            "libcuda.so.1: cannot open shared object",
        ),
        ("import os; os.abort()", "ended with code -6"),
        ("import os; os._exit(3)", "ended with code 3"),
        ("import os; os._exit(0)", "gave no answer"),
        ("import time; time.sleep(60)", "did not answer in 2 s"),
    ],
)
def test_what_goes_wrong_in_a_library_is_told(libraries, text, problem):
    (libraries / "openvino.py").write_text(text + "\n")
    answer = ask(["openvino"], timeout_s=2.0)["openvino"]
    assert answer.found is None and answer.problem.startswith(problem)


def test_what_a_library_prints_is_no_answer(libraries):
    (libraries / "openvino.py").write_text(
        "print('{\"welcome\": 1}')\n__version__ = '2'\nclass Core: available_devices = ['CPU', 'NPU']\n"
    )
    assert ask(["openvino"])["openvino"] == Answer("2, CPU NPU")


def test_this_process_loads_no_library():
    code = (
        "import sys; from metro_edge.doctor import examine; examine(); print(*{m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert not {"cv2", "numpy", "onnxruntime", "openvino", "tensorrt", "pycuda"} & set(done.stdout.split())


def test_a_python_that_does_not_start(monkeypatch):
    monkeypatch.setattr(probes.sys, "executable", "/nowhere/python")
    assert ask(["opencv"])["opencv"].problem.startswith("Python cannot be started: No such file")
