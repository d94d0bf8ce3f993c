"""Run the tests marked `gpu` on the stand-in: `python -m tests.virtual_gpu [--sanitize] [pytest's arguments]`.

With `--sanitize` the kernels run under AddressSanitizer and UndefinedBehaviorSanitizer, their blocks and threads in a
shuffled order and only when something waits for them. Where the compiler or the CUDA
headers are missing, it says so and ends well.
"""

from __future__ import annotations

import os
import sys

from tests.virtual_gpu import build
from tests.virtual_gpu.device import environment

DEFAULT = ["-q", "-m", "gpu and not slow"]
TESTS = (
    "tests/metro_edge/cuda",
    "tests/metro_edge/backends/test_tensorrt.py",
    "tests/benchmarks/test_kernels.py",
    "tests/benchmarks/test_stages_gpu.py",
)


def main(arguments: list[str]) -> int:
    sanitize = "--sanitize" in arguments
    try:
        more = {"VIRTUAL_GPU_LAZY": "1", "VIRTUAL_GPU_ORDER": "3"} if sanitize else {}
        variables = environment("address,undefined" if sanitize else "", **more)
    except build.UnavailableError as error:
        print(f"tests of the CUDA kernels left out: {error}")
        return 0
    given = [argument for argument in arguments if argument != "--sanitize"]
    runner = ["-m", "coverage", "run", "-m", "pytest"] if os.environ.get("COVERAGE_RUN") else ["-m", "pytest"]
    command = [sys.executable, *runner, *DEFAULT, *given]
    if not any(argument.startswith(TESTS) for argument in given):
        command += TESTS
    sys.stdout.flush()
    os.execve(sys.executable, command, variables)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
