from __future__ import annotations

import cv2
import numpy as np
import pytest

from metro_edge.errors import UserError
from metro_edge.preprocess import read_picture
from metro_edge.video.sinks import write_picture, write_video
from metro_edge.video.sources import VideoFile


def clip(frames: int = 6) -> list[np.ndarray]:
    return [np.full((48, 64, 3), 30 * i, np.uint8) for i in range(frames)]


def test_a_video_comes_back_in_order(tmp_path):
    assert write_video(tmp_path / "a.mp4", clip(), 12.5) == 6
    video = VideoFile(tmp_path / "a.mp4")
    assert video.size_wh == (64, 48) and video.fps == pytest.approx(12.5)
    for _ in range(2):  # it can be read again
        frames = list(video)
        assert [f.dtype for f in frames] == [np.uint8] * 6
        np.testing.assert_allclose([f.mean() for f in frames], [30 * i for i in range(6)], atol=4)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_bad_videos(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], 25)
    with pytest.raises(UserError, match="one size"):
        write_video(tmp_path / "a.mp4", [*clip(), np.zeros((10, 64, 3), np.uint8)], 25)
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "none" / "a.mp4", clip(), 25)
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda _: False)
    with pytest.raises(UserError, match="cannot encode"):
        write_video(tmp_path / "a.mp4", clip(), 25)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no video at"):
        VideoFile(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match="not a video"):
        VideoFile(tmp_path / "text.mp4")


def test_pictures(tmp_path, frame):
    write_picture(tmp_path / "a.png", frame)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), frame)
    for name in ("a.doc", "a"):
        with pytest.raises(UserError, match="no picture format"):
            write_picture(tmp_path / name, frame)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
