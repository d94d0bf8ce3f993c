"""An RTSP camera over a real connection: GStreamer's server, read by the FFmpeg of OpenCV."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metro_edge.cli import main
from metro_edge.errors import UserError
from metro_edge.video import live
from metro_edge.video.live import LiveSource
from metro_edge.video.reader import Reader
from tests.metro_edge.video.clips import number_of, write_clip
from tests.metro_edge.video.test_viewer import free_port

SERVER = Path(__file__).with_name("rtsp_server.py")


@contextlib.contextmanager
def serving(port: int, clip: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the server; skips with the reasons where no Python has GStreamer and its RTSP server."""
    reasons = []
    for program in dict.fromkeys((sys.executable, "/usr/bin/python3")):
        command = [program, str(SERVER), str(port), str(clip)]
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        except OSError as error:
            reasons.append(f"{program}: {error}")
            continue
        with process:
            try:
                if process.stdout.readline() == "ready\n":
                    yield process
                    return
                reasons.append(f"{program}: {process.stderr.read().strip().splitlines()[-1]}")
            finally:
                process.kill()
    pytest.skip(f"no RTSP server (gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good): {'; '.join(reasons)}")


def test_frames_a_break_and_coming_back(tmp_path, monkeypatch):
    """The file's end is the connection's; opened again it begins anew."""
    monkeypatch.setattr(live, "FIRST_WAIT_S", 0.1)
    clip, port = write_clip(tmp_path / "a.mp4", 25), free_port()
    with serving(port, clip):
        source = LiveSource(f"rtsp://eye:secret@127.0.0.1:{port}/eye")
        assert source.name == f"rtsp://127.0.0.1:{port}/eye" and source.fps == pytest.approx(25, abs=1)
        numbers, breaks = [], []
        for frame in source:
            numbers.append(number_of(frame.image))
            breaks.append(source.reconnects)
            if source.reconnects and len(numbers) > 35:
                break
    first = [number for number, reconnects in zip(numbers, breaks, strict=True) if not reconnects]
    again = [number for number, reconnects in zip(numbers, breaks, strict=True) if reconnects]
    assert first == sorted(first) and len(first) >= 20 and first[-1] >= 22
    assert again[:5] == sorted(again[:5]) and again[0] <= 3
    assert "broke off and came back after" in source.notes[0]


def test_a_camera_that_goes_away_for_good(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "FIRST_WAIT_S", 0.1)
    clip, port = write_clip(tmp_path / "a.mp4", 250), free_port()
    with serving(port, clip) as server:
        source = LiveSource(f"rtsp://127.0.0.1:{port}/eye", give_up_s=1.0)
        with Reader(source) as frames:
            assert frames.next() is not None
            server.kill()
            with pytest.raises(UserError, match="broke off and did not come back within 1 s"):
                while True:
                    frames.next()


def test_the_command_takes_the_address(shared_bundle, tmp_path):
    clip, port = write_clip(tmp_path / "a.mp4", 100), free_port()
    with serving(port, clip):
        command = ["run", f"rtsp://127.0.0.1:{port}/eye", "--bundle", str(shared_bundle.path), "--box", "0,0,64,48"]
        assert main([*command, "--end", "1.5", "--write", "jsonl", "-o", str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "stream.jsonl").read_text().splitlines()]
    assert lines[0]["source"] == f"rtsp://127.0.0.1:{port}/eye" and lines[-1]["complete"]
    assert len(lines) > 4 and all(len(line["people"]) == 1 for line in lines[1:-1])
