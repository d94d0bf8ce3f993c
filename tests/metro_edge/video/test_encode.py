"""The times of encoded videos, as two decoders read them; more of the encoder is in test_sinks."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from metro_edge.video.encode import VideoEncoder
from metro_edge.video.sources import VideoFile
from tests.metro_edge.video.clips import frame_of, write_clip


def times_of_pyav(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def times_of_opencv(path: Path) -> list[float]:
    capture, times = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while capture.grab():
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    capture.release()
    return times


@pytest.mark.parametrize("times_s", [None, [0.0, 0.04, 0.3, 0.31, 1.2, 1.3, 1.34, 2.0]], ids=["25 fps", "varying"])
def test_each_frame_keeps_its_time(tmp_path, times_s):
    source = VideoFile(write_clip(tmp_path / "a.mp4", 60 if times_s is None else len(times_s), times_s=times_s))
    encoder, expected = VideoEncoder(tmp_path / "b.mp4", 25), []
    for frame in source:
        encoder.write(frame.image, frame.time_s)
        expected.append(frame.time_s)
    encoder.close()
    assert expected[0] == 0
    np.testing.assert_allclose(times_of_pyav(tmp_path / "b.mp4"), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(times_of_opencv(tmp_path / "b.mp4"), expected, rtol=0, atol=1e-5)


def test_a_file_that_is_not_finished_has_the_right_times_up_to_its_last_fragment(tmp_path):
    encoder = VideoEncoder(tmp_path / "a.mp4", 25)
    for number in range(200):
        encoder.write(frame_of(number), number / 25)
    (partial,) = tmp_path.iterdir()
    for times in (times_of_pyav(partial), times_of_opencv(partial)):
        assert len(times) >= 50
        np.testing.assert_allclose(times, np.arange(len(times)) / 25, rtol=0, atol=1e-5)
    encoder.discard()
