"""Where frames come from: video files, pictures in a row, and arrays; cameras and streams are in `live`."""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import cv2

from metro_edge.errors import UserError
from metro_edge.files import kind_of_path, reason
from metro_edge.preprocess import Frame, check_frame, read_picture

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".mpg", ".mpeg", ".3gp", ".wmv", ".flv", ".mjpeg",
    ".mjpg", ".ogv", ".gif",
)  # fmt: skip
DEFAULT_FPS = 25.0  # of pictures in a row, and of files that do not say
MAX_FPS = 1000.0  # containers without a rate state their clock, 90,000 a second, instead


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One frame of a source.

    Attributes:
        index: number in the source, from 0, counting also those that `stride` and `start_s` leave out.
        time_s: when it is shown, from the source's beginning (files), or when it was taken, from the opening (live).
        image: (H, W, 3) uint8 BGR, upright.
        focal_px: focal length that the frame's own metadata give, or None.
        picture: name of the picture's file, without its folder; None for frames of a video.
    """

    index: int
    time_s: float
    image: Frame
    focal_px: float | None = None
    picture: str | None = None

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class Span:
    """Which frames of a source are wanted.

    Attributes:
        start_s: frames before are left out.
        end_s: frames from here on are left out; None for none.
        stride: every how many-th frame is taken, counted from the first taken.
    """

    start_s: float = 0.0
    end_s: float | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise UserError(f"stride must be at least 1, got {self.stride}")
        for name, value in (("start", self.start_s), ("end", self.end_s)):
            if value is not None and not (_is_number(value) and 0 <= value < math.inf):
                raise UserError(f"{name} must be a number of seconds from 0 on, got {value!r}")
        if self.end_s is not None and not self.end_s > self.start_s:
            raise UserError(f"end must be later than start, got {self.end_s:g} s after {self.start_s:g} s")

    def over(self, time_s: float) -> bool:
        """Whether a source may stop at `time_s`."""
        return self.end_s is not None and time_s >= self.end_s

    def nothing(self, what: str, last_s: float) -> UserError:
        """Return the error for a source `what` without a frame in the span, whose last one is at `last_s`."""
        end = "" if self.end_s is None else f" and before {self.end_s:g} s"
        return UserError(f"{what} has no frame from {self.start_s:g} s on{end}: its last one read is at {last_s:.2f} s")


class Source(ABC):
    """Frames in order. Iterate over it; a file can be read as often as you like.

    Attributes:
        name: in words, for titles and reports.
        stem: how the names of files made from it begin.
        live: frames come when they come, and one that nobody takes is lost; False for files, which wait.
        fps: frames a second, before `stride`; of live sources what the device says.
        span: which of its frames are taken.
        count: how many frames iterating will give, as far as the file tells; None where it is not known.
        notes: what the user should know about how the last reading went, such as a file that ended early.
    """

    name: str
    stem: str
    live: bool = False
    fps: float = DEFAULT_FPS
    count: int | None = None
    span: Span = Span()
    notes: list[str]

    @abstractmethod
    def __iter__(self) -> Iterator[SourceFrame]:
        """Yield the frames; closing the iterator frees the device."""

    def interrupt(self) -> None:  # noqa: B027 (files need none)
        """Make an iterator in another thread that waits for its device end soon."""


class VideoFile(Source):
    """Frames of a video file, turned upright by its rotation, with the file's own times (also where the rate varies).

    Attributes:
        path: of the file.
        size_wh: width and height in px.

    Raises:
        UserError: the file is missing, empty or not a video.
    """

    def __init__(self, path: str | os.PathLike[str], span: Span = Span()) -> None:
        self.path = Path(path)
        self.name, self.stem, self.span = self.path.name, self.path.stem, span
        self.notes = []
        if kind_of_path(self.path) != "file":
            raise UserError(f"no video at {path}")
        try:
            str(self.path).encode()
        except UnicodeEncodeError:
            raise UserError(f"{str(path)!r}: OpenCV opens videos whose names are UTF-8; rename it") from None
        if not self.path.stat().st_size:
            raise UserError(f"{path} is empty: a video file of 0 bytes")
        capture = self._open()
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if 0 < fps <= MAX_FPS else DEFAULT_FPS
        self.size_wh = (
            int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        )
        self._frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        if self._frames > 0:
            last = self._frames if span.end_s is None else min(self._frames, round(span.end_s * self.fps))
            self.count = max(0, -(-(last - round(span.start_s * self.fps)) // span.stride))

    def __iter__(self) -> Iterator[SourceFrame]:
        self.notes = []
        capture = self._open()
        index, taken, time_s = -1, 0, -1.0
        try:
            while capture.grab():
                index += 1
                time_s = self._time(capture, index, time_s)
                if self.span.over(time_s):
                    if not taken:
                        raise self.span.nothing(self.name, time_s)
                    return
                if time_s < self.span.start_s:
                    continue
                taken += 1
                if (taken - 1) % self.span.stride:
                    continue
                ok, image = capture.retrieve()
                if not ok:
                    break
                yield SourceFrame(index, time_s, check_frame(image))
            self._say_how_it_ended(index + 1)
            if not taken:
                raise self.span.nothing(self.name, time_s)
        finally:
            capture.release()

    def _time(self, capture: cv2.VideoCapture, index: int, before_s: float) -> float:
        """Return the time of the frame just grabbed; where the file gives none that goes on, by the frame rate."""
        time_s = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000.0
        if index and time_s <= before_s:
            time_s = max(index / self.fps, before_s + 0.1 / self.fps)
        return max(time_s, 0.0)

    def _say_how_it_ended(self, frames: int) -> None:
        if not frames:
            raise UserError(f"{self.path} has no frame that can be decoded: damaged or cut short")
        # Containers count a frame or two more than decoders give; a tenth less is a file that is cut.
        if self._frames > 0 and frames < 0.9 * self._frames:
            self.notes.append(f"{self.name} ended after {frames} of {self._frames} frames: the file is cut short")

    def _open(self) -> cv2.VideoCapture:
        # FFmpeg by name: other readers of OpenCV would take `a_001.png` for the first picture of a row.
        # And by its whole path: a colon in a relative one would end the name of a protocol.
        capture = cv2.VideoCapture(os.path.abspath(self.path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            capture.release()
            if not os.access(self.path, os.R_OK):
                raise UserError(f"cannot read {self.path}: permission denied")
            raise UserError(f"{self.path} is not a video that OpenCV can read: damaged, cut short or another format")
        return capture


class Pictures(Source):
    """Picture files in a row, shown `fps` a second, upright and with the focal length of their EXIF data.

    Raises:
        UserError: no picture; at iteration one that is missing, damaged or cut short.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], fps: float = DEFAULT_FPS, span: Span = Span()) -> None:
        if not paths:
            raise UserError("no pictures were given")
        _check_fps(fps)
        self.paths = [Path(path) for path in paths]
        self.name = str(self.paths[0]) if len(paths) == 1 else f"{len(paths)} pictures"
        self.stem, self.fps, self.span, self.notes = self.paths[0].stem, fps, span, []
        self._wanted = [
            (index, path)
            for index, path in enumerate(self.paths)
            if index / fps >= span.start_s and not span.over(index / fps)
        ][:: span.stride]
        self.count = len(self._wanted)
        if not self._wanted:
            raise span.nothing(self.name, (len(self.paths) - 1) / fps)

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str], fps: float = DEFAULT_FPS, span: Span = Span()) -> Pictures:
        """Return the pictures of a folder in the order of the numbers in their names; raises UserError."""
        path = Path(folder)
        try:
            # Names that begin with a dot are what systems keep beside pictures, such as macOS's `._f0.jpg`.
            named = [file for file in path.iterdir() if not file.name.startswith(".")]
        except OSError as error:
            raise UserError(f"cannot look into folder {path}: {reason(error)}") from None
        files = [file for file in named if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file()]
        if not files:
            raise UserError(f"no pictures in folder {path}; known endings: {', '.join(PICTURE_SUFFIXES)}")
        ordered = sorted(files, key=lambda file: number_order(file.name))
        pictures = cls(ordered, fps, span)
        pictures.name = pictures.stem = path.resolve().name
        return pictures

    def __iter__(self) -> Iterator[SourceFrame]:
        from metro_edge.video.camera import exif_focal_px

        for index, path in self._wanted:
            image = read_picture(path)
            yield SourceFrame(index, index / self.fps, image, exif_focal_px(path, image.shape[:2]), path.name)


