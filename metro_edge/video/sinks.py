"""Where frames and results go: pictures, video, JSON Lines and a window; the thread that writes them all."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from metro_edge.errors import UserError
from metro_edge.files import replacing, write_bytes
from metro_edge.preprocess import Frame, check_frame
from metro_edge.video.encode import VideoEncoder
from metro_edge.video.people import Person
from metro_edge.video.stream import FrameResult
from metro_edge.video.writing import written

if TYPE_CHECKING:
    from typing_extensions import Self

SCHEMA_VERSION = 1
QUEUE = 4  # results that wait to be written
Draw = Callable[[FrameResult], Frame]


class Sink(ABC):
    """Takes results, in order. What it makes is complete or absent: `close` finishes it, `discard` leaves nothing.

    Attributes:
        path: of the file that it makes; None for a window.
        notes: what the user should know of it.
    """

    path: Path | None = None
    notes: list[str]

    @property
    def paths(self) -> list[Path]:
        """The files that there are after `close`."""
        return [] if self.path is None else [self.path]

    @abstractmethod
    def write(self, result: FrameResult) -> None:
        """Take a frame's results; raises UserError when they cannot be written."""

    @abstractmethod
    def close(self, complete: bool = True) -> None:
        """Finish; `complete` is False when the run was interrupted, what came until then is kept."""

    @abstractmethod
    def discard(self) -> None:
        """Leave nothing."""


