from __future__ import annotations

import numpy as np
import pytest

from benchmarks import live
from benchmarks.__main__ import main
from metro_edge.demo import DemoAssets
from metro_edge.estimator import MeshEstimator
from metro_edge.video.people import FixedPeople
from metro_edge.video.sources import VideoFile
from metro_edge.video.tracking import DetectedPeople
from tests.metro_edge.video.clips import write_clip
from training.data.scenes import SceneFrame


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> VideoFile:
    return VideoFile(live.write_720p(tmp_path_factory.mktemp("clip") / "clip.mp4"))


def test_the_clip_is_720p_and_loops_with_times_that_go_on(video):
    assert video.size_wh == (1280, 720) and video.count == 60
    frames = list(live.Looped(video, 75))
    assert [frame.index for frame in frames] == list(range(75))
    np.testing.assert_allclose(np.diff([frame.time_s for frame in frames]), 1 / 24)
    assert np.abs(frames[0].image.astype(int) - frames[60].image).max() == 0


def test_a_run_gives_its_speed_and_stages(video):
    done, fps = live.run_to_json_lines(live.Looped(video, 8), "int8", FixedPeople([[200, 100, 300, 500]]), threads=1)
    assert done.frames == 8 and fps > 0.5 and "network" in done.stage_table()


def test_speed_is_a_ratio_to_one_frame_in_flight(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "ROUNDS", 1)
    monkeypatch.setattr(live, "write_720p", lambda path, copies: write_clip(path, 6))
    text = live.speed(tmp_path)
    rows = [line.split() for line in text.splitlines() if line.startswith(("fp32 ", "int8 "))]
    assert [(row[0], row[1]) for row in rows] == [("fp32", "1"), ("fp32", "2"), ("int8", "1"), ("int8", "2")]
    assert rows[0][-1] == "1.00" and float(rows[1][-1]) == pytest.approx(
        float(rows[1][2]) / float(rows[0][2]), abs=0.02
    )
    assert "int8, 2 in flight:" in text and "network" in text


def test_flight_scores_people_by_frames_in_flight(monkeypatch):
    assets = DemoAssets.load()
    frames = [
        SceneFrame(image, np.array([1]), box[None].astype(float), np.zeros((1, 14, 3)))
        for image, box in zip(assets.clip[:25], assets.boxes, strict=False)
    ]
    asked = []
    monkeypatch.setattr(live, "scenes", lambda alone: asked.append(alone) or {"clip": frames})
    rows = [line.split() for line in live.flight(None).splitlines()[2:]]
    assert asked == [True] * 3 and [row[0] for row in rows] == ["1", "2", "3"]
    assert all(0.6 < float(row[3]) < 1 and int(row[4]) <= 2 for row in rows)


def test_memory_names_frames_growth_and_drops(tmp_path):
    text = live.memory(tmp_path, frames=40)
    assert "40 of 40 frames" in text and "0 dropped" in text and "MiB at the end" in text
    assert live.resident_mib() > 50


def test_follow_scores_the_clips_person():
    assets = DemoAssets.load()
    frames = [
        SceneFrame(image, np.array([1]), box[None].astype(float), np.zeros((1, 14, 3)))
        for image, box in zip(assets.clip[:20], assets.boxes, strict=False)
    ]
    with MeshEstimator.from_bundle(precision="int8", threads=1) as estimator:
        score = live.follow(frames, lambda detector: DetectedPeople(detector, 1), estimator)
    assert score.boxes == 20 and score.switches == 0 and score.mota > 0.8


def test_mistakes(capsys):
    assert main(["live", "weather"]) == 2
    assert "unknown part weather; known: speed" in capsys.readouterr().err
    assert main(["live", "memory", "--frames", "5"]) == 2
    assert "--frames must be at least 200" in capsys.readouterr().err