class Arrays(Source):
    """Frames (H, W, 3) uint8 BGR, or SourceFrames, from any iterable of the caller's."""

    def __init__(self, frames: Iterable[Any], fps: float = DEFAULT_FPS, span: Span = Span()) -> None:
        _check_fps(fps)
        self.frames, self.fps, self.span, self.notes = frames, fps, span, []
        self.name = self.stem = "frames"

    def __iter__(self) -> Iterator[SourceFrame]:
        taken = 0
        for index, item in enumerate(self.frames):
            frame = item if isinstance(item, SourceFrame) else SourceFrame(index, index / self.fps, check_frame(item))
            if self.span.over(frame.time_s):
                return
            if frame.time_s >= self.span.start_s:
                if taken % self.span.stride == 0:
                    yield frame
                taken += 1


def open_source(source: Any, span: Span = Span(), fps: float | None = None) -> Source:
    """Return the Source that `source` names.

    Args:
        source: a Source; a video file, a picture or a folder of pictures; the number of a camera (`0`) or its
            device file; an address (rtsp://, http://, ...); a GStreamer description (`v4l2src ! ... ! appsink`);
            a list of pictures' paths; or an iterable of frames (H, W, 3) uint8 BGR.
        span: which of its frames.
        fps: rate of pictures and frames that have no times; None is 25.

    Raises:
        UserError: something that is none of these, or that cannot be opened.
    """
    from metro_edge.video.live import LiveSource, is_live

    rate = DEFAULT_FPS if fps is None else fps
    if isinstance(source, Source):
        return source
    if is_live(source):
        return LiveSource(source, span)
    if isinstance(source, (str, os.PathLike)):
        path, kind = Path(source), kind_of_path(source)
        if kind == "folder":
            return Pictures.of_folder(path, rate, span)
        if kind is None:
            raise UserError(f"no source at {source}: no file, folder, camera number, address or GStreamer description")
        if is_picture(path):
            return Pictures([path], rate, span)
        return VideoFile(path, span)
    if isinstance(source, Sequence) and source and all(isinstance(one, (str, os.PathLike)) for one in source):
        return Pictures(source, rate, span)
    if isinstance(source, Iterable):
        return Arrays(source, rate, span)
    raise UserError(f"a source must be a path, a camera's number, an address or frames, got {type(source).__name__}")


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, by its suffix, and where that says nothing by its first bytes."""
    suffix = path.suffix.lower()
    return suffix in PICTURE_SUFFIXES or (suffix not in VIDEO_SUFFIXES and cv2.haveImageReader(os.path.abspath(path)))


def _check_fps(fps: float) -> None:
    if not (_is_number(fps) and 0 < fps <= MAX_FPS):
        raise UserError(f"fps must be a positive number up to {MAX_FPS:g}, got {fps!r}")


def number_order(name: str) -> list[Any]:
    """Return a sort key that puts frame10 after frame9: texts and numbers of the name in turn."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", name)]
