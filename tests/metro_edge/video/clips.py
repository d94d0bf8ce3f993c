"""Small real videos in many forms, and a network camera that can be cut off."""

from __future__ import annotations

import http.server
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

SIZE_WH = (64, 48)


def frame_of(number: int, size_wh: tuple[int, int] = SIZE_WH) -> np.ndarray:
    """A grey whose level tells the number, with a light upper left corner that tells the rotation."""
    frame = np.full((size_wh[1], size_wh[0], 3), 20 + 8 * (number % 26), np.uint8)
    frame[: size_wh[1] // 4, : size_wh[0] // 4] = 250
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that `frame_of` was given, below 26."""
    return round((float(frame[-8:, -8:].mean()) - 20) / 8)


def write_clip(
    path: Path,
    frames: int = 10,
    fps: int = 25,
    times_s: list[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size_wh: tuple[int, int] = SIZE_WH,
    fast_start: bool = True,
) -> Path:
    """Write numbered frames; `times_s` gives each its own time."""
    options = {"movflags": "faststart"} if fast_start and path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size_wh, pix_fmt
        stream.codec_context.time_base = Fraction(1, 90_000)
        if codec == "libx264":
            stream.options = {"crf": "10", "bf": "0"}
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(frame_of(number, size_wh), format="bgr24")
            time_s = number / fps if times_s is None else times_s[number]
            picture.pts, picture.time_base = round(time_s * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, degrees: int) -> None:
    """Write the rotation that phones write into an .mp4: into the matrix of its track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version and flags, times and numbers, reserved, layer and volume
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    one = 1 << 16
    struct.pack_into(">9i", data, at, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


class Camera:
    """A network camera: JPEG pictures, one after the other, over HTTP; `cut` breaks the connections that there are."""

    def __init__(self, fps: float = 30.0) -> None:
        self.number = 0
        self.fps = fps
        self._cut = threading.Event()
        self.refusing = False
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if camera.refusing:
                    self.send_error(503)
                    return
                camera._cut.clear()
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    while not camera._cut.wait(1.0 / camera.fps):
                        picture = cv2.imencode(".jpg", frame_of(camera.number))[1].tobytes()
                        camera.number += 1
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                        self.wfile.write(head.encode() + picture + b"\r\n")
                except OSError:
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}/camera.mjpg"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def cut(self) -> None:
        self._cut.set()

    def close(self) -> None:
        self._cut.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def camera(fps: float = 30.0) -> Iterator[Camera]:
    one = Camera(fps)
    try:
        yield one
    finally:
        one.close()
