"""What the live pipeline does on this machine: speed, memory over time, identities, jitter, drawing.

Everything is measured on generated clips with known truth: the shipped one, enlarged to 720p, and the walkers of
training/data/scenes.py, which are rendered once (minutes) and kept in runs/scenes.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.mot import MotScore, clear_mot
from benchmarks.motion import scenes, unbroken
from metro_edge.body import Body
from metro_edge.demo import DemoAssets
from metro_edge.estimator import MeshEstimator
from metro_edge.metrics import acceleration_error_mm
from metro_edge.tables import text_table
from metro_edge.timing import measure
from metro_edge.video.detector import Detections
from metro_edge.video.drawing import Drawer, Style
from metro_edge.video.encode import VideoEncoder
from metro_edge.video.network import stream_threads
from metro_edge.video.people import FixedPeople, People, Person, body_box, overlap
from metro_edge.video.prominent import ProminentPerson
from metro_edge.video.recording import open_sinks, record
from metro_edge.video.smoother import BodySmoother
from metro_edge.video.sources import Arrays, Source, SourceFrame, VideoFile
from metro_edge.video.stream import FrameResult, Stream

SIZE_WH = (1280, 720)
CROWD = (1, 2, 4, 8, 16)
IN_FLIGHT, ROUNDS = (1, 2), 3
MIB = 1 << 20


class Looped(Source):
    """A file, again and again, with times that go on, until so many frames were given."""

    def __init__(self, video: VideoFile, frames: int) -> None:
        self.video, self.count, self.fps, self.notes = video, frames, video.fps, []
        self.name, self.stem = f"{video.name}, looped", video.stem

    def __iter__(self) -> Iterator[SourceFrame]:
        given = 0
        while given < (self.count or 0):
            for frame in self.video:
                yield dataclasses.replace(frame, index=given, time_s=given / self.fps)
                given += 1
                if given == self.count:
                    return


def write_720p(path: Path, copies: int = 1) -> Path:
    """Write the shipped clip, enlarged to 1280 x 720 by edges drawn out, as H.264."""
    assets = DemoAssets.load()
    encoder = VideoEncoder(path, assets.fps, keep_times=False)
    for _ in range(copies):
        for frame in assets.clip:
            large = cv2.resize(frame, (960, 720), interpolation=cv2.INTER_LINEAR)
            encoder.write(np.asarray(cv2.copyMakeBorder(large, 0, 0, 160, 160, cv2.BORDER_REPLICATE), np.uint8))
    encoder.close()
    return path


def run_to_json_lines(
    video: Source, precision: str, people: People, threads: int | None = None, in_flight: int | None = None
) -> tuple[Any, float]:
    """Return the recording of a run into JSON Lines, and its frames a second until the file is finished."""
    with tempfile.TemporaryDirectory() as folder:
        estimator = MeshEstimator.from_bundle(precision=precision, threads=threads or stream_threads())
        with Stream(video, estimator, people, BodySmoother(mesh=False), in_flight=in_flight) as stream:
            sinks = open_sinks(["jsonl"], Path(folder), stream, Style())
            began = time.perf_counter()
            done = record(stream, sinks)
            return done, done.frames / (time.perf_counter() - began)


def speed(folder: Path) -> str:
    """Frames a second of a 720p file to JSON Lines with one person who is followed, by frames in flight, in turns."""
    video = VideoFile(write_720p(folder / "clip.mp4", copies=5))
    rows, tables = [], []
    for precision in ("fp32", "int8"):
        found: dict[int, list[float]] = {count: [] for count in IN_FLIGHT}
        for _ in range(ROUNDS):
            for count in IN_FLIGHT:
                done, fps = run_to_json_lines(video, precision, ProminentPerson(), in_flight=count)
                found[count].append(fps)
        for count, rates in found.items():
            gains = np.array(rates) / found[IN_FLIGHT[0]]
            cells = [f"{np.median(rates):.1f}", f"{min(rates):.1f} to {max(rates):.1f}", f"{np.median(gains):.2f}"]
            rows.append([precision, str(count), *cells])
        tables.append(f"{precision}, {IN_FLIGHT[-1]} in flight:\n{done.stage_table()}")
    head = ("720p file to JSON Lines, one person", "frames in flight", "FPS", f"of {ROUNDS} rounds", "ratio")
    return "\n".join([text_table(head, rows), *tables])


def flight(_: Path) -> str:
    """What older boxes do to a person who is followed without a detector: walkers alone, by frames in flight."""
    rows = []
    for count in (*IN_FLIGHT, 3):
        parts, matches, missed = [], [], 0
        for frames in scenes(alone=True).values():
            estimator = MeshEstimator.from_bundle(precision="int8", threads=1)
            source = Arrays([frame.image for frame in frames])
            with Stream(source, estimator, ProminentPerson(), in_flight=count) as stream:
                results = list(stream)
            walk = []
            for number, (frame, result) in enumerate(zip(frames, results, strict=True)):
                if len(frame.identities) and not result.people:
                    missed += 1
                elif len(frame.identities):
                    walk.append((number, (result.people[0].body, frame.joints[0])))
                    matches.append(float(overlap(result.people[0].box, frame.boxes[0])[0, 0]))
            parts += [_errors(part, smooth=True) for part in unbroken(walk)]
        means = np.average([part[:3] for part in parts], axis=0, weights=[part[3] for part in parts])
        cells = (f"{means[2]:.1f}", f"{means[0]:.1f}", f"{np.mean(matches):.3f}", str(missed))
        rows.append([str(count), *cells])
    head = ("frames in flight", "MPJPE mm", "acceleration error mm/frame^2", "overlap with the true box", "not found")
    return text_table(head, rows)


def people(folder: Path) -> str:
    """Frames a second by number of people, whose boxes are given."""
    video = VideoFile(write_720p(folder / "clip.mp4"))
    rows = []
    for precision in ("fp32", "int8"):
        cells = []
        for count in CROWD:
            boxes = np.array([(40.0 + 70 * k, 150.0, 140.0, 400.0) for k in range(count)])
            _, fps = run_to_json_lines(video, precision, FixedPeople(boxes))
            cells.append(f"{fps:.1f}")
        rows.append([precision, *cells])
    return text_table(("FPS with people", *(str(count) for count in CROWD)), rows)


def memory(folder: Path, frames: int = 3000) -> str:
    """Growth of the resident memory while a 720p clip is looped into JSON Lines, NPZ and BVH."""
    video = VideoFile(write_720p(folder / "clip.mp4"))
    resident: list[tuple[int, float]] = []

    def watched(results: Iterator[FrameResult], _: int | None) -> Iterator[FrameResult]:
        for number, result in enumerate(results):
            if number % min(100, max(1, frames // 8)) == 0:
                resident.append((number, resident_mib()))
            yield result

    estimator = MeshEstimator.from_bundle(precision="int8", threads=stream_threads())
    with Stream(Looped(video, frames), estimator, ProminentPerson(), BodySmoother(mesh=False)) as stream:
        began = time.perf_counter()
        done = record(stream, open_sinks(["jsonl", "npz", "bvh"], folder, stream, Style()), watched)
        elapsed_s = time.perf_counter() - began
    warm = [value for number, value in resident if number >= min(300, frames // 4)]
    return (
        f"{done.frames} of {frames} frames in {elapsed_s:.0f} s ({done.frames / video.fps / 60:.1f} minutes of video), "
        f"{stream.dropped} dropped; resident memory {warm[0]:.1f} MiB after warming up, {warm[-1]:.1f} MiB at the end, "
        f"{max(warm):.1f} MiB at most"
    )


def resident_mib() -> float:
    """Return the process's resident memory, from Linux's /proc."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024 / MIB
    raise RuntimeError("no VmRSS in /proc/self/status")


