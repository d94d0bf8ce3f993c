"""Energy and heat of the estimator at work, as the device measures them.

The result, a JSON object of schema 1. An INTERVAL is null or {`low`, `high`}; what a device does not tell is left out.

- `schema_version`: 1; `kind`: `metro-edge energy`; `created`: UTC, ISO 8601; `command`; `metro_edge`: version.
- `bundle`: `name`, `checkpoint`, `onnx_sha256` {precision: hash}.
- `device`: `processor`, `name`, `backend`, `threads` (null: the engine's choice), `power_mode` (of a Jetson, or null).
- `machine`: what metro_edge.machine.describe_machine returns.
- `settings`: `seconds`, `idle_seconds`, `fps` (null: as fast as it goes), `interval_ms`, `segments`, `protocol`.
- `intervals`: {`level`, `resamples`, `seed`} of the bootstrap.
- `precisions`: precision -> {
  `engine`, `frames`, `seconds`, `fps`, `frame_ms` {`p50_ms`, `p95_ms`}, `slowdown`: median time of a frame in the last
  fifth of the run to that of the first fifth, `late_frames`: those that a given `fps` had to wait for,
  `throttling`: {`reasons` {reason: share of the readings}, `slowed` (slowdown above SLOWED), `flagged`: either},
  `power`: reader -> {`scope`, `total` (what was added up), `method` (`counted` by the device or `integrated` here),
  `idle_w`, `mean_w`, `max_w`, `joules`, `joules_per_frame`, `joules_per_frame_above_idle`, `interval`: INTERVAL of
  the joules per frame over segments of the run, `rails` {name: {`mean_w`, `max_w`}}, `readings`, `longest_gap_s`},
  `temperature_c`, `clock_mhz`, `load`: sensor -> {`mean`, `max`, `min`, `first`, `last`},
  `series`: reader -> {`time_s` (from the first frame), `power_w`, `temperature_c`, `clock_mhz`, `load`: name -> list}}.
"""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.bootstrap import LEVEL, RESAMPLES, SEED, interval
from benchmarks.common import chosen, header, results_folder, shown_path
from benchmarks.power.choose import open_readers
from benchmarks.power.reader import Reader
from benchmarks.power.sampler import Sampler, Series
from metro_edge.backends import BACKENDS, open_session
from metro_edge.bundle import Bundle
from metro_edge.demo import DemoAssets
from metro_edge.errors import UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.files import json_bytes, write_bytes
from metro_edge.machine import power_mode
from metro_edge.spec import check_precision

SCHEMA_VERSION = 1
KIND = "metro-edge energy"
LEAST_S, LEAST_IDLE_S = 5.0, 1.0
SEGMENTS = 12
SLOWED = 1.05
WARMUP_FRAMES = 10
GPU_BACKENDS = ("tensorrt",)
QUANTITIES = ("temperature_c", "clock_mhz", "load")
PROTOCOL = (
    "Frame to body of one person in the shipped picture, frame in memory, one after another. Idle: before the engine "
    "is opened. Energy between the start of the first frame and the end of the last"
)


