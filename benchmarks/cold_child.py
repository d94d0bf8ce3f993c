"""`python -m benchmarks.cold_child BUNDLE PRECISION BACKEND THREADS`: a start from nothing, told as two lines of JSON.

benchmarks.cold starts it. The first line comes at once with the first result, the second one after some more calls.
This module loads nothing of its own before what it times.
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False  # typing is slow to load
if TYPE_CHECKING:
    from typing import Any

_BEGAN = time.perf_counter()
MORE_CALLS = 5


def main(bundle_path: str, precision: str, backend: str, threads: str) -> None:
    """Time import, bundle, session and first inference; `threads` is a number or the word none."""
    marks = [_BEGAN]
    import metro_edge  # noqa: F401
    from metro_edge.bundle import Bundle
    from metro_edge.estimator import MeshEstimator

    on_gpu = backend == "tensorrt"
    if on_gpu:
        from metro_edge.cuda.estimator import DeviceEstimator
    marks.append(time.perf_counter())
    bundle = Bundle.load(bundle_path)
    marks.append(time.perf_counter())
    free_before = _device_free() if on_gpu else None
    began = time.perf_counter()
    estimator: Any
    if on_gpu:
        estimator = DeviceEstimator.open(bundle, precision, progress=False)
    else:
        given = None if threads == "none" else int(threads)
        estimator = MeshEstimator.from_bundle(bundle, precision, backend, given)
    opened = time.perf_counter()

    import json

    import numpy as np

    from metro_edge.machine import peak_memory_mb

    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    box = np.array([220.0, 60.0, 200.0, 360.0])
    first = time.perf_counter()
    _infer(estimator, frame, box)
    done = time.perf_counter()
    times = {
        "import_ms": marks[1] - marks[0],
        "bundle_ms": marks[2] - marks[1],
        "session_ms": opened - began,
        "first_inference_ms": done - first,
    }
    print(json.dumps({name: seconds * 1000.0 for name, seconds in times.items()}), flush=True)
    warm = []
    for _ in range(MORE_CALLS):
        before = time.perf_counter()
        _infer(estimator, frame, box)
        warm.append((time.perf_counter() - before) * 1000.0)
    device_mb = None if free_before is None else (free_before - _device_free()) / 1e6
    rest = {"warm_ms": sorted(warm)[MORE_CALLS // 2], "host_peak_mb": peak_memory_mb(), "device_mb": device_mb}
    estimator.close()
    print(json.dumps(rest), flush=True)


def _infer(estimator: Any, frame: Any, box: Any) -> None:
    import contextlib

    from metro_edge.errors import NobodyError

    with contextlib.suppress(NobodyError):  # noise may be no body; that the network ran is what counts
        estimator(frame, box)


def _device_free() -> int:
    """Return the free memory of the GPU in bytes: no driver tells what one process takes, only what is left."""
    from metro_edge.cuda.context import DeviceContext

    context = DeviceContext(0)
    with context:
        free, _ = context.driver.mem_get_info()
    context.close()
    return int(free)


if __name__ == "__main__":
    from metro_edge.errors import UserError

    try:
        main(*sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
