"""`metro-edge run --write window` on a real X server without a screen (Xvfb), whose picture is read back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.metro_edge.video.clips import frame_of, write_clip
from tests.test_layout import ROOT

XVFB = shutil.which("Xvfb")
pytestmark = pytest.mark.skipif(XVFB is None, reason="no X server is installed (apt install xvfb)")


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An X server of 640 x 480 px: the value of DISPLAY, and the file that holds what it shows."""
    reading, writing = os.pipe()
    server = subprocess.Popen(
        [
            str(XVFB),
            "-displayfd",
            str(writing),
            "-screen",
            "0",
            "640x480x24",
            "-fbdir",
            str(tmp_path),
            "-nolisten",
            "tcp",
        ],
        pass_fds=(writing,),
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    with os.fdopen(reading) as pipe:
        number = pipe.readline().strip()
    assert number, "the X server did not start"
    yield f":{number}", tmp_path / "Xvfb_screen0"
    server.terminate()
    server.wait(10)


def shown(file: Path) -> np.ndarray:
    """What the screen shows, (480, 640, 3) BGR, from the dump that Xvfb keeps up to date (X11/XWDFile.h)."""
    data = file.read_bytes()
    header = np.frombuffer(data[:100], ">u4")
    size, width, height, line, colours = (int(header[k]) for k in (0, 4, 5, 12, 19))
    start = size + 12 * colours
    return np.frombuffer(data[start : start + line * height], np.uint8).reshape(height, line // 4, 4)[:, :width, :3]


def test_the_window_shows_the_frames_and_closes_in_good_order(shared_bundle, screen, tmp_path):
    display, file = screen
    clip = write_clip(tmp_path / "a.mp4", 2000, size_wh=(400, 300))
    arguments = ["run", str(clip), "--bundle", str(shared_bundle.path), "--box", "0,0,400,300", "--write", "window"]
    process = subprocess.Popen(
        [sys.executable, "-m", "metro_edge", *arguments, "--draw", "labels"],
        env={**os.environ, "DISPLAY": display, "QT_LOGGING_RULES": "*=false"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        levels, deadline = set(), time.monotonic() + 60
        while len(levels) < 3 and time.monotonic() < deadline and process.poll() is None:
            picture = shown(file).astype(int)
            # The frame's plain part, a grey but for what the codec does to it.
            plain = picture[np.ptp(picture, axis=2) <= 8].mean(axis=1)
            levels |= {k for k in range(26) if (np.abs(plain - frame_of(k)[-1, -1, 0]) <= 3).sum() > 50_000}
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert len(levels) >= 3, (levels, out, err)  # several frames were seen, one after the other
    assert process.returncode == 143 and "interrupted by SIGTERM" in out, err