@dataclass(frozen=True)
class Settings:
    """What to run, as the command line gives it.

    Attributes:
        bundle: folder or .zip.
        seconds: that each precision runs.
        idle_seconds: before each, without an engine.
        precisions: of the bundle; empty for all.
        backend: one of metro_edge.backends.BACKENDS.
        threads: of one inference; None leaves it to the engine.
        fps: frames a second, as a camera gives them; None runs as fast as it goes.
        readers: names of benchmarks.power.choose.READERS; empty for those that this machine has.
        interval_ms: between readings.
        output: folder of the results.
    """

    bundle: Path
    seconds: float = 60.0
    idle_seconds: float = 10.0
    precisions: tuple[str, ...] = ()
    backend: str = "onnxruntime"
    threads: int | None = None
    fps: float | None = None
    readers: tuple[str, ...] = ()
    interval_ms: int = 100
    output: Path = Path("benchmarks") / "results"

    def __post_init__(self) -> None:
        for precision in self.precisions:
            check_precision(precision)
        if self.backend not in BACKENDS:
            raise UserError(f"unknown backend {self.backend!r}; known: {', '.join(BACKENDS)}")
        if not (LEAST_S <= self.seconds < float("inf") and LEAST_IDLE_S <= self.idle_seconds < float("inf")):
            raise UserError(
                f"--seconds must be at least {LEAST_S:g} and --idle-seconds {LEAST_IDLE_S:g}, got {self.seconds:g} and "
                f"{self.idle_seconds:g}"
            )
        if self.fps is not None and not 0 < self.fps <= 10_000:
            raise UserError(f"--fps must be above 0 and at most 10000, got {self.fps:g}")
        if not 10 <= self.interval_ms <= 1000:
            raise UserError(f"--interval-ms must be 10 to 1000, got {self.interval_ms}")

    @property
    def command(self) -> str:
        """The command that gives the result again."""
        words = ["python", "-m", "benchmarks", "energy", shown_path(self.bundle), "--seconds", f"{self.seconds:g}"]
        words += ["--idle-seconds", f"{self.idle_seconds:g}", "--backend", self.backend]
        words += ["--precision", *self.precisions] if self.precisions else []
        words += ["--threads", str(self.threads)] if self.threads is not None else []
        words += ["--fps", f"{self.fps:g}"] if self.fps is not None else []
        words += [word for name in self.readers for word in ("--reader", name)]
        words += ["--interval-ms", str(self.interval_ms)]
        return shlex.join(words)


@dataclass(frozen=True, eq=False)
class Frames:
    """When frames were run: (N,) starts and ends in seconds of one clock, and how many started late."""

    starts_s: NDArray[np.float64]
    ends_s: NDArray[np.float64]
    late: int


def run(settings: Settings) -> tuple[dict[str, Any], str, list[Path]]:
    """Measure and save `energy-NETWORK-BACKEND-TIME.json` and `.md`, and `.png` where matplotlib is installed.

    Returns report, Markdown and paths.

    Raises:
        UserError: a setting, bundle or folder that cannot be used, or readings that say nothing.
        NoReaderError: nothing here measures power; the message says what was looked for.
    """
    from benchmarks.energy_report import energy_markdown, plot_energy

    bundle = Bundle.load(settings.bundle)
    precisions = chosen(bundle, settings.precisions)
    with ExitStack() as stack:
        readers = open_readers(stack, settings.readers, settings.backend in GPU_BACKENDS)
        folder = stack.enter_context(results_folder(settings.output))
        report = measure(settings, bundle, precisions, readers)
        stem = f"energy-{report['bundle']['name']}-{settings.backend}-"
        stem += report["created"].replace("-", "").replace(":", "")
        plotted = find_spec("matplotlib") is not None and find_spec("onnx") is not None
        paths = [folder / f"{stem}{suffix}" for suffix in (".json", ".md", *([".png"] if plotted else []))]
        markdown = energy_markdown(report, paths[2].name if plotted else None)
        write_bytes(paths[0], json_bytes(report))
        write_bytes(paths[1], markdown.encode())
        if plotted:
            plot_energy(paths[2], report)
    return report, markdown, paths


def measure(settings: Settings, bundle: Bundle, precisions: Sequence[str], readers: Sequence[Reader]) -> dict[str, Any]:
    """Run every precision for a while; returns the report, see the module."""
    entries = {precision: _measure_precision(settings, bundle, precision, readers) for precision in precisions}
    engines = {precision: entry["engine"] for precision, entry in entries.items()}
    head = header(KIND, SCHEMA_VERSION, bundle, settings.backend, settings.threads, engines, settings.command)
    head["device"]["power_mode"] = power_mode()
    return {
        **head,
        "settings": {
            "seconds": settings.seconds,
            "idle_seconds": settings.idle_seconds,
            "fps": settings.fps,
            "interval_ms": settings.interval_ms,
            "segments": SEGMENTS,
            "protocol": PROTOCOL,
        },
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "precisions": entries,
    }


