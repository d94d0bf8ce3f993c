# ruff: noqa: E501 - recorded lines
"""trtexec's log as it was printed, and a stand-in program for what happens around it.

TENSORRT_10 joins lines that TensorRT 10.2 (github.com/NVIDIA/TensorRT issue 4036, its first line) and a later release (issue
4177, the summary) printed; TENSORRT_8 is of 8.4, with one percentile (pull request 329 of WongKinYiu/yolov7). The form of
both is that of samples/common/sampleReporting.cpp there, as is that of the file of --exportOutput.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.trtexec import parse_log, parse_outputs, run_trtexec
from metro_edge.errors import UserError

TENSORRT_10 = r"""&&&& RUNNING TensorRT.trtexec [TensorRT v100200] # trtexec --loadEngine=FM_P_D_fp16.engine
[10/03/2024-10:47:59] [I] === Performance summary ===
[10/03/2024-10:47:59] [I] Throughput: 130.298 qps
[10/03/2024-10:47:59] [I] Latency: min = 5.38672 ms, max = 13.3664 ms, mean = 7.60628 ms, median = 7.16092 ms, percentile(90%) = 10.2996 ms, percentile(95%) = 10.8698 ms, percentile(99%) = 12.9675 ms
[10/03/2024-10:47:59] [I] Enqueue Time: min = 2.72876 ms, max = 15.0201 ms, mean = 7.63062 ms, median = 7.86694 ms, percentile(90%) = 10.1792 ms, percentile(95%) = 11.7217 ms, percentile(99%) = 14.1848 ms
[10/03/2024-10:47:59] [I] H2D Latency: min = 0.0065918 ms, max = 0.0698242 ms, mean = 0.0122212 ms, median = 0.00814819 ms, percentile(90%) = 0.0253906 ms, percentile(95%) = 0.0270996 ms, percentile(99%) = 0.0515137 ms
[10/03/2024-10:47:59] [I] GPU Compute Time: min = 5.34595 ms, max = 13.3388 ms, mean = 7.58404 ms, median = 7.14139 ms, percentile(90%) = 10.2881 ms, percentile(95%) = 10.8175 ms, percentile(99%) = 12.9485 ms
[10/03/2024-10:47:59] [I] D2H Latency: min = 0.00390625 ms, max = 0.110596 ms, mean = 0.0100141 ms, median = 0.00439453 ms, percentile(90%) = 0.0254517 ms, percentile(95%) = 0.0319824 ms, percentile(99%) = 0.0994873 ms
[10/03/2024-10:47:59] [I] Total Host Walltime: 3.00082 s
[10/03/2024-10:47:59] [I] Total GPU Compute Time: 2.96536 s
[10/03/2024-10:47:59] [W] * Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized.
&&&& PASSED TensorRT.trtexec [TensorRT v100200] # trtexec --loadEngine=FM_P_D_fp16.engine
"""
TENSORRT_8 = """[07/28/2022-16:00:55] [I] === Performance summary ===
[07/28/2022-16:00:55] [I] Throughput: 716.632 qps
[07/28/2022-16:00:55] [I] Latency: min = 1.3476 ms, max = 1.5657 ms, mean = 1.38629 ms, median = 1.38037 ms, percentile(99%) = 1.55853 ms
[07/28/2022-16:00:55] [I] H2D Latency: min = 0 ms, max = 0 ms, mean = 0 ms, median = 0 ms, percentile(99%) = 0 ms
[07/28/2022-16:00:55] [I] GPU Compute Time: min = 1.3476 ms, max = 1.5657 ms, mean = 1.38629 ms, median = 1.38037 ms, percentile(99%) = 1.55853 ms
[07/28/2022-16:00:55] [V] GPU Compute Time: the GPU latency to execute the kernels for a query.
"""
FAILED = """&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec --onnx=plain.onnx
[01/02/2024-03:04:05] [E] [TRT] ModelImporter.cpp:771: While parsing node number 1 [Gelu -> "x"]:
[01/02/2024-03:04:05] [E] Engine set up failed
&&&& FAILED TensorRT.trtexec [TensorRT v8601] # trtexec --onnx=plain.onnx
"""
OUTPUTS = """[
  { "name" : "camera"
  , "dimensions" : "1x3"
  , "values" : [ 0.9, 1e-05, -0.25 ]
  }
, { "name" : "joints"
  , "dimensions" : "1x2x3"
  , "values" : [ 1, 2, 3, 4, 5, 6 ]
  }
]
"""


def test_the_log_of_tensorrt_10():
    log = parse_log(TENSORRT_10)
    assert (log.version, log.passed, log.throughput_qps) == ("10.2.0", True, 130.298)
    assert log.times_ms["Latency"] == {
        "min": 5.38672, "max": 13.3664, "mean": 7.60628, "median": 7.16092, "p90": 10.2996, "p95": 10.8698, "p99": 12.9675
    }  # fmt: skip
    assert log.times_ms["GPU Compute Time"]["median"] == 7.14139 and len(log.times_ms) == 5


def test_the_log_of_tensorrt_8_has_one_percentile_and_here_no_first_line():
    log = parse_log(TENSORRT_8)
    assert log.version == "unknown" and not log.passed
    assert log.times_ms["Latency"]["p99"] == 1.55853 and "p95" not in log.times_ms["Latency"]


def test_a_failed_build_gives_its_first_error():
    with pytest.raises(UserError, match="While parsing node number 1"):
        parse_log(FAILED)
    with pytest.raises(UserError, match="no error either"):
        parse_log("")


def test_the_outputs_file():
    outputs = parse_outputs(OUTPUTS)
    assert outputs["camera"].shape == (1, 3) and outputs["camera"][0, 2] == np.float32(-0.25)
    assert outputs["joints"].shape == (1, 2, 3)


@pytest.mark.parametrize("text", ["", "[1]", '[{"name": "a"}]', OUTPUTS.replace("1x3", "1x4")])
def test_an_outputs_file_that_is_none(text):
    with pytest.raises(UserError, match="cannot be read"):
        parse_outputs(text)


@pytest.mark.skipif(sys.platform == "win32", reason="starts a script by its first line")
class TestRunning:
    @pytest.fixture
    def program(self, tmp_path: Path):
        """Makes a program that checks its arguments like trtexec, prints a log and writes outputs."""

        def make(log: str = TENSORRT_10, code: int = 0, writes: bool = True) -> str:
            path = tmp_path / "trtexec"
            path.write_text(
                f"#!{sys.executable}\nimport sys\n"
                "given = dict(word[2:].split('=', 1) if '=' in word else (word[2:], '') for word in sys.argv[1:])\n"
                "assert given['shapes'] == 'images:1x3x4x4' and 'fp16' in given\n"
                "name, _, file = given['loadInputs'].partition(':')\n"
                "assert name == 'images' and len(open(file, 'rb').read()) == 4 * 3 * 16\n"
                f"if {writes}: open(given['exportOutput'], 'w').write({OUTPUTS!r})\n"
                f"print({log!r})\nsys.exit({code})\n"
            )
            os.chmod(path, path.stat().st_mode | stat.S_IXUSR)
            return str(path)

        return make

    def run(self, program: str, folder: Path):
        (folder / "plain.onnx").touch()
        return run_trtexec(program, folder / "plain.onnx", np.zeros((1, 3, 4, 4), np.float32), ["--fp16"])

    def test_it_hands_over_the_image_and_reads_both(self, program, tmp_path):
        log, outputs = self.run(program(), tmp_path)
        assert log.times_ms["Latency"]["median"] == 7.16092 and set(outputs) == {"camera", "joints"}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.onnx", "trtexec"]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"log": FAILED, "code": 1}, "no performance summary"),
            ({"code": 3}, "ended with code 3"),
            ({"writes": False}, "wrote no outputs"),
        ],
    )
    def test_what_goes_wrong(self, program, tmp_path, options, words):
        with pytest.raises(UserError, match=words):
            self.run(program(**options), tmp_path)

    def test_no_program(self, tmp_path):
        with pytest.raises(UserError, match="cannot run"):
            self.run(str(tmp_path / "none"), tmp_path)

    def test_a_build_without_end(self, program, tmp_path, monkeypatch):
        monkeypatch.setattr("benchmarks.trtexec.TIMEOUT_S", 0.001)
        with pytest.raises(UserError, match="took longer"):
            self.run(program(), tmp_path)
