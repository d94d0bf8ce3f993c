"""Decoding in a thread of its own, so that the next frames are ready while the network runs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from metro_edge.video.sources import Source, SourceFrame

if TYPE_CHECKING:
    from typing_extensions import Self

QUEUE = 4  # decoded frames that wait; 720p takes 2.8 MB a frame


class Reader:
    """Reads a source ahead of its user. A file waits for the user; a live source replaces what was not taken.

        with Reader(source) as frames:
            for frame in frames:
                ...

    Attributes:
        dropped: frames of a live source that were replaced by newer ones; always 0 for files.
    """

    def __init__(self, source: Source, depth: int = QUEUE) -> None:
        self.source, self.dropped = source, 0
        self._depth = 1 if source.live else depth
        self._waiting: deque[SourceFrame] = deque()
        self._changed = threading.Condition()
        self._ended = self._stopping = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="decode", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[SourceFrame]:
        while (frame := self.next()) is not None:
            yield frame

    def next(self, timeout_s: float | None = None) -> SourceFrame | None:
        """Return the next frame, None at the end or after `timeout_s`; raises what reading raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._stopping, timeout_s)
            if self._waiting and not self._stopping:
                frame = self._waiting.popleft()
                self._changed.notify_all()
                return frame
            if self._error is not None and not self._stopping:
                error, self._error = self._error, None
                raise error
            return None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        with self._changed:
            return self._stopping or (self._ended and not self._waiting and self._error is None)

    def stop(self) -> None:
        """End reading and wake up who waits; may be called from any thread and from a signal's handler's thread."""
        self.source.interrupt()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop and wait until the thread has freed the source; doing it twice is fine."""
        self.stop()
        self._thread.join(timeout=10.0)  # a stream that hangs is given up by its own time limit

    def _read(self) -> None:
        frames = iter(self.source)
        try:
            for frame in frames:
                if not self._put(frame):
                    break
        except BaseException as error:  # handed to the user's thread, which raises it
            self._error = error
        finally:
            close = getattr(frames, "close", None)
            if close is not None:
                close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, frame: SourceFrame) -> bool:
        with self._changed:
            if self.source.live:
                while len(self._waiting) >= self._depth:
                    self._waiting.popleft()
                    self.dropped += 1
            else:
                self._changed.wait_for(lambda: len(self._waiting) < self._depth or self._stopping)
            if self._stopping:
                return False
            self._waiting.append(frame)
            self._changed.notify_all()
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
