"""A network camera over a real connection that is cut, and the thread that reads ahead."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metro_edge.errors import UserError
from metro_edge.video import live
from metro_edge.video.live import LiveSource, is_live
from metro_edge.video.reader import Reader
from metro_edge.video.sources import Arrays, VideoFile
from tests.metro_edge.video.clips import camera, frame_of, number_of, write_clip


def test_a_file_never_loses_a_frame_to_a_slow_user(tmp_path):
    video = VideoFile(write_clip(tmp_path / "a.mp4", 25))
    with Reader(video, depth=2) as frames:
        seen = []
        for frame in frames:
            time.sleep(0.005)
            seen.append(number_of(frame.image))
    assert seen == list(range(25)) and frames.dropped == 0 and frames.ended


def test_a_live_source_drops_old_frames_and_keeps_the_newest():
    with camera(fps=60) as eye:
        source = LiveSource(eye.address)
        with Reader(source) as frames:
            first = frames.next()
            time.sleep(1.0)
            second = frames.next()
            assert first is not None and second is not None
            assert second.index - first.index > 10 and second.time_s - first.time_s > 0.5
            assert frames.dropped >= second.index - first.index - 2
    assert not any(thread.name == "decode" for thread in threading.enumerate())


def test_a_stream_that_breaks_is_opened_again_with_back_off(monkeypatch):
    monkeypatch.setattr(live, "FIRST_WAIT_S", 0.1)
    with camera() as eye:
        source = LiveSource(eye.address)
        with Reader(source) as frames:
            before = frames.next()
            eye.refusing = True
            eye.cut()
            threading.Timer(0.8, lambda: setattr(eye, "refusing", False)).start()
            deadline = time.monotonic() + 15
            while not source.reconnects and time.monotonic() < deadline:
                frames.next(timeout_s=0.2)
            after = frames.next()
            assert source.reconnects == 1 and before is not None and after is not None
            assert after.time_s > before.time_s + 0.5 and after.index > before.index
            assert "broke off and came back after" in source.notes[0]


def test_a_stream_that_stays_away_is_an_error(monkeypatch):
    monkeypatch.setattr(live, "FIRST_WAIT_S", 0.05)
    with camera() as eye:
        source = LiveSource(eye.address, give_up_s=0.6)
        with Reader(source) as frames:
            assert frames.next() is not None
            eye.refusing = True
            eye.cut()
            with pytest.raises(UserError, match="broke off and did not come back within 0.6 s"):
                while True:
                    frames.next()


def test_closing_ends_the_wait_for_a_lost_stream():
    with camera() as eye:
        source = LiveSource(eye.address)
        frames = Reader(source)
        assert frames.next() is not None
        eye.refusing = True
        eye.cut()
        time.sleep(0.3)
        began = time.monotonic()
        frames.close()
        assert time.monotonic() - began < 6 and frames.next() is None


def test_what_is_live(tmp_path):
    assert is_live(0) and is_live("rtsp://eye") and is_live("v4l2src ! appsink") and is_live("/dev/null")
    assert not is_live(True) and not is_live(tmp_path) and not is_live("a.mp4") and not is_live("a" * 300)


def test_an_error_in_the_source_is_raised_where_it_is_used_after_the_frames_before():
    def broken():
        yield frame_of(0)
        raise UserError("the disk is gone")

    with Reader(Arrays(broken())) as frames:
        assert frames.next() is not None
        with pytest.raises(UserError, match="the disk is gone"):
            frames.next()
        assert frames.ended


def test_stop_wakes_up_who_waits():
    gate = threading.Event()

    def slow():
        yield frame_of(0)
        gate.wait(10)

    frames = Reader(Arrays(slow()))
    assert frames.next() is not None
    threading.Timer(0.2, frames.stop).start()
    assert frames.next() is None
    gate.set()
    frames.close()


@contextlib.contextmanager
def folder_server(folder: Path) -> Iterator[str]:
    """Serve the files of a folder over HTTP, from their beginnings alone; gives the address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_an_address_that_opens_and_never_gives_a_picture_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "FIRST_WAIT_S", 0.1)
    whole = write_clip(tmp_path / "a.mp4", 20).read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: whole.index(b"mdat") + 4])  # the index alone
    with folder_server(tmp_path) as address:
        source = LiveSource(f"{address}/a.mp4", give_up_s=1.5)
        opened, began = [], time.monotonic()
        real = source._open
        monkeypatch.setattr(source, "_open", lambda: opened.append(time.monotonic()) or real())
        with pytest.raises(UserError, match="can be opened and gave no picture within 1.5 s: it is no video"):
            list(source)
    assert 1.4 < time.monotonic() - began < 6
    assert 2 <= len(opened) <= 6  # the wait grows although each opening succeeds
    assert source.notes == [] and source.reconnects == 0


def test_a_file_at_an_address_ends_where_it_ends(tmp_path):
    write_clip(tmp_path / "a.mp4", 20)
    with folder_server(tmp_path) as address:
        source = LiveSource(f"{address}/a.mp4")
        assert [number_of(frame.image) for frame in source] == list(range(20))
        assert source.notes == [] and source.reconnects == 0
    whole = write_clip(tmp_path / "a.mp4", 100).read_bytes()
    (tmp_path / "b.mp4").write_bytes(whole[: (whole.index(b"mdat") + len(whole)) // 2])
    with folder_server(tmp_path) as address:
        source = LiveSource(f"{address}/b.mp4", give_up_s=3.0)
        frames = len(list(source))
        assert 0 < frames < 90
        assert f"ended after {frames} of 100 frames: it broke off, or is cut short" in source.notes[0]


def test_many_breaks_are_one_note(monkeypatch):
    monkeypatch.setattr(live, "FIRST_WAIT_S", 0.05)
    with camera() as eye:
        source = LiveSource(eye.address)
        for _ in source:
            if source.reconnects == 3:
                break
            eye.cut()
    (note,) = source.notes
    assert "broke off 3 times and came back after" in note and note.endswith("s at most")