def drawing(_: Path) -> str:
    """Time to draw two people at 1080p on one core."""
    with MeshEstimator.from_bundle(precision="int8", threads=1) as estimator:
        template, assets = estimator.bundle.template, DemoAssets.load()
        bodies = [estimator(assets.clip[k], assets.boxes[k])[0] for k in (20, 50)]
    frame = np.asarray(cv2.resize(assets.clip[0], (1920, 1080)), np.uint8)
    rows = []
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for name, places in (("apart", (-0.6, 0.6)), ("one before the other", (-0.1, 0.1))):
        found = []
        for number, (body, x) in enumerate(zip(bodies, places, strict=True), 1):
            moved = _placed(body, (x, 0.0, 3.6 + 0.5 * number))
            found.append(Person(number, moved, 0.9, body_box(moved)))
        result = FrameResult(0, 0.0, frame, tuple(found), {})
        for words, style in (
            ("mesh, boxes, labels", Style()),
            ("and skeleton, side view", Style(True, True, side=True)),
        ):
            latency = measure(partial(Drawer(template, style), result), calls=60, warmup=5)
            rows.append([f"{name}: {words}", f"{latency.p50_ms:.1f}", f"{latency.p95_ms:.1f}"])
    cv2.setNumThreads(threads)
    return text_table(("two people at 1080p, one core", "p50 ms", "p95 ms"), rows)


def _placed(body: Body, place: tuple[float, float, float]) -> Body:
    return dataclasses.replace(body, translation=np.array(place, np.float32), focal_px=1900.0, centre_px=(959.5, 539.5))


