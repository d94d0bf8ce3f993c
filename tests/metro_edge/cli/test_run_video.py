"""`metro-edge run` with videos and live sources."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from metro_edge import cli
from metro_edge.video.recording import Recording
from metro_edge.video.sources import VideoFile
from tests.metro_edge.video.clips import camera, frame_of, turn, write_clip

ROOT = Path(__file__).parents[3]
WHOLE = ("--box", "0,0,64,48")


def run(bundle, *arguments: object) -> int:
    return cli.main(["run", "--bundle", str(bundle.path), *map(str, arguments)])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_files_of_a_video(shared_bundle, tmp_path, capsys):
    clip = write_clip(tmp_path / "walk.mp4", 12)
    out = tmp_path / "deep" / "out"
    kinds = "jsonl,overlay,npz,mesh-npz,glb,bvh"
    assert run(shared_bundle, clip, *WHOLE, "--write", kinds, "--draw", "mesh,skeleton,side", "-o", out) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "walk.glb", "walk.jsonl", "walk.mesh.npz", "walk.npz", "walk.overlay.mp4", "walk.person1.bvh",
    ]  # fmt: skip
    run_line, *frames, end = lines(out / "walk.jsonl")
    assert run_line["source"] == "walk.mp4" and run_line["model"]["precision"] == "fp32" and run_line["smoothed"]
    assert len(frames) == 12 and end["complete"]
    assert len(list(VideoFile(out / "walk.overlay.mp4"))) == 12
    printed = capsys.readouterr().out
    assert "walk.mp4: 12 frames -> " in printed and "network" in printed and "p50 ms" in printed


def test_nobody_in_a_clip_is_said(shared_bundle, tmp_path, capsys):
    clip = write_clip(tmp_path / "a.mp4", 3)
    (tmp_path / "boxes.txt").write_text("9,1,1,1,60,40\n")
    kinds = "jsonl,overlay,npz,glb,bvh"
    assert run(shared_bundle, clip, "--boxes", tmp_path / "boxes.txt", "--write", kinds, "-o", tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.jsonl", "a.npz", "a.overlay.mp4"]
    printed = capsys.readouterr().out
    assert "note: none of the 1 boxes is of a frame that was read" in printed
    assert "a.glb was written" in printed and "a.person*.bvh was written" in printed


def test_a_video_of_an_unknown_ending_and_no_place_for_progress(shared_bundle, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 3)
    os.rename(clip, tmp_path / "a.m2ts")
    command = [sys.executable, "-m", "metro_edge", "run", "--bundle", str(shared_bundle.path), str(tmp_path / "a.m2ts")]
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command, *WHOLE, "--write", "jsonl", "-o", str(tmp_path / "out")]
    done = subprocess.run(shell, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0 and "a.m2ts: 3 frames" in done.stdout


def test_options_of_time_and_smoothing(shared_bundle, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 30, fps=10)
    options = (
        "--start",
        "0.5",
        "--end",
        "2",
        "--stride",
        "4",
        "--no-smoothing",
        "--write",
        "jsonl",
        "--focal-px",
        "99",
    )
    assert run(shared_bundle, clip, *WHOLE, *options, "-o", tmp_path) == 0
    run_line, *frames, _ = lines(tmp_path / "a.jsonl")
    assert [f["frame"] for f in frames] == [5, 9, 13, 17] and not run_line["smoothed"] and run_line["fps"] == 2.5
    assert frames[0]["people"][0]["focal_px"] == 99


def test_frames_in_flight_give_the_same_files(shared_bundle, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 9)
    for count in ("1", "3"):
        options = ("--in-flight", count, "--write", "jsonl", "-o", tmp_path / count)
        assert run(shared_bundle, clip, *WHOLE, *options) == 0
    assert lines(tmp_path / "1" / "a.jsonl") == lines(tmp_path / "3" / "a.jsonl")


def test_a_camera_matrix_goes_for_all_frames(shared_bundle, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 3)
    options = ("--camera-matrix", "90,90,30,20", "--write", "jsonl")
    assert run(shared_bundle, clip, *WHOLE, *options, "-o", tmp_path) == 0
    _, *frames, _ = lines(tmp_path / "a.jsonl")
    assert {(f["people"][0]["focal_px"], *f["people"][0]["centre_px"]) for f in frames} == {(90, 30, 20)}


def test_a_folder_of_pictures_a_box_file_and_a_rotated_video(shared_bundle, tmp_path):
    folder = tmp_path / "shots"
    folder.mkdir()
    for k in range(3):
        cv2.imwrite(str(folder / f"{k}.png"), frame_of(k))
    (tmp_path / "boxes.txt").write_text("1,5,1,1,60,40\n3,5,1,1,60,40\n")
    assert run(shared_bundle, folder, "--boxes", tmp_path / "boxes.txt", "--fps", "5", "-o", tmp_path / "out") == 0
    _, *frames, _ = lines(tmp_path / "out" / "shots.jsonl")
    assert [[p["identity"] for p in f["people"]] for f in frames] == [[5], [], [5]]
    assert [f["time_s"] for f in frames] == [0, 0.2, 0.4]
    # By COCO, pictures find their boxes by name.
    images = [{"id": 7, "file_name": "a/2.png"}]
    boxes = {"images": images, "annotations": [{"image_id": 7, "bbox": [0, 0, 60, 40], "track_id": 4}]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    assert (
        run(shared_bundle, folder, "--boxes", tmp_path / "boxes.json", "--write", "jsonl", "-o", tmp_path / "out") == 0
    )
    _, *frames, _ = lines(tmp_path / "out" / "shots.jsonl")
    assert [[p["identity"] for p in f["people"]] for f in frames] == [[], [], [4]]
    clip = write_clip(tmp_path / "phone.mp4", 4)
    turn(clip, 90)
    assert run(shared_bundle, clip, "--box", "0,0,48,64", "--write", "overlay", "-o", tmp_path / "out") == 0
    assert VideoFile(tmp_path / "out" / "phone.overlay.mp4").size_wh == (48, 64)


def bad_cases(tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    clip = write_clip(tmp_path / "a.mp4", 5)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mov").write_text("no video")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    return {
        "missing": (["none.mp4"], "no source at"),
        "empty": ([tmp_path / "empty.mp4"], "0 bytes"),
        "no video": ([tmp_path / "text.mov"], "not a video"),
        "folder without pictures": ([tmp_path / "folder"], "no pictures in folder"),
        "camera": (["97"], "cannot open camera 97"),
        "two": ([clip, clip], "one video, folder or live source at a time"),
        "output": ([clip, "--write", "avi"], "unknown output avi; known: jsonl, overlay"),
        "part": ([clip, "--draw", "hat"], "unknown hat; known: mesh, skeleton"),
        "boxes": ([clip, "--boxes", tmp_path / "none.txt"], "no boxes at"),
        "both boxes": ([clip, *WHOLE, "--boxes", tmp_path / "none.txt"], "exclude each other"),
        "box and detector": ([clip, *WHOLE, "--detector", "a.onnx"], "exclude each other"),
        "detector": ([clip, "--detector", tmp_path / "bad.onnx"], "bad.onnx"),
        "camera matrix": ([clip, *WHOLE, "--camera-matrix", "90,190,30,20"], "two alike positive focal lengths"),
        "stride": ([clip, "--stride", "0"], "stride must be at least 1"),
        "in flight": ([clip, "--in-flight", "17"], "1 to 16 frames may be in flight, got 17"),
        "one at a time": ([clip, "--in-flight", "2", "--affinity", "0"], "runs one frame at a time, not 2"),
        "span": ([clip, "--start", "2", "--end", "1"], "later than start"),
        "picture option": ([clip, "--side-by-side"], "--side-by-side goes with pictures"),
        "start": ([clip, "--start", "100"], "a.mp4 has no frame from 100 s on"),
        "no start": ([clip, "--start", "inf"], "start must be a number of seconds"),
        "box of nan": ([clip, "--box", "0,0,nan,1"], "is not finite"),
        "box outside": ([clip, "--box", "900,0,9,9"], "outside the 64 x 48 px frame"),
    }


def test_mistakes_are_one_line_and_leave_nothing(shared_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    cases = bad_cases(tmp_path)
    cases["window"] = ([tmp_path / "a.mp4", "--write", "jsonl,window"], "no window without a screen")
    cases["stream option"] = ([ROOT / "docs/images/overlay.png", "--stride", "2"], "--stride goes with a video")
    before = sorted(tmp_path.rglob("*"))
    for name, (arguments, message) in cases.items():
        assert run(shared_bundle, *arguments, "-o", tmp_path / "out") == 2, name
        captured = capsys.readouterr()
        assert captured.err.strip().splitlines()[-1].startswith("error: "), (name, captured.err)
        assert message in captured.err, (name, captured.err)
        left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
        assert [path for path in left if path.is_file()] == [], name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_in_good_order(shared_bundle, tmp_path, number):
    """A real process that reads a live source, and a real signal."""
    with camera(fps=60) as eye:
        command = [sys.executable, "-m", "metro_edge", "run", "--bundle", str(shared_bundle.path), eye.address, *WHOLE]
        command += ["--write", "jsonl,overlay,npz,bvh", "-o", str(tmp_path / "out"), "--threads", "1"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            partial = list((tmp_path / "out").glob(".stream.*.jsonl")) if (tmp_path / "out").exists() else []
            if partial and len(partial[0].read_text().splitlines()) > 15:
                break
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert f"interrupted by {number.name}" in out and "Traceback" not in err
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["stream.jsonl", "stream.npz", "stream.overlay.mp4", "stream.person1.bvh"]
    _, *frames, end = lines(tmp_path / "out" / "stream.jsonl")
    assert end == {"type": "end", "frames": len(frames), "complete": False} and len(frames) > 10
    assert len(list(VideoFile(tmp_path / "out" / "stream.overlay.mp4"))) == len(frames)
    with np.load(tmp_path / "out" / "stream.npz") as file:
        assert len(file["frame"]) == len(frames) and not file["complete"]


def test_a_live_source_reports_what_it_left_out(shared_bundle, tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background
    with camera(fps=200) as eye:
        threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        assert run(shared_bundle, eye.address, *WHOLE, "--write", "jsonl", "-o", tmp_path) == 130
    printed = capsys.readouterr().out
    assert "frames until then" in printed
    assert signal.getsignal(signal.SIGINT) is before


def test_stage_times_stay_few():
    done = Recording()
    for _ in range(25_000):
        done.add_times({"network": 1.0, "own": 2.0})
    assert len(done.stages_ms["network"]) <= 10_000
    table = done.stage_table().splitlines()
    assert table[2].split()[0] == "network" and table[3].split()[0] == "own"
