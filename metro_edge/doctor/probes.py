"""Questions to libraries, each asked in a Python process of its own.

So this process loads none of them, and a library that hangs, crashes or writes to the terminal cannot take the others'
answers along. An import alone says little: an empty `tensorrt` folder that type stubs left behind imports just fine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import metro_edge

TIMEOUT_S = 90.0

# Probe -> program; what it gives to `say` is the answer, an exception is the problem.
PROGRAMS: Mapping[str, str] = {
    "opencv": "import cv2; cv2.triangleRasterize; say(cv2.__version__)",
    "onnxruntime": "import onnxruntime as ort; say(ort.__version__ + ', ' + ' '.join(ort.get_available_providers()))",
    "cpu": (
        "import numpy as np; from metro_edge.estimator import MeshEstimator\n"
        "with MeshEstimator.from_bundle(threads=1) as estimator:\n"
        "    (body,) = estimator(np.full((64, 64, 3), 128, np.uint8))\n"
        "    spec = estimator.bundle.spec\n"
        "say(f'{spec.name}, ' + ' '.join(estimator.bundle.precisions) + f', one frame gave {len(body.joints)} joints')"
    ),
    "openvino": "import openvino as ov; say(ov.__version__ + ', ' + ' '.join(ov.Core().available_devices))",
    "gpu": (
        "from metro_edge.backends.gpu import first_gpu; gpu = first_gpu()\n"
        "if gpu is None: raise OSError('the driver knows no device')\n"
        "say(f'{gpu.name}, compute capability {gpu.compute_capability}')"
    ),
    "tensorrt": "from metro_edge.plans.versions import load_library; say(load_library('tensorrt').__version__)",
    "tensorrt_rtx": "from metro_edge.plans.versions import load_library; say(load_library('tensorrt_rtx').__version__)",
    "pycuda": "import pycuda, pycuda.driver; pycuda.driver.Device; say(pycuda.VERSION_TEXT)",
}
_PRELUDE = "import json\ndef say(text): print('\\n' + json.dumps(str(text)))\n"


@dataclass(frozen=True)
class Answer:
    """Of one probe: `found` says what there is; else `problem` says why nothing works."""

    found: str | None
    problem: str | None = None


def ask(names: Iterable[str], timeout_s: float = TIMEOUT_S) -> dict[str, Answer]:
    """Run some of PROGRAMS, a few at a time; returns probe -> answer and never raises for what a library does."""
    wanted = list(names)
    with ThreadPoolExecutor(max_workers=max(1, min(len(wanted), os.cpu_count() or 1))) as pool:
        return dict(zip(wanted, pool.map(lambda name: _ask(PROGRAMS[name], timeout_s), wanted), strict=True))


def _ask(program: str, timeout_s: float) -> Answer:
    here = str(Path(metro_edge.__file__).parents[1])  # also of a checkout that is not installed
    before = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": here if before is None else f"{here}{os.pathsep}{before}"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PRELUDE + program],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            cwd=sys.prefix,  # a folder called like a library where the user is would be imported instead
        )
    except subprocess.TimeoutExpired:
        return Answer(None, f"did not answer in {timeout_s:g} s")
    except OSError as error:
        return Answer(None, f"Python cannot be started: {error.strerror or error}")
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        if done.returncode < 0 or not lines:
            return Answer(None, f"ended with code {done.returncode}")
        return Answer(None, _problem(lines[-1]))
    said = done.stdout.decode(errors="replace").strip().splitlines()
    try:
        return Answer(str(json.loads(said[-1])))
    except (IndexError, ValueError):
        return Answer(None, "gave no answer")


def _problem(line: str) -> str:
    """Return an exception's last line without its class where that says nothing more."""
    kind, separator, text = line.partition(": ")
    if not separator or " " in kind:
        return line
    return "not installed" if kind.endswith(("MissingExtraError", "ModuleNotFoundError")) else text