class JsonLines(Sink):
    """One JSON object a line: first a `run`, then a `frame` each, last an `end`; see docs/live.md."""

    def __init__(self, path: str | os.PathLike[str], about: dict[str, Any]) -> None:
        """Open the file; `about` says what made it, and comes into the first line. Raises UserError."""
        self.path, self.notes, self._frames = Path(path), [], 0
        self._stack = contextlib.ExitStack()
        partial = self._stack.enter_context(replacing(path))
        # Written line by line: whoever follows the file sees each frame, and a killed run leaves whole lines.
        self._file = self._stack.enter_context(partial.open("w", encoding="utf-8", buffering=1))
        self._line({"type": "run", "schema_version": SCHEMA_VERSION, **about})

    def write(self, result: FrameResult) -> None:
        """Add the frame's line."""
        self._frames += 1
        people = [person_values(person) for person in result.people]
        self._line({"type": "frame", "frame": result.index, "time_s": round(result.time_s, 6), "people": people})

    def close(self, complete: bool = True) -> None:
        """Add the last line and put the file in its place."""
        try:
            self._line({"type": "end", "frames": self._frames, "complete": complete})
            with written(self.path):
                self._stack.close()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Leave nothing of the file."""
        with contextlib.suppress(OSError):
            self._stack.__exit__(UserError, UserError("discarded"), None)

    def _line(self, values: dict[str, Any]) -> None:
        with written(self.path):
            self._file.write(json.dumps(values, allow_nan=False, separators=(",", ":")) + "\n")


class OverlayVideo(Sink):
    """The frames with their people drawn over them, as video."""

    def __init__(self, path: str | os.PathLike[str], fps: float, draw: Draw) -> None:
        """Open the file; `draw` makes the picture of a result. Raises UserError."""
        self.path, self.notes, self._draw = Path(path), [], draw
        self._encoder = VideoEncoder(path, fps)
        self._hw: tuple[int, int] | None = None

    def write(self, result: FrameResult) -> None:
        """Draw and encode the frame."""
        self._encoder.write(self._fitted(self._draw(result)), result.time_s)
        if self._encoder.count == 1 and self._encoder.codec != "H.264":
            self.notes.append(
                f"{self.path} is {self._encoder.codec}, which browsers do not play: this OpenCV has no H.264 encoder; "
                "pip install 'metro-edge[video]'"
            )

    def _fitted(self, picture: Frame) -> Frame:
        """Return the picture, scaled between black borders if it has another size than the first: videos have one."""
        if self._hw is None:
            self._hw = (picture.shape[0], picture.shape[1])
        (height, width), (h, w) = self._hw, picture.shape[:2]
        if (height, width) == (h, w):
            return picture
        note = f"{self.path}: pictures of other sizes than {width} x {height} px are scaled into it"
        if note not in self.notes:
            self.notes.append(note)
        gain = min(height / h, width / w)
        size = (max(1, min(width, round(w * gain))), max(1, min(height, round(h * gain))))
        canvas = np.zeros((height, width, 3), np.uint8)
        top, left = (height - size[1]) // 2, (width - size[0]) // 2
        canvas[top : top + size[1], left : left + size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return canvas

    def close(self, complete: bool = True) -> None:
        """Put the file in its place."""
        self._encoder.close()

    def discard(self) -> None:
        """Leave nothing of the file."""
        self._encoder.discard()


class Window(Sink):
    """A window on the screen; `q` or Escape, or closing it, calls `stop`."""

    def __init__(self, title: str, draw: Draw, stop: Callable[[], None]) -> None:
        """Check that there is a screen; raises UserError where there is none."""
        self.notes, self._title, self._draw, self._stop = [], f"metro-edge: {title}", draw, stop
        self._shown = False
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise UserError("no window without a screen (DISPLAY is not set): write files, or use `metro-edge view`")
        if not has_windows():
            raise UserError("this OpenCV has no windows (a headless build): write files, or use `metro-edge view`")

    def write(self, result: FrameResult) -> None:
        """Show the frame."""
        cv2.imshow(self._title, self._draw(result))
        key = cv2.waitKey(1) & 0xFF
        closed = self._shown and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1
        self._shown = True
        if key in (ord("q"), 27) or closed:
            self._stop()

    def close(self, complete: bool = True) -> None:
        """Close the window."""
        if self._shown:
            cv2.destroyAllWindows()

    def discard(self) -> None:
        """Close the window."""
        self.close()


class SinkThread:
    """Writes results to sinks in a thread of its own, in order; `put` waits while too many wait.

        with SinkThread(sinks) as writing:
            for result in stream:
                writing.put(result)

    At the end of the block all files are finished, also after an exception or an interruption: they hold what was
    written until then. Where that is nothing they are discarded, so that a mistake leaves an earlier run's files alone.
    A sink that fails is discarded, and its error raised by the next `put`, or at the end.

    Attributes:
        complete: set it to False before the end of the block when the source was not read to its end.
        paths: of the files, once finished.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks, self.complete = list(sinks), True
        self.paths: list[Path] = []
        self._broken: list[Sink] = []
        self._taken = 0
        self._error: UserError | None = None
        self._waiting: queue.Queue[FrameResult | None] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._write, name="write", daemon=True)
        self._thread.start()

    def put(self, result: FrameResult) -> None:
        """Hand over a result; raises UserError when a sink has failed."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self._waiting.put(result)
        self._taken += 1

    @property
    def notes(self) -> list[str]:
        """What the user should know of the files."""
        return [note for sink in self.sinks for note in sink.notes]

    def _write(self) -> None:
        while (result := self._waiting.get()) is not None:
            for sink in self.sinks:
                if sink not in self._broken:
                    self._guarded(sink, lambda sink=sink, result=result: sink.write(result))  # type: ignore[misc]

    def _guarded(self, sink: Sink, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self._broken.append(sink)
            wrong = error if isinstance(error, UserError) else UserError(f"cannot write {sink.path}: {error}")
            self._error = self._error or wrong
            sink.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        complete = self.complete and kind is None
        for sink in self.sinks:
            if sink in self._broken:
                continue
            if not (complete or self._taken):
                sink.discard()
                continue
            self._guarded(sink, lambda sink=sink: sink.close(complete))  # type: ignore[misc]
            if sink not in self._broken:
                self.paths += sink.paths
        if kind is None and self._error is not None:
            raise self._error


def person_values(person: Person) -> dict[str, Any]:
    """Return a person as JSON values: a line's entry of `people`."""
    body = person.body
    scale, tx, ty = (round(float(value), 6) for value in body.camera)
    return {
        "identity": person.identity,
        "confidence": round(person.confidence, 4),
        "box_px": np.round(person.box, 2).tolist(),
        "translation_m": np.round(body.translation.astype(np.float64), 5).tolist(),
        "joints_m": np.round(body.joints.astype(np.float64), 5).tolist(),
        "joints_px": np.round(body.joints_px.astype(np.float64), 2).tolist(),
        "camera": {"scale": scale, "tx": tx, "ty": ty},
        "focal_px": round(float(body.focal_px), 3),
        "centre_px": [round(float(value), 3) for value in body.centre_px],
    }


def has_windows() -> bool:
    """Whether this OpenCV was built with windows."""
    lines = [line.split(":")[1].split()[0] for line in cv2.getBuildInformation().splitlines() if "GUI:" in line]
    return bool(lines) and lines[0] != "NONE"


def write_picture(path: str | os.PathLike[str], frame: Frame) -> None:
    """Write a frame as the format of the path's suffix, atomically; raises UserError."""
    check_frame(frame)
    try:
        ok, data = cv2.imencode(Path(path).suffix or ".", frame)
    except cv2.error:
        ok = False
    if not ok:
        raise UserError(f"cannot write {path}: OpenCV knows no picture format {Path(path).suffix!r}")
    write_bytes(path, data.tobytes())


def write_video(path: str | os.PathLike[str], frames: Iterable[Frame], fps: float) -> int:
    """Write frames of one size as video (.mp4; H.264 where it can be), atomically; returns how many.

    Raises UserError when there is no frame, sizes differ, or the file cannot be written.
    """
    encoder = VideoEncoder(path, fps, keep_times=False)
    try:
        for frame in frames:
            encoder.write(frame)
    except BaseException:
        encoder.discard()
        raise
    encoder.close()
    return encoder.count