def _measure_precision(settings: Settings, bundle: Bundle, precision: str, readers: Sequence[Reader]) -> dict[str, Any]:
    interval_s = settings.interval_ms / 1000
    with Sampler(readers, interval_s) as sampler:
        for _ in tqdm(range(100), desc=f"idle before {precision}", leave=False):
            time.sleep(settings.idle_seconds / 100)
    idle = sampler.series()
    options = {} if settings.threads is None else {"threads": settings.threads}
    with open_session(bundle, precision, settings.backend, **options) as session:
        assets = DemoAssets.load()
        call = partial(MeshEstimator(bundle, session), assets.picture, assets.picture_box)
        for _ in range(WARMUP_FRAMES):
            call()
        with Sampler(readers, interval_s) as sampler:
            frames = run_steadily(call, settings.seconds, settings.fps, precision)
        engine = session.device
    return entry_of(engine, frames, idle, sampler.series())


def run_steadily(
    call: Callable[[], object],
    seconds: float,
    fps: float | None,
    what: str = "",
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Frames:
    """Call for so many seconds, one call after another or at a rate, and return when each ran.

    A frame that is due before the one before it has ended starts late; none is left out.

    Raises UserError for a clock that went back.
    """
    starts: list[float] = []
    ends: list[float] = []
    late = 0
    began = last = clock()
    with tqdm(total=round(seconds), desc=f"run {what}", unit="s", leave=False) as bar:
        while (now := clock()) - began < seconds:
            if fps is not None:
                due = began + len(starts) / fps
                if now < due:
                    sleep(due - now)
                    continue
                late += now > due + 1 / fps
            call()
            end = clock()
            if not last <= now <= end:
                raise UserError("the clock went back during the measurement: run it again")
            last = end
            starts.append(now)
            ends.append(end)
            bar.update(int(end - began) - bar.n)
    return Frames(np.array(starts), np.array(ends), late)


def entry_of(engine: str, frames: Frames, idle: Sequence[Series], busy: Sequence[Series]) -> dict[str, Any]:
    """Return what the report says of one precision.

    Args:
        engine: in words.
        frames: what ran, at least SEGMENTS of them.
        idle, busy: readings before and meanwhile, of the same readers in the same order.

    Raises:
        UserError: too few frames, or readings that say nothing.
    """
    count = len(frames.starts_s)
    if count < SEGMENTS:
        raise UserError(f"{count} frames are too few to say what one takes: give --seconds enough for {SEGMENTS}")
    durations = (frames.ends_s - frames.starts_s) * 1000.0
    fifth = max(1, count // 5)
    slowdown = float(np.median(durations[-fifth:]) / max(np.median(durations[:fifth]), 1e-9))
    seconds = float(frames.ends_s[-1] - frames.starts_s[0])
    within = [_within(series, frames) for series in busy]
    reasons = _reasons(busy, within)
    return {
        "engine": engine,
        "frames": count,
        "seconds": seconds,
        "fps": count / seconds,
        "frame_ms": {"p50_ms": float(np.median(durations)), "p95_ms": float(np.percentile(durations, 95))},
        "slowdown": slowdown,
        "late_frames": frames.late,
        "throttling": {
            "reasons": reasons,
            "slowed": slowdown > SLOWED,
            "flagged": bool(reasons) or slowdown > SLOWED,
        },
        "power": {
            series.reader.name: _power_of(series, before, frames)
            for before, series in zip(idle, busy, strict=True) if series.reader.total
        },
        **{kind: _summaries(busy, within, kind) for kind in QUANTITIES},
        "series": {series.reader.name: _kept(series, float(frames.starts_s[0])) for series in busy},
    }  # fmt: skip


def _power_of(series: Series, idle: Series, frames: Frames) -> dict[str, Any]:
    first, last, count = float(frames.starts_s[0]), float(frames.ends_s[-1]), len(frames.starts_s)
    idle_w = idle.energy_j(idle.times_s[0], idle.times_s[-1]) / float(idle.times_s[-1] - idle.times_s[0])
    joules = series.energy_j(first, last)
    # Each segment begins where a frame does, and ends where the next segment begins.
    cuts = np.linspace(0, count, SEGMENTS + 1).astype(int)
    edges = [*(float(frames.starts_s[cut]) for cut in cuts[:-1]), last]
    each = [
        series.energy_j(start, end) / int(cuts[i + 1] - cuts[i])
        for i, (start, end) in enumerate(itertools.pairwise(edges))
    ]
    ends = interval(each)
    times, watts = series.power_w()
    inside = (times >= first) & (times <= last)
    return {
        "scope": series.reader.scope,
        "total": list(series.reader.total),
        "method": "counted" if series.counted else "integrated",
        "idle_w": idle_w,
        "mean_w": joules / (last - first),
        "max_w": float(watts[inside].max()) if inside.any() else None,
        "joules": joules,
        "joules_per_frame": joules / count,
        "joules_per_frame_above_idle": (joules - idle_w * (last - first)) / count,
        "interval": ends and ends.to_dict(),
        "rails": {
            name: {"mean_w": summary["mean"], "max_w": summary["max"]}
            for name, summary in _summaries([series], [_within(series, frames)], "power_w").items()
        },
        "readings": int(_within(series, frames).sum()),
        "longest_gap_s": series.longest_gap_s,
    }


def _within(series: Series, frames: Frames) -> NDArray[np.bool_]:
    """Return (N,) which readings were taken between the first frame and the last."""
    inside = (series.times_s >= frames.starts_s[0]) & (series.times_s <= frames.ends_s[-1])
    return inside if inside.any() else np.ones_like(inside)


def _summaries(
    all_series: Sequence[Series], within: Sequence[NDArray[np.bool_]], kind: str
) -> dict[str, dict[str, float]]:
    """Return sensor -> mean, extremes, first and last value, over the readings that have it; the first reader wins."""
    found: dict[str, dict[str, float]] = {}
    for series, inside in zip(all_series, within, strict=True):
        for name in series.names(kind):
            values = series.values(kind, name)[inside]
            values = values[np.isfinite(values)]
            if len(values) and name not in found:
                found[name] = {
                    "mean": float(values.mean()), "max": float(values.max()), "min": float(values.min()),
                    "first": float(values[0]), "last": float(values[-1]),
                }  # fmt: skip
    return found


def _reasons(all_series: Sequence[Series], within: Sequence[NDArray[np.bool_]]) -> dict[str, float]:
    """Return reason of throttling -> share of the reader's readings that named it."""
    found: dict[str, float] = {}
    for series, inside in zip(all_series, within, strict=True):
        chosen = [reading for reading, counts in zip(series.readings, inside, strict=True) if counts]
        for reason in dict.fromkeys(name for reading in chosen for name in reading.throttled):
            share = sum(reason in reading.throttled for reading in chosen) / len(chosen)
            found[reason] = max(share, found.get(reason, 0.0))
    return found


def _kept(series: Series, start_s: float) -> Mapping[str, Any]:
    """Return the readings as lists, three digits behind the point; null where one lacks a value."""
    kept: dict[str, Any] = {"time_s": _listed(series.times_s - start_s)}
    for kind in ("power_w", *QUANTITIES):
        kept[kind] = {name: _listed(series.values(kind, name)) for name in series.names(kind)}
    if series.reader.total and not kept["power_w"]:
        times, watts = series.power_w()
        kept["power_w"] = {"total": _listed(np.interp(series.times_s, times, watts))}
    return kept


def _listed(values: NDArray[np.float64]) -> list[float | None]:
    return [round(float(value), 3) if np.isfinite(value) else None for value in values]
