"""Where frames come from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2

from metro_edge.errors import UserError
from metro_edge.preprocess import Frame


class VideoFile:
    """Frames of a video file, in order; iterate over it as often as you like.

    Attributes:
        path: of the file.
        fps: frames per second.
        size_wh: width and height in px.

    Raises:
        UserError: the file is missing or not a video.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"no video at {path}")
        capture = self._open()
        self.fps = float(capture.get(cv2.CAP_PROP_FPS)) or 25.0
        self.size_wh = (
            int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        )
        capture.release()

    def __iter__(self) -> Iterator[Frame]:
        capture = self._open()
        try:
            while True:
                ok, frame = capture.read()
                if not ok:
                    return
                yield frame.astype("uint8", copy=False)
        finally:
            capture.release()

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise UserError(f"{self.path} is not a video that OpenCV can read")
        return capture
