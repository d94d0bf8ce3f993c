"""Stages on a tiny real bundle and the shipped clip: what adds up, what is left out, what is refused."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks import cold, common, stages
from benchmarks.report import unpack_samples
from benchmarks.stability import Measured, Stability
from benchmarks.stage_frames import CAPTURE_TO_MESH, CAPTURE_TO_PICTURE, Clip, HostFrames, open_estimator, shipped_clip
from benchmarks.stages import HELD_UP, Settings, _state, stage_entry
from benchmarks.stages_report import ms, stages_markdown
from benchmarks.throughput import against_streams, check_counts
from metro_edge.errors import PredictionError, UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.timing import StageClock
from metro_edge.video.sources import VideoFile
from tests.benchmarks.test_machine_state import QUIET
from tests.test_layout import ROOT

CLIP = ROOT / "metro_edge/assets/demo/clip.mp4"
BOX = (140.0, 120.0, 45.0, 125.0)
ON_HOST = ("decode", "crop", "network", "postprocess", "smoothing")


@pytest.fixture
def result(bundle, tmp_path, capsys):
    words = ["stages", str(bundle.path), "--precision", "int8", "fp32", "--source", str(CLIP), "--box", *map(str, BOX)]
    words += ["--window", "20", "--windows", "2", "--min-frames", "40", "--max-frames", "60", "--batch", "1", "3"]
    words += ["--people", "2", "--streams", "1", "2", "--stream-seconds", "0.2", "--repeats", "1", "--rate", "1000"]
    assert cli.main([*words, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    return json.loads(next((tmp_path / "out").glob("stages-*.json")).read_text()), printed, tmp_path / "out"


def test_the_report(result, capsys):
    report, printed, folder = result
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".png"}
    assert (report["kind"], report["schema_version"]) == ("metro-edge stages", 1)
    assert report["device"]["processor"] == "CPU" and "CPUExecutionProvider" in report["device"]["engine"]
    assert list(report["precisions"]) == ["fp32", "int8"] and report["source"]["frame_wh"] == [640, 480]
    assert "--window 20 --windows 2" in report["command"] and "--within" not in report["command"]
    for entry in report["precisions"].values():
        check_stages(entry)
        # A millisecond is too short for any frame, decoding included.
        assert entry["deadline"]["share"] == 1.0 and entry["deadline"]["missed"] == entry["deadline"]["frames"]
        assert [row["batch"] for row in entry["throughput"]["batch"]] == [1, 3]
        assert [row["streams"] for row in entry["throughput"]["streams"]] == [1, 2]
        people = entry["throughput"]["people"][0]
        assert people["people_per_s"] == pytest.approx(2 * people["frames_per_s"])
        start = entry["cold"]["starts"][0]
        assert sum(start[name] for name in (cold.REST, *cold.TIMES)) == pytest.approx(start[cold.TOTAL])
        assert min(start[name] for name in (cold.REST, *cold.TIMES, "warm_ms", "host_peak_mb")) > 0
        assert start["device_mb"] is None and entry["cold"]["median"] == start
    assert report["plan"] is None
    assert "| int8 | host to device | - |" in printed and "do not exist on the CPU" in printed
    assert cli.main(["table", str(next(folder.glob("*.json")))]) == 0
    assert capsys.readouterr().out == printed.rstrip("\n") + "\n"
    picture = cv2.imread(str(next(folder.glob("*.png"))))
    assert picture.shape[1] > 800 and picture.std() > 5
    check_what_else_is_printed(report)


def check_what_else_is_printed(report) -> None:
    report["state"]["doubts"] = ["it was busy", "it was hot"]
    assert "**Not a quiet machine: it was busy; it was hot. Take these times with doubt.**" in stages_markdown(report)
    report["state"]["doubts"] = []
    assert "Not a quiet machine" not in stages_markdown(report)
    report["plan"] = {"library": "L 1", "target": "sm86", "precisions": {"fp32": {"build_s": 6.04, "plan_mb": 28.8}}}
    assert "L 1 for sm86, ahead of time\n\n| precision | s | MB |" in stages_markdown(report)
    assert "| fp32 | 6.0 | 28.8 |" in stages_markdown(report)
    assert (ms(None), ms(9.999), ms(10.04)) == ("-", "10.00", "10.0")


def check_stages(entry) -> None:
    found = entry["stages"]
    assert found["host_to_device"] is None and found["device_to_host"] is None
    assert 40 <= entry["frames"] <= 60 and entry["first"] <= entry["frames"] - 40
    assert len(entry["windows"]) == entry["frames"] // 20
    samples = {stage: unpack_samples(figures["samples_ms"]) for stage, figures in found.items() if figures is not None}
    assert all(len(values) == entry["frames"] for values in samples.values())
    parts = sum(samples[stage] for stage in ON_HOST)
    # What lies between the stages is little, and nothing is counted twice.
    assert (parts <= samples[CAPTURE_TO_MESH] + 1e-3).all()
    assert (parts > 0.3 * samples[CAPTURE_TO_MESH]).mean() > 0.5
    drawn = samples[CAPTURE_TO_MESH] + samples["overlay"]
    assert (drawn <= samples[CAPTURE_TO_PICTURE] + 1e-3).all()
    for stage, figures in found.items():
        if figures is not None:
            kept = samples[stage][entry["first"] :]
            assert figures["frames"] == len(kept) and figures["worst_ms"] == pytest.approx(kept.max(), rel=1e-6)
            assert figures["p50_ms"] == pytest.approx(np.median(kept), rel=1e-5) and figures["p99_ms"] is None


def measured(values: list[float], first: int = 0, settled: int | None = None) -> Measured:
    whole = np.array(values)
    times = {"postprocess": whole / 10, "network": whole / 2, CAPTURE_TO_MESH: whole, CAPTURE_TO_PICTURE: whole * 2}
    return Measured(times, first, settled, 3)


def test_deadlines_and_figures_are_of_the_settled_frames():
    rule = Stability(20, 2, 0.05, 40, 200)
    entry = stage_entry(measured([100.0] * 20 + [30.0] * 75 + [40.0] * 25, 20, 60), rule, 30.0)
    assert entry["settled"] and (entry["settled_after"], entry["first"], entry["frames"]) == (60, 20, 120)
    deadline = entry["deadline"]
    assert (deadline["frames"], deadline["missed"], deadline["share"]) == (100, 25, 0.25)
    assert (
        deadline["ms"] == pytest.approx(1000 / 30) and deadline["interval"]["low"] < 0.25 < deadline["interval"]["high"]
    )
    whole = entry["stages"][CAPTURE_TO_MESH]
    assert (whole["p50_ms"], whole["p90_ms"], whole["p99_ms"], whole["worst_ms"]) == (30.0, 40.0, 40.0, 40.0)
    assert len(unpack_samples(whole["samples_ms"])) == 120  # those before it settled are kept, too
    assert entry["stages"]["postprocess"]["p50_ms"] == 3.0 and entry["stages"]["crop"] is None


def test_a_frame_that_was_held_up_casts_doubt():
    assert _state(QUIET, QUIET, {"fp32": measured([10.0] * 30 + [HELD_UP * 10.0])})["doubts"] == []
    found = _state(QUIET, QUIET, {"fp32": measured([10.0] * 30 + [HELD_UP * 10.0 + 1])})["doubts"]
    assert found == ["a frame of fp32 took 201 ms: something held this process up"]


def test_a_clip_goes_on_without_its_first_frame():
    clip, clock = Clip(VideoFile(CLIP), BOX), StageClock()
    found = [clip.next(clock) for _ in range(130)]
    assert [frame.index for frame, _ in found[:3]] == [1, 2, 3]
    assert [frame.index for frame, _ in found[57:61]] == [58, 59, 1, 2]  # of 60
    assert (np.diff([frame.time_s for frame, _ in found]) > 0).all()
    assert all(box.shape == (1, 4) for _, box in found) and set(clock.take()) == {"decode"}


def test_the_shipped_clip_has_its_boxes(tmp_path):
    clip = shipped_clip(tmp_path)
    assert clip.video.size_wh == (1280, 720) and clip.boxes.shape == (60, 4)
    with MeshEstimator.from_bundle() as estimator:
        frame, box = clip.next(StageClock())
        body = estimator(frame.image, box)[0]
    # The network finds the person where the box is: the boxes fit the enlarged frames.
    inside = (body.joints_px > box[0, :2] - 20) & (body.joints_px < box[0, :2] + box[0, 2:] + 20)
    assert inside.all(axis=1).mean() > 0.8


def video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for _ in range(frames):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    return path


def test_clips_that_are_not_usable(tmp_path):
    with pytest.raises(UserError, match="fewer than two frames"):
        Clip(VideoFile(video(tmp_path / "one.avi", 1)), (0, 0, 64, 48)).next(StageClock())
    two = VideoFile(video(tmp_path / "two.avi", 2))
    clip = Clip(two, (0, 0, 64, 48))
    assert [clip.next(StageClock())[0].index for _ in range(3)] == [1, 1, 1]
    with pytest.raises(UserError, match="a box is needed"):
        Clip(two, np.zeros((0, 4)))
    with pytest.raises(UserError, match="outside"):
        Clip(two, (100, 100, 10, 10))


def test_nobody_in_the_box_is_an_error(bundle, monkeypatch):
    with MeshEstimator.from_bundle(bundle, threads=1) as estimator:
        monkeypatch.setattr(estimator, "found", lambda *_, **__: [None])
        with pytest.raises(PredictionError, match="nobody in the box"):
            HostFrames(estimator, Clip(VideoFile(CLIP), BOX))()


def test_threads_belong_to_the_cpu(bundle):
    with pytest.raises(UserError, match="--threads is for engines on the CPU"):
        open_estimator(bundle, "fp32", "tensorrt", 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runs": 19}, "too few for a 95th"),
        ({"batches": ()}, "--batch must be"),
        ({"people": (17,)}, "--people must be one or more numbers from 1 to 16"),
        ({"streams": (0,)}, "--streams must be"),
        ({"backend": "tpu"}, "unknown backend 'tpu'"),
        ({"rate_hz": 0.0}, "--rate must be a positive"),
        ({"rate_hz": float("nan")}, "--rate must be a positive"),
        ({"stream_s": -1.0}, "--stream-seconds must be positive"),
        ({"repeats": 0}, "--repeats must be at least 1"),
        ({"box": BOX}, "--box belongs to --source"),
    ],
)
def test_settings_that_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        Settings(**{"bundle": Path("x"), **change})


def test_a_precision_that_the_bundle_lacks_leaves_nothing(bundle, tmp_path, capsys):
    assert cli.main(["stages", str(bundle.path), "--precision", "fp8", "-o", str(tmp_path / "out")]) == 2
    assert "has no fp8 network" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


def test_a_plan_that_cannot_be_built_is_refused_before_anything_is_measured(bundle, tmp_path, capsys, monkeypatch):
    def measured(*_):
        raise AssertionError("measured first")

    monkeypatch.setattr(stages, "measure_until_settled", measured)
    words = ["stages", str(bundle.path), "--precision", "fp32", "--plan-for", "nonsense", "-o", str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert "nonsense" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


def test_engines_that_cannot_be_labelled_are_refused(bundle):
    def labelled(engines):
        return common.header("k", 1, bundle, "b", None, engines, "c")

    with pytest.raises(UserError, match="different engines"):
        labelled({"fp32": "a CPUExecutionProvider", "int8": "b CPUExecutionProvider"})
    with pytest.raises(UserError, match="cannot tell which processor"):
        labelled({"fp32": "an engine of somebody's"})
    assert labelled({"fp32": "onnxruntime 1 CPUExecutionProvider"})["device"]["processor"] == "CPU"


def test_cold_starts_that_fail(bundle, monkeypatch):
    with pytest.raises(UserError, match=r"a cold start failed: .*has no fp8"):
        cold.cold_start(bundle, "fp8", "onnxruntime", None)
    with pytest.raises(UserError, match="at least 1, got 0"):
        cold.cold_starts(bundle, ["fp32"], "onnxruntime", None, 0)
    monkeypatch.setattr(cold, "LIMIT_S", 0.0)
    with pytest.raises(UserError, match="took over 0 s"):
        cold.cold_start(bundle, "fp32", "onnxruntime", 1)


def test_without_a_plan_there_is_no_build(bundle):
    assert cold.plan_builds(bundle, ["fp32"], "onnxruntime", None) is None
    with pytest.raises(UserError, match="nonsense"):
        cold.plan_builds(bundle, ["fp32"], "onnxruntime", "nonsense")


@pytest.mark.slow
@pytest.mark.skipif("linux" not in sys.platform, reason="TensorRT-RTX")
def test_a_plan_is_built_ahead_of_time(bundle):
    pytest.importorskip("tensorrt_rtx")
    found = cold.plan_builds(bundle, ["fp32"], "onnxruntime", "sm86")
    assert found is not None and found["target"] == "sm86" and found["precisions"]["fp32"]["build_s"] > 0.1
    assert found["library"].startswith("tensorrt_rtx") and found["precisions"]["fp32"]["plan_mb"] > 0


def test_an_error_in_one_stream_is_the_error_of_all():
    class Failing:
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, *_):
            if self.number == 1:
                raise UserError("the second engine failed")
            return []

    numbers = iter(range(4))
    with pytest.raises(UserError, match="the second engine failed"):
        against_streams(lambda: contextlib.nullcontext(Failing(next(numbers))), None, None, (2,), 0.1)


def test_counts():
    assert check_counts("--batch", [4, 1, 4], 8) == (4, 1)
    with pytest.raises(UserError, match=r"--batch must be one or more numbers from 1 to 8, got \[9\]"):
        check_counts("--batch", [9], 8)


def test_the_command_gives_the_settings_again(tmp_path):
    given = replace(
        Settings(Path("some bundle")), precisions=("fp32",), source=tmp_path / "a.mp4", box=BOX, threads=2, rate_hz=12.5
    )  # fmt: skip
    assert given.command == (
        "python -m benchmarks stages 'some bundle' --precision fp32 --source a.mp4 --box 140 120 45 125 --threads 2 "
        "--rate 12.5"
    )
    assert stages.Settings(Path("b")).command == "python -m benchmarks stages b"
