"""A stream shown at its own speed: what `metro-edge view` does."""

from __future__ import annotations

import time
from collections.abc import Callable

from metro_edge.video.recording import Recording, stopping
from metro_edge.video.stream import FrameResult, Stream
from metro_edge.video.viewer import Viewer

MOST_BEHIND_S = 0.5  # a file that the machine cannot keep up with is shown slower, not in leaps


def show(stream: Stream, viewer: Viewer, loop: bool = False, keep_open: bool = True) -> int | None:
    """Show a stream's results until it ends or SIGINT or SIGTERM comes; returns the signal's number, or None.

    Files are shown at their own speed, or slower. Frames of a file are all shown; live ones come as they come.

    Args:
        stream: opened, not read yet.
        viewer: the page.
        loop: begin a file again at its end.
        keep_open: keep the page at the end, until a signal comes.
    """
    done = Recording()
    viewer.stop = lambda: done.signal is not None
    now = stream
    with stopping(lambda: now.stop(), done):
        while True:
            pace = Pace() if not stream.source.live else None
            for result in now:
                if pace is not None:
                    pace.wait(result, viewer.stop)
                viewer.show(result)
            if done.signal is not None or not loop or stream.source.live or not now.frames:
                break
            now = now.again()
        while keep_open and done.signal is None:
            time.sleep(0.05)
    return done.signal


class Pace:
    """Waits until it is a frame's time."""

    def __init__(self) -> None:
        self._began_s: float | None = None

    def wait(self, result: FrameResult, stop: Callable[[], bool]) -> None:
        """Sleep until the result is due; a frame that is late moves the frames after it."""
        now = time.monotonic()
        if self._began_s is None:
            self._began_s = now - result.time_s
        due = self._began_s + result.time_s
        if now - due > MOST_BEHIND_S:
            self._began_s = now - result.time_s
        while (left := due - time.monotonic()) > 0 and not stop():
            time.sleep(min(left, 0.05))
