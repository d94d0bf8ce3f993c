from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from metro_edge.errors import UserError
from metro_edge.video.live import LiveSource, has_gstreamer, is_live
from metro_edge.video.sources import Arrays, Pictures, SourceFrame, Span, VideoFile, open_source
from tests.metro_edge.video.clips import frame_of, number_of, turn, write_clip


def numbers(source) -> list[int]:
    return [number_of(frame.image) for frame in source]


def test_a_file_gives_all_frames_in_order_with_their_times_as_often_as_wanted(tmp_path):
    video = VideoFile(write_clip(tmp_path / "a.mp4", 12, fps=20))
    assert (video.size_wh, video.fps, video.count, video.live) == ((64, 48), 20, 12, False)
    for _ in range(2):
        frames = list(video)
        assert [number_of(frame.image) for frame in frames] == [frame.index for frame in frames] == list(range(12))
        np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(12) / 20, atol=1e-3)
    assert video.notes == []


def test_a_varying_frame_rate_keeps_its_times(tmp_path):
    times = [0.0, 0.04, 0.5, 0.52, 0.9, 2.0]
    frames = list(VideoFile(write_clip(tmp_path / "a.mp4", 6, times_s=times)))
    np.testing.assert_allclose([frame.time_s for frame in frames], times, atol=2e-3)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phones_rotated_video_comes_upright(tmp_path, degrees):
    path = write_clip(tmp_path / "a.mp4", 3)
    turn(path, degrees)
    (frame, *_) = list(VideoFile(path))
    wanted = np.rot90(frame_of(0), k=-degrees // 90)
    assert frame.image.shape == wanted.shape
    assert VideoFile(path).size_wh == (wanted.shape[1], wanted.shape[0])
    assert np.abs(frame.image.astype(int) - wanted).mean() < 6


@pytest.mark.parametrize(
    "name, codec, pix_fmt",
    [
        ("ten.mp4", "libx264", "yuv420p10le"),
        ("444.mp4", "libx264", "yuv444p"),
        ("alpha.mov", "qtrle", "argb"),
        ("prores.mov", "prores_ks", "yuva444p10le"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.avi", "mjpeg", "yuvj420p"),
    ],
)
def test_ten_bit_alpha_and_other_kinds_of_video(tmp_path, name, codec, pix_fmt):
    frames = list(VideoFile(write_clip(tmp_path / name, 5, codec=codec, pix_fmt=pix_fmt)))
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 3, 4]
    assert frames[0].image.shape == (48, 64, 3) and frames[0].image.dtype == np.uint8


def test_span(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 20, fps=10)
    video = VideoFile(path, Span(start_s=0.5, end_s=1.5, stride=3))
    assert [frame.index for frame in video] == [5, 8, 11, 14] and video.count == 4
    assert [number_of(frame.image) for frame in video] == [5, 8, 11, 14]
    with pytest.raises(UserError, match="stride must be at least 1"):
        Span(stride=0)
    with pytest.raises(UserError, match="later than start"):
        Span(2.0, 1.0)
    for start in (-1.0, float("inf"), float("nan"), "1"):
        with pytest.raises(UserError, match="start must be a number of seconds from 0 on"):
            Span(start)
    with pytest.raises(UserError, match="end must be a number of seconds"):
        Span(0.0, float("inf"))


@pytest.mark.parametrize("span", [Span(100.0), Span(1.91, 1.95)])
def test_a_span_without_a_frame(tmp_path, span):
    path = write_clip(tmp_path / "a.mp4", 20, fps=10)
    with pytest.raises(UserError, match=r"a.mp4 has no frame from 1.*s on.*: its last one read is at 1.90 s"):
        list(VideoFile(path, span))
    cv2.imwrite(str(tmp_path / "a.png"), frame_of(0))
    with pytest.raises(UserError, match=r"a.png has no frame from 1"):
        Pictures([tmp_path / "a.png"], 10, span)


def test_names_of_files(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "a.mp4", 3)
    os.rename(clip, tmp_path / "12:30:00.mp4")  # relative, a colon would end the name of a protocol
    monkeypatch.chdir(tmp_path)
    assert numbers(VideoFile("12:30:00.mp4")) == [0, 1, 2]
    os.rename("12:30:00.mp4", "clip")  # without a suffix, what it holds says what it is
    assert numbers(open_source("clip")) == [0, 1, 2]
    cv2.imwrite("a.png", frame_of(5))
    os.rename("a.png", "picture")
    assert isinstance(open_source("picture"), Pictures)
    latin = os.fsdecode(b"b\xe9.mp4")
    os.rename("clip", latin)
    with pytest.raises(UserError, match="whose names are UTF-8"):
        VideoFile(latin)
    with pytest.raises(UserError, match="cannot look at"):
        open_source("a" * 300)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (tmp_path / "b.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"cannot read .*b.mp4: permission denied"):
        VideoFile("b.mp4")
    monkeypatch.setattr(Path, "iterdir", lambda self: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match="cannot look into folder"):
        open_source(tmp_path)


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="no video at"):
        VideoFile(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(UserError, match="empty: a video file of 0 bytes"):
        VideoFile(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match="not a video"):
        VideoFile(tmp_path / "text.mp4")
    whole = write_clip(tmp_path / "whole.mp4", 40, fast_start=False).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index was at the end
    with pytest.raises(UserError, match="cut short"):
        VideoFile(tmp_path / "cut.mp4")


def test_a_file_that_ends_early_says_so(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", 40, size_wh=(320, 240)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * 0.6)])  # the index is at the beginning
    video = VideoFile(tmp_path / "cut.mp4")
    frames = len(list(video))
    assert 0 < frames < 36
    assert video.notes == [f"cut.mp4 ended after {frames} of 40 frames: the file is cut short"]


def test_folders_pictures_and_arrays(tmp_path):
    for number in (9, 10, 2):
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), frame_of(number))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._frame9.png").write_text("what macOS keeps beside it")
    folder = open_source(tmp_path, fps=10)
    assert isinstance(folder, Pictures) and folder.count == 3 and folder.stem == tmp_path.name
    assert numbers(folder) == [2, 9, 10]
    assert [frame.time_s for frame in folder] == [0.0, 0.1, 0.2]
    paths = [tmp_path / "frame10.png", tmp_path / "frame2.png"]
    assert numbers(open_source(paths)) == [10, 2]
    assert numbers(open_source(paths[0])) == [10] and open_source(paths[0]).stem == "frame10"
    assert numbers(Pictures(paths, 10, Span(stride=2))) == [10]
    arrays = open_source([frame_of(k) for k in range(6)], Span(start_s=0.1, end_s=0.5, stride=2), fps=10)
    assert isinstance(arrays, Arrays) and [frame.index for frame in arrays] == [1, 3]
    assert [frame.picture for frame in folder] == ["frame2.png", "frame9.png", "frame10.png"]
    given = SourceFrame(7, 1.5, frame_of(7))
    assert list(Arrays([given])) == [given]


def test_bad_sources(tmp_path):
    with pytest.raises(UserError, match="no pictures in folder"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="no source at"):
        open_source(tmp_path / "none.mp4")
    with pytest.raises(UserError, match="a source must be"):
        open_source(None)
    with pytest.raises(UserError, match="no pictures were given"):
        Pictures([])
    with pytest.raises(UserError, match="fps must be"):
        Pictures(["a.png"], 0)
    with pytest.raises(UserError, match="a frame must be"):
        list(open_source([np.zeros((4, 4))]))


def test_what_is_live():
    for live in (0, "0", "rtsp://a/b", "HTTP://a", "v4l2src ! appsink", "/dev/null"):
        assert is_live(live), live
    for still in (True, "a.mp4", None, [0], 1.5):
        assert not is_live(still), still


def test_live_sources_that_are_not_there(monkeypatch):
    with pytest.raises(UserError, match="cannot open camera 97: no such camera"):
        open_source("97")
    with pytest.raises(UserError, match="numbered from 0"):
        LiveSource(-1)
    with pytest.raises(UserError, match=r"cannot open http://127.0.0.1:9/x: no stream answered"):
        open_source("http://user:secret@127.0.0.1:9/x")
    if has_gstreamer():
        source = open_source("videotestsrc num-buffers=5 ! videoconvert ! video/x-raw,format=BGR ! appsink")
        assert next(iter(source)).image.ndim == 3
    else:
        with pytest.raises(UserError, match="this OpenCV has no GStreamer"):
            open_source("videotestsrc ! videoconvert ! appsink")
