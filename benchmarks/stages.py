"""`python -m benchmarks stages`: where the time from the camera to the mesh goes, throughput, and cold starts.

The JSON file, schema 1. Times are milliseconds unless their name says otherwise; a field is null where the figure does
not exist or has too few samples. SAMPLES are packed, see benchmarks.report.pack_samples. An INTERVAL is null or {`low`,
`high`}.

- `schema_version`: 1; `kind`: `metro-edge stages`; and the parts of benchmarks.common.header: `created`, `command`,
  `metro_edge`, `bundle`, `device`, `machine`.
- `source`: `name`, `frame_wh`, `frames` of the clip (null: not told), `people`: 1, `boxes`: whose, in words.
- `protocol`: in words; `rate_hz`: what deadlines are of; `intervals`: {`level`, `resamples`, `seed`, `block`} of the
  bootstrap, which draws blocks of so many frames in a row.
- `stability`: the rule, fields of benchmarks.stability.Stability.
- `state`: {`before`, `after`: fields of benchmarks.machine_state.MachineState; `doubts`: in words, empty when none}.
- `precisions`: precision -> {
  `settled`: whether it did; `settled_after`: frames until then, or null; `frames`: all that were counted; `first`: the
  first of them that the figures below are of, the beginning of the windows that agreed (0: never settled, all of them);
  `uncounted`: frames to warm up; `windows`: of `capture_to_mesh`, each {`p50_ms`, `p95_ms`};
  `stages`: stage -> null where this path has none, or {`p50_ms`, `p90_ms`, `p95_ms`, `p99_ms`, `worst_ms`, `mean_ms`,
  `min_ms`, `frames`, `intervals` {`p50_ms`, `p95_ms`: INTERVAL}, `samples_ms`: SAMPLES of all counted frames};
  `deadline`: {`ms`: one period of the rate, `frames`, `missed`, `share`, `interval`: INTERVAL of the share};
  `throughput`: {`batch`: [{`batch`, `p50_ms`, `p95_ms`, `calls`, `images_per_s`}], `people`: [{`people`, `p50_ms`,
  `p95_ms`, `calls`, `people_per_s`, `frames_per_s`}], `streams`: [{`streams`, `p50_ms`, `p95_ms`, `calls`,
  `frames_per_s`}]};
  `cold`: {`starts`: [FIGURES of benchmarks.cold], `median`: the same}}.
- `plan`: null, or what benchmarks.cold.plan_builds returns.

Stages: `decode`, `crop` (with normalisation), `host_to_device`, `network`, `device_to_host`, `postprocess` (placing),
`smoothing`, `overlay`; `capture_to_mesh` ends with smoothing, `capture_to_picture` with the overlay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bootstrap import LEVEL, RESAMPLES, SEED, interval, mean, median, p95
from benchmarks.cold import cold_starts, plan_builds
from benchmarks.common import chosen, command_line, engine_threads, header, opencv_threads, shown_path
from benchmarks.latency import BLOCK, check_runs, whole_rounds
from benchmarks.machine_state import MachineState, doubts, read_state
from benchmarks.report import latency_entry, pack_samples
from benchmarks.stability import Measured, Stability, measure_until_settled, window_percentiles
from benchmarks.stage_frames import (
    BACKEND_OF_GPU,
    CAPTURE_TO_MESH,
    CAPTURE_TO_PICTURE,
    STAGES,
    Clip,
    engine_of,
    frames_of,
    open_estimator,
    shipped_clip,
)
from benchmarks.throughput import (
    BATCHES,
    PEOPLE,
    STREAMS,
    against_batch,
    against_people,
    against_streams,
    check_counts,
)
from metro_edge.backends import BACKENDS, open_session
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from metro_edge.timing import Latency, StageClock
from metro_edge.video.sources import VideoFile

KIND = "metro-edge stages"
SCHEMA_VERSION = 1
HELD_UP = 20.0  # times the median
PROTOCOL = (
    "Each frame is decoded, cropped, run, placed, smoothed and drawn, one after the other on one thread, by the host's "
    "monotonic clock; one person, whose box is given: nobody is searched. Capture begins when the decoder is asked for "
    "the frame: exposure and the way from the camera are not in it. Precisions alternate window by window"
)
ON_CPU = "host to device and device to host do not exist on the CPU: its memory is the engine's"
ON_GPU = (
    "crop, host to device, network, device to host and postprocess are CUDA events' times with plain launches, of a "
    "second run of each frame; capture to mesh is the first run, with CUDA graphs, on the host's clock"
)


@dataclass(frozen=True)
class Settings:
    """What to measure, as the command line gives it.

    Attributes:
        bundle: folder or .zip.
        precisions: of the bundle; empty for all.
        source: a video file; None for the shipped clip at 1280 x 720.
        box: x, y, width, height in px of the person in `source`; None for the whole frame.
        backend: one of metro_edge.backends.BACKENDS.
        threads: CPU threads of one inference; None leaves it to the engine.
        rate_hz: whose period is the deadline.
        stability: when it has settled.
        runs: calls of each batch and number of people.
        batches, people, streams: what throughput is measured against.
        stream_s: seconds for each number of streams.
        repeats: cold starts of each precision.
        plan_for: GPU to build a plan for, such as `sm86`, and be timed; None builds one on a GPU alone.
        output: folder of the results.
    """

    bundle: Path
    precisions: tuple[str, ...] = ()
    source: Path | None = None
    box: tuple[float, float, float, float] | None = None
    backend: str = "onnxruntime"
    threads: int | None = None
    rate_hz: float = 30.0
    stability: Stability = field(default_factory=Stability)
    runs: int = 20
    batches: tuple[int, ...] = BATCHES
    people: tuple[int, ...] = PEOPLE
    streams: tuple[int, ...] = STREAMS
    stream_s: float = 3.0
    repeats: int = 3
    plan_for: str | None = None
    output: Path = Path("benchmarks") / "results"

    def __post_init__(self) -> None:
        check_runs(self.runs)
        check_counts("--batch", self.batches, 64)
        check_counts("--people", self.people, 16)
        check_counts("--streams", self.streams, 16)
        if self.backend not in BACKENDS:
            raise UserError(f"unknown backend {self.backend!r}; known: {', '.join(BACKENDS)}")
        if not (self.rate_hz > 0 and np.isfinite(self.rate_hz)):
            raise UserError(f"--rate must be a positive number of frames a second, got {self.rate_hz:g}")
        if not (self.stream_s > 0 and np.isfinite(self.stream_s)):
            raise UserError(f"--stream-seconds must be positive, got {self.stream_s:g}")
        if self.repeats < 1:
            raise UserError(f"--repeats must be at least 1, got {self.repeats}")
        if self.box is not None and self.source is None:
            raise UserError("--box belongs to --source: the shipped clip has boxes of its own")

    @property
    def command(self) -> str:
        """The command that gives the result again."""
        rule, default = self.stability, Settings(self.bundle)
        given: list[tuple[str, Any, Any]] = [
            ("--precision", self.precisions, ()),
            ("--source", None if self.source is None else shown_path(self.source), None),
            ("--box", self.box, None),
            ("--backend", self.backend, default.backend),
            ("--threads", self.threads, None),
            ("--rate", f"{self.rate_hz:g}", "30"),
            ("--window", rule.window, default.stability.window),
            ("--windows", rule.windows, default.stability.windows),
            ("--within", rule.within, default.stability.within),
            ("--min-frames", rule.least, default.stability.least),
            ("--max-frames", rule.most, default.stability.most),
            ("--runs", self.runs, default.runs),
            ("--batch", self.batches, default.batches),
            ("--people", self.people, default.people),
            ("--streams", self.streams, default.streams),
            ("--stream-seconds", self.stream_s, default.stream_s),
            ("--repeats", self.repeats, default.repeats),
            ("--plan-for", self.plan_for, None),
        ]
        return command_line("stages", self.bundle, given)


def measure(settings: Settings) -> dict[str, Any]:
    """Measure all of it; returns the report, see the module. Raises UserError."""
    bundle = Bundle.load(settings.bundle)
    precisions = chosen(bundle, settings.precisions)
    gpu = settings.backend == BACKEND_OF_GPU
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        estimators = {
            p: stack.enter_context(open_estimator(bundle, p, settings.backend, settings.threads)) for p in precisions
        }
        # First, as a target that nothing can be built for is a mistake.
        plan = plan_builds(bundle, precisions, settings.backend, settings.plan_for)
        parts = header(
            KIND, SCHEMA_VERSION, bundle, settings.backend, settings.threads,
            {p: engine_of(estimator) for p, estimator in estimators.items()}, settings.command,
        )  # fmt: skip
        clips = {p: _clip(settings, folder / p) for p in precisions}
        stack.enter_context(opencv_threads(settings.threads))
        before = read_state(gpu)
        subjects = {p: frames_of(estimators[p], clips[p]) for p in precisions}
        measured = measure_until_settled(subjects, settings.stability, CAPTURE_TO_MESH)
        throughput = _throughput(settings, bundle, estimators, clips[precisions[0]])
    cold = cold_starts(bundle, precisions, settings.backend, settings.threads, settings.repeats)
    after = read_state(gpu)
    return {
        **parts,
        "source": _source(settings, clips[precisions[0]]),
        "protocol": f"{PROTOCOL}; {ON_GPU if gpu else ON_CPU}",
        "rate_hz": settings.rate_hz,
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "block": BLOCK},
        "stability": dataclasses.asdict(settings.stability),
        "state": _state(before, after, measured),
        "precisions": {
            p: {**stage_entry(measured[p], settings.stability, settings.rate_hz), "throughput": throughput[p]}
            | {"cold": cold[p]}
            for p in precisions
        },
        "plan": plan,
    }


def stage_entry(measured: Measured, rule: Stability, rate_hz: float) -> dict[str, Any]:
    """Return what the report says of one precision's frames: stages, settling and deadlines."""
    stages: dict[str, Any] = dict.fromkeys((*STAGES, CAPTURE_TO_MESH, CAPTURE_TO_PICTURE))
    for stage in stages:
        if (samples := measured.stages_ms.get(stage)) is not None:
            stages[stage] = _figures(samples, measured.first)
    whole = measured.stages_ms[CAPTURE_TO_MESH]
    period_ms = 1000.0 / rate_hz
    missed = whole[measured.first :] > period_ms
    found = interval(whole_rounds(Latency(missed.astype(np.float64), 0)), mean)
    return {
        "settled": measured.settled_after is not None,
        "settled_after": measured.settled_after,
        "frames": len(whole),
        "first": measured.first,
        "uncounted": measured.uncounted,
        "windows": window_percentiles(whole, rule),
        "stages": stages,
        "deadline": {
            "ms": period_ms,
            "frames": len(missed),
            "missed": int(missed.sum()),
            "share": float(missed.mean()),
            "interval": found and found.to_dict(),
        },
    }


