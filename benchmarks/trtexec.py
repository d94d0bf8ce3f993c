"""NVIDIA's trtexec on a plain ONNX export: what TensorRT makes of a network without metro-edge.

Its log is read, as `samples/common/sampleReporting.cpp` of TensorRT's own repository prints it, and the outputs that
`--exportOutput` writes. Versions from 8.4 on print median and percentiles this way.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.files import reason, staging_folder
from metro_edge.spec import INPUT_NAME

PROGRAM = "trtexec"
DURATION_S = 10
TIMEOUT_S = 1800  # a build with default settings takes minutes on a Jetson
MEASURES = ("Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency")
_LINE = re.compile(rf"\[I\] ({'|'.join(MEASURES)}): (.+)$", re.MULTILINE)
_VALUE = re.compile(r"(min|max|mean|median|percentile\(([\d.]+)%\)) = ([\d.eE+-]+) ms")
_THROUGHPUT = re.compile(r"\[I\] Throughput: ([\d.eE+-]+) qps")
_VERSION = re.compile(r"\[TensorRT v(\d+)\]")


@dataclass(frozen=True)
class Log:
    """What a run of trtexec printed.

    Attributes:
        version: of TensorRT, such as 10.2.0.
        passed: whether it said so.
        throughput_qps: queries a second, several in flight.
        times_ms: measure, of MEASURES -> `min`, `max`, `mean`, `median`, and `p90`, `p95`, `p99` where printed.
    """

    version: str
    passed: bool
    throughput_qps: float
    times_ms: dict[str, dict[str, float]]


def find_trtexec() -> str | None:
    """Return the program's path: on PATH, or where NVIDIA's packages put it on a Jetson."""
    return shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/src/tensorrt/bin")


def parse_log(text: str) -> Log:
    """Read trtexec's log; raises UserError when it holds no performance summary, with its first error line."""
    times: dict[str, dict[str, float]] = {}
    for name, rest in _LINE.findall(text):
        found = {f"p{percent}" if percent else word: float(value) for word, percent, value in _VALUE.findall(rest)}
        if found:
            times[name] = found
    throughput = _THROUGHPUT.search(text)
    if throughput is None or "median" not in times.get("Latency", {}):
        errors = [line.split("[E]", 1)[1].strip() for line in text.splitlines() if "[E]" in line]
        why = errors[0][:300] if errors else "its log holds no error either"
        raise UserError(f"trtexec gave no performance summary: {why}")
    version = _VERSION.search(text)
    return Log(
        _version_of(version[1]) if version else "unknown",
        "&&&& PASSED" in text,
        float(throughput[1]),
        times,
    )


def parse_outputs(text: str) -> dict[str, NDArray[np.float32]]:
    """Read what `--exportOutput` wrote: name -> array; raises UserError for anything else."""
    try:
        return {
            entry["name"]: np.array(entry["values"], np.float32).reshape(
                [int(size) for size in entry["dimensions"].split("x")]
            )
            for entry in json.loads(text)
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"trtexec's outputs cannot be read: {error}") from None


def run_trtexec(
    program: str, onnx: Path, image: NDArray[np.float32], options: Sequence[str] = ()
) -> tuple[Log, dict[str, NDArray[np.float32]]]:
    """Build an engine of an ONNX file, time it on one image and return the log and the outputs of that image.

    Args:
        program: path of trtexec.
        onnx: the graph, with one input `images` and a dynamic batch.
        image: (1, 3, S, S) float32.
        options: more of trtexec's, such as `--fp16`.

    Raises:
        UserError: it does not start, takes longer than TIMEOUT_S, fails, or prints what cannot be read.
    """
    with staging_folder(onnx.parent) as folder:
        (folder / "images.bin").write_bytes(np.ascontiguousarray(image).tobytes())
        shape = "x".join(map(str, image.shape))
        command = [
            program, f"--onnx={onnx}", f"--shapes={INPUT_NAME}:{shape}", f"--duration={DURATION_S}",
            f"--loadInputs={INPUT_NAME}:{folder / 'images.bin'}", f"--exportOutput={folder / 'outputs.json'}", *options,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
            )
        except OSError as error:
            raise UserError(f"cannot run {program}: {reason(error)}") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"{program} took longer than {TIMEOUT_S} s and was ended") from None
        log = parse_log((done.stdout + b"\n" + done.stderr).decode(errors="replace"))
        if done.returncode or not log.passed:
            raise UserError(f"{program} ended with code {done.returncode} and did not say PASSED")
        try:
            outputs = (folder / "outputs.json").read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{program} wrote no outputs: {reason(error)}") from None
    return log, parse_outputs(outputs)


def _version_of(digits: str) -> str:
    """100200 -> 10.2.0; 8601 -> 8.6.1: two digits each since 10, one and two before."""
    number = int(digits)
    if number >= 100_000:
        return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
    return f"{number // 1000}.{number // 100 % 10}.{number % 100}"
