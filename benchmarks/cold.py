"""Cold starts: fresh processes from nothing to the first result, and the time that building a plan takes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.stage_frames import BACKEND_OF_GPU
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[1]
LIMIT_S = 300.0
TIMES = ("import_ms", "bundle_ms", "session_ms", "first_inference_ms")
TOTAL, REST = "first_result_ms", "interpreter_ms"
FIGURES = (REST, *TIMES, TOTAL, "warm_ms", "host_peak_mb", "device_mb")


def cold_starts(
    bundle: Bundle, precisions: Sequence[str], backend: str, threads: int | None, repeats: int
) -> dict[str, dict[str, Any]]:
    """Return, by precision, `starts`, one dict of FIGURES for each process, and `median` over them.

    The precisions take turns. `first_result_ms` counts from before the process is made until its first result is told;
    `interpreter_ms` is what of it no stage explains: making the process, Python's own start, the telling. Files come
    from the system's cache, where this process has just read them.

    Raises:
        UserError: fewer than one repeat, or a process that failed, with its words.
    """
    if repeats < 1:
        raise UserError(f"the number of cold starts must be at least 1, got {repeats}")
    starts: dict[str, list[dict[str, Any]]] = {precision: [] for precision in precisions}
    for _ in tqdm(range(repeats), desc="cold starts", leave=False):
        for precision, found in starts.items():
            found.append(cold_start(bundle, precision, backend, threads))
    return {precision: {"starts": found, "median": _median(found)} for precision, found in starts.items()}


def cold_start(bundle: Bundle, precision: str, backend: str, threads: int | None) -> dict[str, Any]:
    """Start one process and return its FIGURES; raises UserError as `cold_starts`."""
    words = ["-m", "benchmarks.cold_child", str(bundle.path.resolve()), precision, backend]
    words.append("none" if threads is None else str(threads))
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, *words], cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        assert process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(LIMIT_S, stop)
        timer.start()
        try:
            first = process.stdout.readline()
            total_ms = (time.perf_counter() - began) * 1000.0
            rest, _ = process.communicate()
        finally:
            timer.cancel()
        if late.is_set():
            raise UserError(f"a cold start took over {LIMIT_S:g} s")
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise UserError(f"a cold start failed: {lines[-1].removeprefix('error: ')}")
    times, more = json.loads(first), json.loads(rest)
    return {REST: total_ms - sum(times.values()), **times, TOTAL: total_ms, **more}


def _median(starts: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    columns = {name: [start[name] for start in starts] for name in FIGURES}
    return {name: None if None in values else float(np.median(values)) for name, values in columns.items()}


def plan_builds(bundle: Bundle, precisions: Sequence[str], backend: str, target: str | None) -> dict[str, Any] | None:
    """Return how long building a plan takes, by precision; None where there is no plan.

    Args:
        bundle, precisions: whose graphs.
        backend: for `tensorrt` without a target, the plan is for this machine's GPU.
        target: a GPU to build for ahead of time, such as `sm86`, which TensorRT-RTX can without one.

    Returns:
        `library`, `target` (null: this GPU), `precisions` {precision: {`build_s`, `plan_mb`}}. Nothing is kept, and no
        timing cache is used.

    Raises:
        UserError, MissingExtraError: as metro_edge.plans.build_plan_of.
    """
    if target is None and backend != BACKEND_OF_GPU:
        return None
    from metro_edge.plans import BuildOptions, build_plan_of
    from metro_edge.plans.targets import capabilities_of

    options = BuildOptions(capabilities=() if target is None else capabilities_of([target]))
    library, found = "", {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            began = time.perf_counter()
            info = build_plan_of(bundle, precision, Path(folder) / f"{precision}.plan", options=options)
            found[precision] = {"build_s": time.perf_counter() - began, "plan_mb": info.plan_bytes / 1e6}
            library = f"{info.library} {info.library_version}"
    return {"library": library, "target": target, "precisions": found}
