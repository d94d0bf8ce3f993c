"""Encoding video: H.264 by PyAV where it is installed, else by OpenCV, else MPEG-4 part 2, which is said aloud."""

from __future__ import annotations

import contextlib
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from metro_edge.errors import UserError
from metro_edge.files import reason, replacing
from metro_edge.preprocess import Frame, check_frame

H264, MPEG4 = "H.264", "MPEG-4 part 2"
TIME_BASE = Fraction(1, 90_000)  # s; MPEG's own clock
# Fragments make a file readable up to the last one when the process is killed before the end.
MP4_OPTIONS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
# B-frames would shift all times by two frames: a fragmented MP4 has no edit list that takes it back.
X264_OPTIONS = {"preset": "veryfast", "crf": "21", "g": "50", "bf": "0"}


class VideoEncoder:
    """Writes frames of one size as .mp4; the file appears at `close`, `discard` leaves nothing.

    Attributes:
        codec: `H.264`, or `MPEG-4 part 2` where no encoder of H.264 is there: browsers do not play it.
        count: frames written.

    Raises:
        UserError: the folder cannot be written, or OpenCV cannot encode at all.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float, keep_times: bool = True) -> None:
        """Open the file.

        Args:
            path: of the .mp4.
            fps: frames a second, where times are not kept or the encoder knows none.
            keep_times: give each frame its own time, so that a varying rate stays; needs PyAV.
        """
        self.path, self.fps, self.count = Path(path), fps, 0
        self.codec = ""
        self._keep_times = keep_times
        self._stack = contextlib.ExitStack()
        self._partial = self._stack.enter_context(replacing(path))
        self._size_wh: tuple[int, int] | None = None
        self._writer: Any = None
        self._stream: Any = None
        self._last_pts, self._start_s = -1, 0.0

    def write(self, frame: Frame, time_s: float | None = None) -> None:
        """Add a frame, of the size of the first; raises UserError, also for a full disk."""
        height, width = check_frame(frame).shape[:2]
        if self._size_wh is None:
            self._size_wh = (width, height)
            self._start_s = time_s or 0.0
            self._open(width, height)
        if (width, height) != self._size_wh:
            raise UserError(f"frames of a video must have one size, got {self._size_wh} and {(width, height)}")
        if self._stream is None:
            self._writer.write(frame)
        else:
            self._encode(frame, time_s)
        self.count += 1

    def close(self) -> None:
        """Finish the file; raises UserError when there is no frame, or it cannot be written."""
        if not self.count:
            self.discard()
            raise UserError(f"no frames to write to {self.path}")
        try:
            self._finish()
        except BaseException:
            self.discard()
            raise
        self._stack.close()

    def discard(self) -> None:
        """Leave nothing of the file; doing it twice, or after `close`, is fine."""
        with contextlib.suppress(Exception):
            self._finish()
        error = UserError("discarded")
        self._stack.__exit__(UserError, error, None)

    def _open(self, width: int, height: int) -> None:
        av = load_av()
        if av is not None:
            with self._named_errors(av):
                self._writer = av.open(str(self._partial), "w", format="mp4", options=MP4_OPTIONS)
                self._stream = self._writer.add_stream("libx264", rate=Fraction(self.fps).limit_denominator(1001))
                context = self._stream.codec_context
                # Chrominance is shared by 2 x 2 pixels, so that sides must be even.
                self._stream.width, self._stream.height = width + width % 2, height + height % 2
                self._stream.pix_fmt, context.time_base, context.options = "yuv420p", TIME_BASE, X264_OPTIONS
                context.thread_count = 1
            self.codec = H264
            return
        for fourcc, codec in (("avc1", H264), ("mp4v", MPEG4)):
            if fourcc == "avc1" and not encodes_h264():
                continue
            self._writer = cv2.VideoWriter(
                str(self._partial), cv2.VideoWriter.fourcc(*fourcc), self.fps, (width, height)
            )
            if self._writer.isOpened():
                self.codec = codec
                return
        raise UserError(f"cannot write {self.path}: OpenCV cannot encode .mp4 video of {width} x {height} px")

    def _encode(self, frame: Frame, time_s: float | None) -> None:
        av = load_av()
        if frame.shape[0] % 2 or frame.shape[1] % 2:
            frame = np.asarray(
                cv2.copyMakeBorder(frame, 0, frame.shape[0] % 2, 0, frame.shape[1] % 2, cv2.BORDER_REPLICATE), np.uint8
            )
        picture = av.VideoFrame.from_ndarray(frame, format="bgr24")
        shown_s = self.count / self.fps if time_s is None or not self._keep_times else time_s - self._start_s
        picture.pts = self._last_pts = max(round(shown_s / TIME_BASE), self._last_pts + 1)
        picture.time_base = TIME_BASE
        with self._named_errors(av):
            for packet in self._stream.encode(picture):
                self._writer.mux(packet)

    def _finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if self._stream is None:
            writer.release()
            return
        with self._named_errors(load_av()):
            try:
                for packet in self._stream.encode(None):
                    writer.mux(packet)
            finally:
                writer.close()

    @contextlib.contextmanager
    def _named_errors(self, av: Any) -> Any:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            words = reason(error) if isinstance(error, OSError) else str(error)
            raise UserError(f"cannot write {self.path}: {words}") from None


def load_av() -> Any:
    """Return the module `av`, PyAV (extra `video`), or None where it is not installed."""
    try:
        import av
    except ImportError:
        return None
    av.logging.set_level(av.logging.PANIC)  # what fails is raised, with its reason
    return av


def encodes_h264() -> bool:
    """Whether the OpenCV that is here can encode H.264; the wheels of PyPI cannot, without a device that does."""
    import tempfile

    # FFmpeg complains on the process's own error stream, which no log level of OpenCV's keeps quiet.
    with tempfile.TemporaryDirectory() as folder, _no_stderr():
        writer = cv2.VideoWriter(str(Path(folder) / "try.mp4"), cv2.VideoWriter.fourcc(*"avc1"), 25.0, (64, 64))
        opened = writer.isOpened()
        writer.release()
    return bool(opened)


@contextlib.contextmanager
def _no_stderr() -> Any:
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
