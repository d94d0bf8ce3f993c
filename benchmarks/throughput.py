"""How much an engine does at once: against the batch, against people in a frame, against streams side by side."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.latency import measure_interleaved
from benchmarks.report import latency_entry
from benchmarks.stage_frames import bodies_of
from metro_edge.backends import Session
from metro_edge.errors import UserError
from metro_edge.preprocess import Frame, network_input
from metro_edge.timing import Latency

BATCHES = (1, 2, 4, 8)
PEOPLE = (1, 2, 4, 8, 16)
STREAMS = (1, 2)


def check_counts(name: str, counts: Sequence[int], most: int) -> tuple[int, ...]:
    """Return the counts, each once; raises UserError unless all are 1 to `most`."""
    if not counts or not all(1 <= count <= most for count in counts):
        raise UserError(f"{name} must be one or more numbers from 1 to {most}, got {list(counts)}")
    return tuple(dict.fromkeys(counts))


def against_batch(
    sessions: Mapping[str, Session], frame: Frame, box: NDArray[np.float64], batches: Sequence[int], runs: int
) -> dict[str, list[dict[str, Any]]]:
    """Return, by precision, a row for each batch: images a second through the network alone.

    Args:
        sessions: precision -> open session.
        frame, box: (H, W, 3) uint8 BGR and (1, 4) px, whose crop is repeated.
        batches: images of a call.
        runs: calls of each, in alternating blocks.
    """
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    for precision, session in sessions.items():
        image = network_input(frame, box, session.spec)
        for batch in batches:
            calls[precision, batch] = partial(session.infer, np.repeat(image, batch, axis=0))
    return _rows(measure_interleaved(calls, runs), "batch", "images_per_s")


def against_people(
    estimators: Mapping[str, Any], frame: Frame, box: NDArray[np.float64], people: Sequence[int], runs: int
) -> dict[str, list[dict[str, Any]]]:
    """Return, by precision, a row for each number of people: from a frame in memory to their bodies.

    The people share one box, shifted by a pixel each, so that each costs what the first one does.
    """
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    for precision, estimator in estimators.items():
        for count in people:
            boxes = np.repeat(box, count, axis=0)
            boxes[:, 0] -= np.arange(count)
            calls[precision, count] = partial(bodies_of, estimator, frame, boxes)
    rows = _rows(measure_interleaved(calls, runs), "people", "people_per_s")
    for row in (row for found in rows.values() for row in found):
        row["frames_per_s"] = row["people_per_s"] / row["people"]
    return rows


def against_streams(
    opening: Callable[[], Any], frame: Frame, box: NDArray[np.float64], streams: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """Return a row for each number of estimators that run at once, each in a thread: frames a second of all together.

    Args:
        opening: opens another estimator.
        frame, box: (H, W, 3) uint8 BGR and (1, 4) px.
        streams: how many at once.
        seconds: each number is measured for.
    """
    rows = []
    for count in streams:
        with contextlib.ExitStack() as stack:
            estimators = [stack.enter_context(opening()) for _ in range(count)]
            rows.append({"streams": count, **_together(estimators, frame, box, seconds)})
    return rows


def _together(estimators: Sequence[Any], frame: Frame, box: NDArray[np.float64], seconds: float) -> dict[str, Any]:
    start = threading.Barrier(len(estimators))

    def run(estimator: Any) -> tuple[float, float, list[float]]:
        try:
            for _ in range(3):
                bodies_of(estimator, frame, box)
        except BaseException:
            start.abort()  # else the others wait for ever
            raise
        start.wait()
        began = time.perf_counter()
        times = [began]
        while times[-1] - began < seconds:
            bodies_of(estimator, frame, box)
            times.append(time.perf_counter())
        return began, times[-1], list(np.diff(times) * 1000.0)

    with ThreadPoolExecutor(len(estimators)) as pool, tqdm(total=len(estimators), desc="streams", leave=False) as bar:
        futures = [pool.submit(run, estimator) for estimator in estimators]
        for future in futures:
            future.add_done_callback(lambda _: bar.update())
    found = [future.result() for future in sorted(futures, key=lambda f: _is_broken(f.exception()))]
    samples = np.array([sample for _, _, part in found for sample in part])
    elapsed_s = max(end for _, end, _ in found) - min(began for began, _, _ in found)
    summary = latency_entry(Latency(samples, 3).to_dict(), len(samples))
    return {**_shown(summary), "frames_per_s": len(samples) / elapsed_s}


def _is_broken(error: BaseException | None) -> bool:
    """Whether a thread failed because another one did, whose error says more and is raised first."""
    return isinstance(error, threading.BrokenBarrierError)


def _rows(measured: Mapping[tuple[str, int], Latency], name: str, rate: str) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for (precision, count), latency in measured.items():
        summary = latency_entry(latency.to_dict(), len(latency.samples_ms))
        per_s = count * 1000.0 / float(latency.samples_ms.mean())
        rows.setdefault(precision, []).append({name: count, **_shown(summary), rate: per_s})
    return rows


def _shown(summary: Mapping[str, float | None]) -> dict[str, float | None]:
    return {key: summary[key] for key in ("p50_ms", "p95_ms", "calls")}
