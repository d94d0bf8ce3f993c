"""`python -m benchmarks load`: several cameras before one engine, in closed and open loop.

The JSON file, schema 1. A LATENCY is {`p50_ms`, `p90_ms`, `p95_ms`, `p99_ms`, `worst_ms`, `mean_ms`, `min_ms`}, null
where there are too few frames or none.

- `schema_version`: 1; `kind`: `metro-edge load`; and the parts of benchmarks.common.header: `created`, `command`,
  `metro_edge`, `bundle`, `device`, `machine`.
- `source`: {`name`, `frame_wh`, `frames`, `people`: 1}; `protocol`: in words; `precision`.
- `settings`: `seconds` of each cell, `warm_s` of it uncounted, `arrivals`: `periodic` or `poisson`, `seed`, `queue`
  frames of each camera that may wait, `deadline_ms`, `allowed` share of missed frames, `tolerance` of the search,
  `batching`: false.
- `state`: {`before`, `after`, `doubts`}, as of benchmarks.stages.
- `closed`: [{`cameras`, `frames` answered, `per_s`: of all cameras, LATENCY, `missed`, `share`, `samples_ms`:
  packed}].
- `open`: [{`cameras`, `rate_hz` of each, `offered_per_s`: of all in the mean, `frames` due, `dropped`, `per_s`:
  answered of all cameras, LATENCY of those answered, `missed`: dropped or late, `share`, `samples_ms`: packed, of those
  answered}].
- `breaking`: [{`cameras`, `largest_hz` of each at which the share of missed frames stays allowed, `breaks_hz`: the
  smallest that was found to be too much, `probes` [{`rate_hz`, `frames`, `missed`}]}]; `largest_hz` is null where every
  rate missed, `breaks_hz` where none did.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.common import chosen, command_line, header, opencv_threads, write_all
from benchmarks.machine_state import doubts, read_state
from benchmarks.queueing import ARRIVALS, Served, check_plan, closed_loop, largest_rate, open_loop, planned
from benchmarks.report import latency_entry, pack_samples
from benchmarks.stage_frames import BACKEND_OF_GPU, bodies_of, engine_of, open_estimator
from benchmarks.throughput import check_counts
from metro_edge.backends import BACKENDS
from metro_edge.bundle import Bundle
from metro_edge.demo import DemoAssets
from metro_edge.errors import UserError
from metro_edge.preprocess import Frame
from metro_edge.spec import check_precision
from metro_edge.timing import Latency

KIND = "metro-edge load"
SCHEMA_VERSION = 1
LOOPS = ("closed", "open")
WARM_SHARE = 0.1
WARM_CALLS = 5
MOST_PROBE = 4.0  # times the seconds of a cell
PROTOCOL = (
    "Cameras give frames in memory with one person each, whose box is given: decoding and searching are not in it. One "
    "engine takes one frame at a time, the one that was due first; frames of several cameras are not joined to a "
    "batch, as estimators take the people of one frame. Closed loop: a camera sends its next frame when it has its "
    "answer. Open loop: frames are due by a plan, and latency counts from then, also while the engine is busy"
)


@dataclass(frozen=True)
class Settings:
    """What to measure, as the command line gives it.

    Attributes:
        bundle: folder or .zip.
        precision: one of the bundle's.
        backend: one of metro_edge.backends.BACKENDS.
        threads: CPU threads of one inference; None leaves it to the engine.
        cameras: how many at once.
        rates_hz: of each camera in open loop.
        loops: of LOOPS.
        arrivals: of benchmarks.queueing.ARRIVALS.
        seconds: of each cell.
        deadline_ms: from when a frame is due to its mesh.
        queue: frames of each camera that may wait; 1 as live sources do.
        allowed: share of frames that may miss at the largest rate.
        tolerance: of the search for it; None leaves the search out.
        seed: of the arrivals.
        output: folder of the results.
    """

    bundle: Path
    precision: str = "fp32"
    backend: str = "onnxruntime"
    threads: int | None = None
    cameras: tuple[int, ...] = (1, 2, 4, 8)
    rates_hz: tuple[float, ...] = (5.0, 10.0, 30.0)
    loops: tuple[str, ...] = LOOPS
    arrivals: str = "periodic"
    seconds: float = 4.0
    deadline_ms: float = 100.0
    queue: int = 1
    allowed: float = 0.01
    tolerance: float | None = 0.05
    seed: int = 0
    output: Path = Path("benchmarks") / "results"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        check_counts("--cameras", self.cameras, 64)
        if self.backend not in BACKENDS:
            raise UserError(f"unknown backend {self.backend!r}; known: {', '.join(BACKENDS)}")
        if not self.loops or not set(self.loops) <= set(LOOPS):
            raise UserError(f"--loop must be of {', '.join(LOOPS)}, got {' '.join(self.loops) or 'none'}")
        if self.seed < 0:
            raise UserError(f"--seed must be at least 0, got {self.seed}")
        if self.arrivals not in ARRIVALS:
            raise UserError(f"unknown arrivals {self.arrivals!r}; known: {', '.join(ARRIVALS)}")
        positive = {"--rate": self.rates_hz, "--seconds": (self.seconds,), "--deadline-ms": (self.deadline_ms,)}
        for name, values in positive.items():
            if not values or not all(value > 0 and np.isfinite(value) for value in values):
                raise UserError(f"{name} must be positive, got {' '.join(f'{v:g}' for v in values) or 'none'}")
        for count, rate_hz in itertools.product(self.cameras, self.rates_hz):
            check_plan(count, rate_hz, self.seconds, self.arrivals)
        if self.queue < 1:
            raise UserError(f"--queue must have room for at least 1 frame, got {self.queue}")
        if not 0 <= self.allowed < 1 or (self.tolerance is not None and not 0 < self.tolerance < 1):
            raise UserError("--allowed must be a share from 0 to below 1, --tolerance one between 0 and 1")

    @property
    def command(self) -> str:
        """The command that gives the result again."""
        default = Settings(self.bundle)
        given: list[tuple[str, Any, Any]] = [
            ("--precision", self.precision, default.precision),
            ("--backend", self.backend, default.backend),
            ("--threads", self.threads, None),
            ("--cameras", self.cameras, default.cameras),
            ("--rate", self.rates_hz, default.rates_hz),
            ("--loop", self.loops, default.loops),
            ("--arrivals", self.arrivals, default.arrivals),
            ("--seconds", self.seconds, default.seconds),
            ("--deadline-ms", self.deadline_ms, default.deadline_ms),
            ("--queue", self.queue, default.queue),
            ("--allowed", self.allowed, default.allowed),
            ("--tolerance", self.tolerance or 0, default.tolerance),
            ("--seed", self.seed, default.seed),
        ]
        return command_line("load", self.bundle, given)


class Cameras:
    """Frames of the shipped clip for any number of cameras, each at another place of it."""

    def __init__(self, estimator: Any) -> None:
        assets = DemoAssets.load()
        self.frames: list[Frame] = assets.clip
        self.boxes: NDArray[np.float64] = assets.boxes
        self._estimator, self._next = estimator, 0

    def serve(self, camera: int) -> None:
        """Run the next frame of a camera, until its bodies are there."""
        number = (self._next + 7 * camera) % len(self.frames)
        self._next += 1
        bodies_of(self._estimator, self.frames[number], self.boxes[number][None])


def measure(settings: Settings) -> dict[str, Any]:
    """Measure all of it; returns the report, see the module. Raises UserError."""
    bundle = Bundle.load(settings.bundle)
    chosen(bundle, (settings.precision,))
    gpu = settings.backend == BACKEND_OF_GPU
    with contextlib.ExitStack() as stack:
        estimator = stack.enter_context(open_estimator(bundle, settings.precision, settings.backend, settings.threads))
        parts = header(
            KIND, SCHEMA_VERSION, bundle, settings.backend, settings.threads,
            {settings.precision: engine_of(estimator)}, settings.command,
        )  # fmt: skip
        cameras = Cameras(estimator)
        stack.enter_context(opencv_threads(settings.threads))
        before = read_state(gpu)
        for camera in range(WARM_CALLS):
            cameras.serve(camera)
        found = cells(settings, cameras.serve)
    after = read_state(gpu)
    height, width = cameras.frames[0].shape[:2]
    return {
        **parts,
        "source": {"name": "the shipped clip", "frame_wh": [width, height], "frames": len(cameras.frames), "people": 1},
        "protocol": PROTOCOL,
        "precision": settings.precision,
        "settings": {
            "seconds": settings.seconds,
            "warm_s": WARM_SHARE * settings.seconds,
            "arrivals": settings.arrivals,
            "seed": settings.seed,
            "queue": settings.queue,
            "deadline_ms": settings.deadline_ms,
            "allowed": settings.allowed,
            "tolerance": settings.tolerance,
            "batching": False,
        },
        "state": {"before": before.to_dict(), "after": after.to_dict(), "doubts": doubts(before, after)},
        **found,
    }


def cells(
    settings: Settings,
    serve: Callable[[int], object],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, Any]:
    """Return `closed`, `open` and `breaking`.

    Args:
        settings: what to measure.
        serve: runs a frame of a camera.
        clock, sleep: seconds.
    """
    warm_s = WARM_SHARE * settings.seconds

    def opened(count: int, rate_hz: float, seconds: float) -> Served:
        plan = planned(count, rate_hz, seconds, settings.arrivals, settings.seed)
        warm = WARM_SHARE * seconds
        return open_loop(
            plan, serve, seconds=seconds, queue=settings.queue, warm_s=warm, clock=clock, sleep=sleep
        )  # fmt: skip

    closed, opens, breaking = [], [], []
    with tqdm(desc="load", unit="cell", leave=False) as bar:
        for count in settings.cameras:
            whole = closed_loop(count, serve, seconds=settings.seconds, warm_s=warm_s, clock=clock)
            bar.update()
            if "closed" in settings.loops:
                closed.append({"cameras": count, "frames": whole.frames, **_figures(whole, settings.deadline_ms)})
            if "open" not in settings.loops:
                continue
            for rate_hz in settings.rates_hz:
                served = opened(count, rate_hz, settings.seconds)
                bar.update()
                offered = {"cameras": count, "rate_hz": rate_hz, "offered_per_s": count * rate_hz}
                given = {"frames": served.frames, "dropped": served.dropped}
                opens.append({**offered, **given, **_figures(served, settings.deadline_ms)})
            if settings.tolerance is not None:
                breaking.append({"cameras": count, **_breaking(settings, count, whole.per_s, opened, bar)})
    return {"closed": closed, "open": opens, "breaking": breaking}


def _breaking(
    settings: Settings, count: int, capacity_per_s: float, opened: Callable[[int, float, float], Served], bar: Any
) -> dict[str, Any]:
    """Search from a quarter above what the closed loop reached."""
    assert settings.tolerance is not None
    # So many that one alone may miss; a probe of a rate that is hopeless anyway ends before.
    enough = 1.0 / settings.allowed if settings.allowed else 100.0

    def probe(rate_hz: float) -> tuple[int, int]:
        counted_s = min(max(settings.seconds, enough / (count * rate_hz)), MOST_PROBE * settings.seconds)
        served = opened(count, rate_hz, counted_s / (1.0 - WARM_SHARE))
        bar.update()
        return served.frames, served.missed(settings.deadline_ms)

    high = max(1.25 * capacity_per_s / count, 1e-3)
    low, above, probes = largest_rate(probe, high, allowed=settings.allowed, tolerance=settings.tolerance)
    return {"largest_hz": low, "breaks_hz": above, "probes": probes}


def _figures(served: Served, deadline_ms: float) -> dict[str, Any]:
    samples, missed = served.latency_ms, served.missed(deadline_ms)
    keys = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "min_ms")
    figures: dict[str, float | None] = dict.fromkeys((*keys, "worst_ms"))
    if len(samples):
        summary = latency_entry(Latency(samples, 0).to_dict(), len(samples))
        figures = {key: summary[key] for key in keys} | {"worst_ms": float(samples.max())}
    share = missed / served.frames if served.frames else None
    return {
        "per_s": served.per_s,
        **figures,
        "missed": missed,
        "share": share,
        "samples_ms": pack_samples(samples),
    }


def run(settings: Settings) -> tuple[str, list[Path]]:
    """Measure, and write `load-NAME-BACKEND-PROCESSOR-TIME.json`, `.md` and `.png`; returns the Markdown and the paths.

    Raises:
        UserError: a setting, bundle or folder that is not usable; nothing is written then.
        MissingExtraError: no matplotlib.
    """
    from benchmarks.load_report import load_markdown, plot_load

    return write_all("load", settings.output, partial(measure, settings), load_markdown, plot_load)


def offered(rows: Sequence[dict[str, Any]], cameras: int) -> list[dict[str, Any]]:
    """Return the rows of one number of cameras."""
    return [row for row in rows if row["cameras"] == cameras]