def identities(folder: Path) -> str:
    """CLEAR MOT on the scenes, with a detector that misses a tenth and is a few per cent off."""
    from metro_edge.video.tracking import DetectedPeople

    rows = []
    with MeshEstimator.from_bundle(precision="int8") as estimator:
        for every in (1, 5, 10):
            total = MotScore(0, 0, 0, 0)
            for name, frames in scenes().items():
                score = follow(frames, partial(DetectedPeople, every=every), estimator)
                total += score
                rows.append([f"{name}, detector every {every}", *_cells(score)])
            rows.append([f"all, detector every {every}", *_cells(total)])
    return text_table(("scene", "boxes", "missed", "extra", "ID switches", "MOTA"), rows)


def _cells(score: MotScore) -> list[str]:
    return [*(str(v) for v in (score.boxes, score.missed, score.extra, score.switches)), f"{score.mota:.3f}"]


def follow(frames: list[Any], people_of: Callable[[Any], People], estimator: MeshEstimator) -> MotScore:
    """Return the score of people who are followed through a scene's frames; the detector is told the truth, blurred."""
    rng, now = np.random.default_rng(0), [frames[0]]

    def detector(_: Any) -> Detections:
        boxes = now[0].boxes[rng.random(len(now[0].boxes)) > 0.1].copy()
        sizes = np.maximum(boxes[:, 2:], 1.0)
        boxes[:, :2] += rng.normal(0, 0.03, sizes.shape) * sizes
        boxes[:, 2:] *= 1 + rng.normal(0, 0.05, sizes.shape)
        scores = np.sort(rng.uniform(0.6, 0.95, len(boxes)))[::-1]
        return Detections(boxes, scores)

    followed = people_of(detector)
    found: list[tuple[list[int], Any]] = []
    for number, frame in enumerate(frames):
        now[0] = frame
        given = SourceFrame(number, number / 25.0, frame.image)
        seen = followed(given, partial(estimator.found, frame.image))
        found.append(([person.identity for person in seen], np.array([p.box for p in seen]).reshape(-1, 4)))
    return clear_mot([(frame.identities, frame.boxes) for frame in frames], found)


def smoothing(_: Path) -> str:
    """Acceleration errors and MPJPE of the scenes' people from their true boxes, before and after smoothing."""
    rows = []
    for precision in ("fp32", "int8"):
        walks: dict[tuple[str, int], list[tuple[int, tuple[Body, Any]]]] = {}
        with MeshEstimator.from_bundle(precision=precision) as estimator:
            for name, frames in scenes().items():
                for number, frame in enumerate(frames):
                    bodies = estimator.found(frame.image, frame.boxes)
                    for identity, body, truth in zip(frame.identities, bodies, frame.joints, strict=True):
                        if body is not None:
                            walks.setdefault((name, int(identity)), []).append((number, (body, truth)))
        for words, smooth in (("as it comes", False), ("smoothed", True)):
            parts = [_errors(part, smooth) for walk in walks.values() for part in unbroken(walk)]
            means = np.average([part[:3] for part in parts], axis=0, weights=[part[3] for part in parts])
            rows.append([f"{precision} {words}", *(f"{value:.1f}" for value in means)])
    return text_table(("", "joints mm/frame^2", "place mm/frame^2", "MPJPE mm"), rows)


def _errors(walk: list[tuple[int, tuple[Body, Any]]], smooth: bool) -> tuple[float, float, float, int]:
    smoother = BodySmoother(mesh=False)
    joints, places, true_joints, true_places = [], [], [], []
    for number, (body, truth) in walk:
        person = Person(1, body, 0.9, body_box(body))
        shown = (smoother([person], number / 25.0, (360, 640))[0] if smooth else person).body
        root = truth[[2, 3]].mean(axis=0)  # h36m14's hips
        joints.append(shown.joints - shown.joints[[2, 3]].mean(axis=0))
        places.append(shown.translation[None])
        true_joints.append(truth - root)
        true_places.append(root[None])
    error = np.linalg.norm(np.array(joints) - np.array(true_joints), axis=-1).mean() * 1000.0
    return (
        acceleration_error_mm(np.array(joints), np.array(true_joints)),
        acceleration_error_mm(np.array(places), np.array(true_places)),
        float(error),
        len(walk),
    )


def run_parts(parts: list[str], frames: int) -> None:
    """Measure and print each part, with the machine."""
    from metro_edge.machine import describe_machine, machine_line

    print(machine_line(describe_machine()))
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            text = memory(Path(folder), frames) if part == "memory" else globals()[part](Path(folder))
        print(f"\n{text}")