def _figures(samples_ms: np.ndarray, first: int) -> dict[str, Any]:
    latency = Latency(samples_ms[first:], 0)
    count = len(latency.samples_ms)
    summary = latency_entry(latency.to_dict(), count)
    rounds = whole_rounds(latency)
    ends = {key: interval(rounds, statistic) for key, statistic in (("p50_ms", median), ("p95_ms", p95))}
    kept = {key: value for key, value in summary.items() if key not in ("calls", "warmup")}
    return {
        **kept,
        "worst_ms": float(latency.samples_ms.max()),
        "frames": count,
        "intervals": {key: found and found.to_dict() for key, found in ends.items()},
        "samples_ms": pack_samples(samples_ms),
    }


def _clip(settings: Settings, folder: Path) -> Clip:
    if settings.source is None:
        folder.mkdir()
        return shipped_clip(folder)
    video = VideoFile(settings.source)
    return Clip(video, (0, 0, *video.size_wh) if settings.box is None else settings.box)


def _source(settings: Settings, clip: Clip) -> dict[str, Any]:
    shipped = settings.source is None
    boxes = "the person's true ones" if shipped else "the whole frame" if settings.box is None else "given"
    return {
        "name": "the shipped clip, enlarged to 720p" if shipped else clip.video.name,
        "frame_wh": list(clip.video.size_wh),
        "frames": clip.video.count,
        "people": 1,
        "boxes": boxes,
    }


