"""Where frames go."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import cv2

from metro_edge.errors import UserError
from metro_edge.files import replacing, write_bytes
from metro_edge.preprocess import Frame, check_frame


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
    """Write frames of one size as an MPEG-4 video (.mp4), atomically; returns how many.

    Raises UserError when there is no frame, sizes differ, or the file cannot be written.
    """
    writer: cv2.VideoWriter | None = None
    size_wh = (0, 0)
    count = 0
    with replacing(path) as partial:
        try:
            for frame in frames:
                height, width = check_frame(frame).shape[:2]
                if writer is None:
                    size_wh = (width, height)
                    writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), fps, size_wh)
                    if not writer.isOpened():
                        raise UserError(
                            f"cannot write {path}: OpenCV cannot encode .mp4 video of {width} x {height} px"
                        )
                if (width, height) != size_wh:
                    raise UserError(f"frames of a video must have one size, got {size_wh} and {(width, height)}")
                writer.write(frame)
                count += 1
        finally:
            if writer is not None:
                writer.release()
        if not count:
            raise UserError(f"no frames to write to {path}")
    return count
