"""Stages on a GPU: on the stand-in the times mean nothing, that each part is told apart does."""

from __future__ import annotations

import contextlib
import json

import pytest

from benchmarks import cold, stages
from benchmarks.stability import Stability
from benchmarks.stage_frames import ON_DEVICE, Clip, DeviceFrames
from metro_edge.bundle import Bundle
from metro_edge.cuda.lane import MARKS
from metro_edge.video.sources import VideoFile
from tests.metro_edge.cuda.conftest import device, session_device  # noqa: F401 - fixtures
from tests.metro_edge.cuda.session import opened
from tests.test_layout import ROOT

pytestmark = pytest.mark.gpu
CLIP = ROOT / "metro_edge/assets/demo/clip.mp4"
BOX = (124.0, 96.0, 90.0, 250.0)


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.load(None)


def test_a_frames_parts_are_told_apart_by_events(device, shipped, tmp_path, monkeypatch):  # noqa: F811
    with opened(device, shipped, tmp_path, monkeypatch) as (estimator, trt):
        frames = DeviceFrames(estimator, Clip(VideoFile(CLIP), BOX))
        for number in range(4):
            taken = frames()
            assert set(taken) >= {*ON_DEVICE, "decode", "smoothing", "overlay", "capture_to_mesh", "capture_to_picture"}
            assert all(taken[part] >= 0 for part in ON_DEVICE) and sum(taken[part] for part in ON_DEVICE) > 0
            assert taken["decode"] < taken["capture_to_mesh"] < taken["capture_to_picture"]
            assert sum(trt.runs) == 2 * (number + 1)  # once as users run it, once to tell its parts apart
        assert set(ON_DEVICE) == set(MARKS)
        # The first of the two runs has a graph, the second one never.
        assert any(lane.captured == (1,) for lane in estimator.lanes)
        assert all(lane.mark is None for lane in estimator.lanes)


def test_marks_are_gone_when_a_frame_fails(device, shipped, tmp_path, monkeypatch):  # noqa: F811
    with opened(device, shipped, tmp_path, monkeypatch) as (estimator, _):
        frames = DeviceFrames(estimator, Clip(VideoFile(CLIP), BOX))
        monkeypatch.setattr(estimator, "infer_async", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            frames._on_device(None, None)
        assert all(lane.mark is None for lane in estimator.lanes)


def test_the_whole_report(device, shipped, tmp_path, monkeypatch):  # noqa: F811
    """All but the cold start and the plan, which need TensorRT itself in another process."""
    with opened(device, shipped, tmp_path, monkeypatch) as (estimator, _):
        monkeypatch.setattr(stages, "open_estimator", lambda *_: estimator)
        monkeypatch.setattr(stages, "open_session", lambda *_: contextlib.nullcontext())
        monkeypatch.setattr(stages, "against_batch", lambda *_: {"fp32": []})
        monkeypatch.setattr(stages, "against_streams", lambda *_: [])
        monkeypatch.setattr(stages, "plan_builds", lambda *_: None)
        starts = {"fp32": {"starts": [dict.fromkeys(cold.FIGURES, 1.0)], "median": dict.fromkeys(cold.FIGURES, 1.0)}}
        monkeypatch.setattr(stages, "cold_starts", lambda *_: starts)
        settings = stages.Settings(
            shipped.path, ("fp32",), CLIP, BOX, "tensorrt", people=(1,), output=tmp_path,
            stability=Stability(20, 2, 0.5, 40, 40),
        )  # fmt: skip
        markdown, paths = stages.run(settings)
    report = json.loads(paths[0].read_text())
    assert report["device"]["processor"] == "GPU" and "CUDA events" in report["protocol"]
    entry = report["precisions"]["fp32"]
    assert all(figures is not None and figures["frames"] for figures in entry["stages"].values())
    assert "host to device | 0" in markdown and "on GPU:" in markdown