def _state(before: MachineState, after: MachineState, measured: Mapping[str, Measured]) -> dict[str, Any]:
    found = doubts(before, after)
    for precision, entry in measured.items():
        samples = entry.stages_ms[CAPTURE_TO_MESH]
        if samples.max() > HELD_UP * np.median(samples):
            found.append(f"a frame of {precision} took {samples.max():.0f} ms: something held this process up")
    return {"before": before.to_dict(), "after": after.to_dict(), "doubts": found}


def _throughput(
    settings: Settings, bundle: Bundle, estimators: Mapping[str, Any], clip: Clip
) -> dict[str, dict[str, Any]]:
    frame, box = clip.next(StageClock())
    with contextlib.ExitStack() as stack:
        options = engine_threads(settings.threads)
        sessions = {p: stack.enter_context(open_session(bundle, p, settings.backend, **options)) for p in estimators}
        batch = against_batch(sessions, frame.image, box, settings.batches, settings.runs)
    people = against_people(estimators, frame.image, box, settings.people, settings.runs)
    found = {}
    for p in estimators:
        opening = partial(open_estimator, bundle, p, settings.backend, settings.threads)
        streams = against_streams(opening, frame.image, box, settings.streams, settings.stream_s)
        found[p] = {"batch": batch[p], "people": people[p], "streams": streams}
    return found


def run(settings: Settings) -> tuple[str, list[Path]]:
    """Measure, and write `stages-NAME-TIME.json`, `.md` and `.png`; returns the Markdown and the paths.

    Raises:
        UserError: a setting, bundle, source or folder that is not usable; nothing is written then.
        MissingExtraError: no matplotlib.
    """
    from benchmarks.common import write_all
    from benchmarks.stages_report import plot_stages, stages_markdown

    return write_all("stages", settings.output, partial(measure, settings), stages_markdown, plot_stages)
