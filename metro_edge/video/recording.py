"""From a stream to files: what `metro-edge run` does with a video, a camera or a stream."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metro_edge.errors import UserError
from metro_edge.results import model_description
from metro_edge.tables import text_table
from metro_edge.video.bvh import BvhFiles
from metro_edge.video.drawing import Drawer, Style
from metro_edge.video.glb import GlbFile
from metro_edge.video.npz import NpzFile
from metro_edge.video.sinks import JsonLines, OverlayVideo, Sink, SinkThread, Window
from metro_edge.video.stream import FrameResult, Stream

KINDS = ("jsonl", "overlay", "npz", "mesh-npz", "glb", "bvh", "window")
DEFAULT_KINDS = ("jsonl", "overlay")
STAGES = ("wait", "detect", "track", "crop", "network", "place", "smooth", "hand over")
KEPT_TIMES = 10_000  # of each stage, the last ones: flat memory
Progress = Callable[[Iterator[FrameResult], int | None], Iterator[FrameResult]]


@dataclass
class Recording:
    """What a run did.

    Attributes:
        frames: processed.
        paths: of the files.
        signal: number of the signal that ended it, None when the source came to its end or its window was closed.
        notes: what the user should know.
        stages_ms: stage -> times of the last frames.
    """

    frames: int = 0
    paths: list[Path] = field(default_factory=list)
    signal: int | None = None
    notes: list[str] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)

    def stage_table(self) -> str:
        """Return a table of the stages' median and 95th percentile in ms; `wait` is waiting for the decoder."""
        rows = []
        for name in (*STAGES, *sorted(self.stages_ms.keys() - set(STAGES))):
            if values := self.stages_ms.get(name):
                p50, p95 = np.percentile(values, (50, 95))
                rows.append([name, f"{p50:.2f}", f"{p95:.2f}", str(len(values))])
        return text_table(("stage", "p50 ms", "p95 ms", "frames"), rows)

    def add_times(self, stages_ms: dict[str, float]) -> None:
        """Take in a frame's times."""
        for name, value in stages_ms.items():
            values = self.stages_ms.setdefault(name, [])
            values.append(value)
            if len(values) > KEPT_TIMES:
                del values[: KEPT_TIMES // 2]


def open_sinks(kinds: Sequence[str], folder: Path, stream: Stream, style: Style) -> list[Sink]:
    """Return the sinks of these kinds, files in `folder`, which exists; raises UserError and leaves nothing."""
    if unknown := set(kinds) - set(KINDS):
        raise UserError(f"unknown output {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    bundle, source = stream.estimator.bundle, stream.source
    joints, template, stem = bundle.spec.joints, bundle.template, source.stem
    fps = source.fps / source.span.stride
    if "vertices" not in bundle.spec.outputs and (needs := {"glb", "mesh-npz"} & set(kinds)):
        raise UserError(f"{', '.join(sorted(needs))}: this bundle's network gives joints alone, without meshes")
    draw = Drawer(template, style)
    about = {
        "source": source.name,
        "fps": round(fps, 6),
        "model": model_description(stream.estimator),
        "joint_set": joints.name,
        "joint_names": list(joints.names),
        "smoothed": stream.smoother is not None,
    }
    makers: dict[str, Callable[[], Sink]] = {
        "jsonl": lambda: JsonLines(folder / f"{stem}.jsonl", about),
        "overlay": lambda: OverlayVideo(folder / f"{stem}.overlay.mp4", fps, draw),
        "npz": lambda: NpzFile(folder / f"{stem}.npz", joints, None),
        "mesh-npz": lambda: NpzFile(folder / f"{stem}.mesh.npz", joints, template.faces, bundle.spec.vertex_count),
        "glb": lambda: GlbFile(folder / f"{stem}.glb", template),
        "bvh": lambda: BvhFiles(folder / f"{stem}.bvh", joints, fps),
        "window": lambda: Window(source.name, draw, stream.stop),
    }
    sinks: list[Sink] = []
    try:
        for kind in dict.fromkeys(kinds):
            sinks.append(makers[kind]())
    except BaseException:
        for sink in sinks:
            sink.discard()
        raise
    return sinks


def record(stream: Stream, sinks: Sequence[Sink], progress: Progress = lambda results, _: results) -> Recording:
    """Run a stream into sinks until it ends, or SIGINT or SIGTERM stops it; the files hold what was processed.

    Args:
        stream: opened, not read yet.
        sinks: what `open_sinks` returned.
        progress: wraps the results and their number, if known, as tqdm does.

    Raises:
        UserError: the source broke, or a file could not be written; other files hold what was processed.
    """
    done = Recording()
    with stopping(stream.stop, done), SinkThread(sinks) as writing:
        clock = stream.people.clock
        try:
            for result in progress(iter(stream), stream.source.count):
                with clock("hand over"):
                    writing.put(result)
                done.frames += 1
                done.add_times(result.stages_ms)
        finally:
            writing.complete = done.signal is None
            done.notes += stream.notes
    done.paths, done.notes = writing.paths, [*done.notes, *writing.notes]
    if stream.dropped:
        done.notes.append(f"{stream.dropped} frames of the live source were left out, to keep up with it")
    return done


@contextlib.contextmanager
def stopping(stop_reading: Callable[[], None], done: Recording) -> Iterator[None]:
    """Under `with`, the first SIGINT or SIGTERM calls `stop_reading` and is noted; a second one kills as usual.

    Outside of the main thread, where Python takes no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, _frame: Any) -> None:
        done.signal = number
        stop_reading()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
