"""Sources that do not wait: webcams, network streams, GStreamer descriptions; opened again when they break."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from metro_edge.errors import UserError
from metro_edge.preprocess import check_frame
from metro_edge.video.sources import DEFAULT_FPS, MAX_FPS, Source, SourceFrame, Span

ADDRESSES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://", "srt://", "rtp://")
OPEN_TIMEOUT_MS, READ_TIMEOUT_MS = 10_000, 5000  # FFmpeg may look at a new stream for 5 s before it is open
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
GIVE_UP_S = 60.0


class LiveSource(Source):
    """A camera (by number or device file), an address, or a GStreamer description that ends in `appsink`.

    When it breaks it is opened again: after 0.5 s, then after twice as long each time until a frame comes, up to 15 s;
    what happened is in `notes`. After `give_up_s` without a frame reading ends with an error. Times go on across a
    break. A file behind an http address that states how many frames it has ends where it ends.

    Attributes:
        reconnects: how often it was opened again and gave a frame.

    Raises:
        UserError: at the first opening, when it cannot be opened; while reading, when it stays away.
    """

    live = True

    def __init__(self, what: Any, span: Span = Span(), give_up_s: float = GIVE_UP_S) -> None:  # noqa: B008 (frozen)
        self.what, self.span, self.give_up_s = what, span, give_up_s
        self.name, self.stem = _names(what)
        self.notes, self.reconnects = [], 0
        self._lost_at: float | None = None  # when the frames ended
        self._wait_s, self._longest_s = FIRST_WAIT_S, 0.0
        self._stop = threading.Event()
        self._capture: cv2.VideoCapture | None = self._open()
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if 0 < fps <= MAX_FPS else DEFAULT_FPS

    def __iter__(self) -> Iterator[SourceFrame]:
        self._stop.clear()
        began = time.monotonic()
        capture, self._capture = self._capture or self._open(), None
        index, taken = -1, 0
        self._lost_at, self._wait_s = None, FIRST_WAIT_S
        try:
            while not self._stop.is_set():
                ok, image = capture.read()
                time_s = time.monotonic() - began
                if self.span.over(time_s):
                    return
                if not ok:
                    if index >= 0 and self._file_ended(capture, index + 1):
                        return
                    capture.release()
                    again = self._reopened(began, index < 0)
                    if again is None:
                        return
                    capture = again
                    continue
                self._came_back(index < 0)
                index += 1
                if time_s >= self.span.start_s:
                    taken += 1
                    if (taken - 1) % self.span.stride == 0:
                        yield SourceFrame(index, time_s, check_frame(image))
        finally:
            capture.release()

    def interrupt(self) -> None:
        """End reading, also while it waits to open the source again."""
        self._stop.set()

    def _file_ended(self, capture: cv2.VideoCapture, frames: int) -> bool:
        """Whether it was a file, which would begin anew; RTSP servers state a count too, of what may go on."""
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if count <= 0 or not str(self.what).lower().startswith(("http://", "https://")):
            return False
        if frames < 0.9 * count:  # as for files on the disk
            self.notes.append(f"{self.name} ended after {frames} of {count} frames: it broke off, or is cut short")
        return True

    def _reopened(self, began: float, never: bool) -> cv2.VideoCapture | None:
        """Return the source opened again, None when reading was ended; raises UserError when it stays away.

        Only a frame ends the time without one: an address may open as often as one likes and give none.
        """
        if self._lost_at is None:
            self._lost_at = began if never else time.monotonic()
        deadline = self._lost_at + self.give_up_s
        last_try = time.monotonic() >= deadline
        while not last_try and not self._stop.wait(min(self._wait_s, max(0.0, deadline - time.monotonic()))):
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            last_try = time.monotonic() >= deadline
            with contextlib.suppress(UserError):
                return self._open()
        if self._stop.is_set():
            return None
        if never:
            raise UserError(
                f"{self.name} can be opened and gave no picture within {self.give_up_s:g} s: it is no video, or a file "
                "with its index at the end, which must be downloaded"
            )
        raise UserError(
            f"{self.name} broke off and did not come back within {self.give_up_s:g} s: unplugged, or the network is "
            "down"
        )

    def _came_back(self, first: bool) -> None:
        """Take in that a frame was read; breaks are told in one note, however many there are."""
        if self._lost_at is None:
            return
        away_s, self._lost_at, self._wait_s = time.monotonic() - self._lost_at, None, FIRST_WAIT_S
        if first:
            return
        self.reconnects += 1
        self._longest_s = max(self._longest_s, away_s)
        times = "" if self.reconnects == 1 else f" {self.reconnects} times"
        longest = "" if self.reconnects == 1 else " at most"
        self.notes[:] = [f"{self.name} broke off{times} and came back after {self._longest_s:.1f} s{longest}"]

    def _open(self) -> cv2.VideoCapture:
        target, api = _target(self.what)
        try:
            if api == cv2.CAP_FFMPEG:
                timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS]
                timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS]
                capture = cv2.VideoCapture(target, api, timeouts)
            else:
                capture = cv2.VideoCapture(target, api)
            if capture.isOpened():
                return capture
            capture.release()
        except cv2.error:
            pass
        raise UserError(f"cannot open {self.name}: {_advice(self.what)}")


def is_live(source: Any) -> bool:
    """Whether `source` names a camera, an address or a GStreamer description."""
    if isinstance(source, bool):
        return False
    if isinstance(source, int):
        return True
    if not isinstance(source, (str, os.PathLike)):
        return False
    text = os.fspath(source)
    if not isinstance(text, str):
        return False
    if text.isdecimal() or text.lower().startswith(ADDRESSES) or " ! " in text:
        return True
    try:
        return Path(text).is_char_device()
    except OSError:  # who opens it as a file says why
        return False


def has_gstreamer() -> bool:
    """Whether this OpenCV was built with GStreamer; the wheels from PyPI are not, Debian's and Jetson's are."""
    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))


def _target(what: Any) -> tuple[Any, int]:
    """Return what OpenCV is given, and by which of its readers; raises UserError."""
    if isinstance(what, int):
        if what < 0:
            raise UserError(f"cameras are numbered from 0, got {what}")
        return what, cv2.CAP_ANY
    text = os.fspath(what)
    if text.isdecimal():
        return int(text), cv2.CAP_ANY
    if " ! " in text:
        if not has_gstreamer():
            raise UserError(
                "this OpenCV has no GStreamer (the wheels of opencv-python have none): use the OpenCV of your "
                "distribution or of JetPack, or give a file, a camera's number or an address"
            )
        return text, cv2.CAP_GSTREAMER
    return text, cv2.CAP_FFMPEG if text.lower().startswith(ADDRESSES) else cv2.CAP_ANY


def _names(what: Any) -> tuple[str, str]:
    text = os.fspath(what) if isinstance(what, os.PathLike) else str(what)
    if text.isdecimal():
        return f"camera {text}", f"camera{text}"
    if " ! " in text:
        return "the GStreamer source", "stream"
    if "://" in text:
        scheme, _, rest = text.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}", "stream"  # without a password
    return text, Path(text).stem


def _advice(what: Any) -> str:
    text = str(what)
    if " ! " in text:
        return "the description must be valid, begin with a source and end with appsink"
    if "://" in text:
        return f"no stream answered within {OPEN_TIMEOUT_MS / 1000:g} s; check the address and the network"
    return "no such camera, or another program uses it"
