from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from metro_edge.errors import UserError
from metro_edge.preprocess import read_picture
from metro_edge.video import encode
from metro_edge.video.encode import VideoEncoder, encodes_h264
from metro_edge.video.sinks import JsonLines, OverlayVideo, SinkThread, Window, write_picture, write_video
from metro_edge.video.sources import VideoFile
from tests.metro_edge.video.clips import frame_of, number_of


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_video_comes_back_in_order_as_h264(tmp_path):
    assert write_video(tmp_path / "a.mp4", [frame_of(k) for k in range(6)], 12.5) == 6
    video = VideoFile(tmp_path / "a.mp4")
    assert video.size_wh == (64, 48) and video.fps == pytest.approx(12.5)
    assert [number_of(frame.image) for frame in video] == list(range(6))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_keeps_a_varying_rate_and_takes_odd_sizes(tmp_path):
    encoder = VideoEncoder(tmp_path / "a.mp4", 25)
    times = [3.0, 3.04, 3.5, 5.0]
    for k, time_s in enumerate(times):
        encoder.write(frame_of(k, (65, 49)), time_s)
    encoder.close()
    frames = list(VideoFile(tmp_path / "a.mp4"))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.array(times) - 3.0, atol=2e-3)
    assert frames[0].image.shape == (50, 66, 3)


def test_without_pyav_the_video_is_mpeg4_and_says_so(tmp_path, monkeypatch, clip):
    monkeypatch.setattr(encode, "load_av", lambda: None)
    sink = OverlayVideo(tmp_path / "a.mp4", 25, lambda result: result.image)
    for result in clip[:3]:
        sink.write(result)
    sink.close()
    assert len(list(VideoFile(tmp_path / "a.mp4"))) == 3
    if encodes_h264():
        assert sink.notes == []
    else:
        assert "MPEG-4 part 2" in sink.notes[0] and "metro-edge[video]" in sink.notes[0]


def test_bad_videos(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], 25)
    with pytest.raises(UserError, match="one size"):
        write_video(tmp_path / "a.mp4", [frame_of(0), np.zeros((10, 64, 3), np.uint8)], 25)
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "none" / "a.mp4", [frame_of(0)], 25)
    monkeypatch.setattr(encode, "load_av", lambda: None)
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda _: False)
    with pytest.raises(UserError, match="cannot encode"):
        write_video(tmp_path / "a.mp4", [frame_of(0)], 25)
    assert list(tmp_path.iterdir()) == []


def in_process(code: str) -> subprocess.CompletedProcess[str]:
    """Run code that can import the project and its tests."""
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
    command = [sys.executable, "-c", start + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_killed_run_leaves_a_video_that_plays_up_to_its_last_fragment(tmp_path):
    done = in_process(f"""
        import os
        from metro_edge.video.encode import VideoEncoder
        from tests.metro_edge.video.clips import frame_of
        encoder = VideoEncoder({str(tmp_path / "a.mp4")!r}, 25)
        for k in range(600):
            encoder.write(frame_of(k), k / 25)
        os._exit(9)
    """)
    assert done.returncode == 9, done.stderr
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.") and len(list(VideoFile(left))) >= 500


def test_json_lines(tmp_path, clip):
    sink = JsonLines(tmp_path / "a.jsonl", {"source": "clip.mp4"})
    for result in clip:
        sink.write(result)
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".a.") and len(lines(partial)) == 31  # whole lines while it is written
    sink.close()
    run, *frames, end = lines(tmp_path / "a.jsonl")
    assert run == {"type": "run", "schema_version": 1, "source": "clip.mp4"}
    assert end == {"type": "end", "frames": 30, "complete": True}
    assert [f["frame"] for f in frames] == list(range(30)) and frames[7]["time_s"] == 7 / 25
    assert [[p["identity"] for p in f["people"]] for f in frames[13:16]] == [[1, 2], [1, 2], [1]]
    person, body = frames[7]["people"][1], clip[7].bodies[1]
    np.testing.assert_allclose(person["joints_m"], body.joints, atol=1e-5)
    np.testing.assert_allclose(person["joints_px"], body.joints_px, atol=1e-2)
    np.testing.assert_allclose(person["translation_m"], body.translation, atol=1e-5)
    assert person["confidence"] == 0.9 and person["focal_px"] == 200 and person["camera"]["scale"] == 0.9
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_interrupted_run_says_so_and_a_discarded_one_leaves_nothing(tmp_path, clip):
    sink = JsonLines(tmp_path / "a.jsonl", {})
    sink.write(clip[0])
    sink.close(complete=False)
    assert lines(tmp_path / "a.jsonl")[-1] == {"type": "end", "frames": 1, "complete": False}
    sink = JsonLines(tmp_path / "b.jsonl", {})
    sink.discard()
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    with pytest.raises(UserError, match="cannot write"):
        JsonLines(tmp_path / "none" / "a.jsonl", {})


def test_several_sinks_at_once_and_one_that_fails(tmp_path, clip):
    good = JsonLines(tmp_path / "good.jsonl", {})
    bad = OverlayVideo(tmp_path / "bad.mp4", 25, lambda result: result.image / 2)
    with pytest.raises(UserError, match="a frame must be"), SinkThread([bad, good]) as writing:
        for result in clip:
            writing.put(result)
    assert [p.name for p in tmp_path.iterdir()] == ["good.jsonl"] == [p.name for p in writing.paths]
    end = lines(tmp_path / "good.jsonl")[-1]
    assert end["type"] == "end" and not end["complete"] and end["frames"] >= 1

    class Broken(JsonLines):
        def close(self, complete: bool = True) -> None:
            raise RuntimeError("no")

    with pytest.raises(UserError, match=r"cannot write .*c.jsonl: no"), SinkThread([Broken(tmp_path / "c.jsonl", {})]):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["good.jsonl"]


def test_an_exception_elsewhere_still_finishes_the_files(tmp_path, clip):
    with pytest.raises(RuntimeError, match="elsewhere"), SinkThread([JsonLines(tmp_path / "a.jsonl", {})]) as writing:
        writing.put(clip[0])
        raise RuntimeError("elsewhere")
    assert lines(tmp_path / "a.jsonl")[-1] == {"type": "end", "frames": 1, "complete": False}


@pytest.mark.parametrize("error", [UserError, None])
def test_where_nothing_was_written_an_earlier_file_stays(tmp_path, error):
    """A mistake that shows with the first frame, and a signal before it."""
    (tmp_path / "a.jsonl").write_text("earlier")
    writing = SinkThread(
        [JsonLines(tmp_path / "a.jsonl", {}), OverlayVideo(tmp_path / "a.mp4", 25, lambda result: None)]
    )
    with contextlib.suppress(UserError), writing:
        writing.complete = False
        if error:
            raise error("a box outside")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"] and writing.paths == []
    assert (tmp_path / "a.jsonl").read_text() == "earlier"


def test_pictures_of_other_sizes_are_fitted_into_the_first(tmp_path, clip):
    """A folder's pictures may differ, a video's frames may not."""
    sizes = [(64, 48), (128, 96), (30, 60), (64, 48)]
    draw = iter(np.full((height, width, 3), 200, np.uint8) for width, height in sizes)
    sink = OverlayVideo(tmp_path / "a.mp4", 25, lambda result: next(draw))
    for result in clip[:4]:
        sink.write(result)
    sink.close()
    first, larger, narrow, last = (frame.image for frame in VideoFile(tmp_path / "a.mp4"))
    assert all(image.shape == (48, 64, 3) for image in (first, larger, narrow, last))
    assert abs(first.mean() - 200) < 3 and abs(larger.mean() - 200) < 3
    assert abs(narrow[:, 22:42].mean() - 200) < 6 and narrow[:, :16].mean() < 6 and narrow[:, 48:].mean() < 6
    assert sink.notes == [f"{tmp_path / 'a.mp4'}: pictures of other sizes than 64 x 48 px are scaled into it"]


def test_no_window_without_a_screen(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UserError, match="no window without a screen"):
        Window("clip", lambda result: result.image, lambda: None)


@pytest.mark.parametrize("kind", ["jsonl", "npz", "overlay", "glb"])
def test_a_full_disk(tmp_path, kind):
    """The system refuses to let a file grow, as a full disk does; one line, and nothing is left."""
    done = in_process(f"""
        import resource, signal
        import numpy as np
        from pathlib import Path
        from metro_edge.bundle import Bundle
        from metro_edge.body import Body
        from metro_edge.errors import UserError
        from metro_edge.joints import joint_set
        from metro_edge.video.glb import GlbFile
        from metro_edge.video.npz import NpzFile
        from metro_edge.video.people import Person, body_box
        from metro_edge.video.sinks import JsonLines, OverlayVideo, SinkThread
        from metro_edge.video.stream import FrameResult
        template = Bundle.load().template
        joints = template.joints("h36m14", template.vertices).astype(np.float32)
        one, noise = np.zeros(3, np.float32), np.random.default_rng(0)
        box, faces = np.zeros(4, np.float32), template.faces
        body = Body(joints, template.vertices, one, one + 4, box, 99.0, (9.0, 9.0), "h36m14", faces)
        folder = Path({str(tmp_path)!r})
        sink = {{
            "jsonl": lambda: JsonLines(folder / "a.jsonl", {{}}),
            "npz": lambda: NpzFile(folder / "a.npz", joint_set("h36m14"), template.faces, 13718),
            "overlay": lambda: OverlayVideo(folder / "a.mp4", 25, lambda result: result.image),
            "glb": lambda: GlbFile(folder / "a.glb", template),
        }}[{kind!r}]()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            with SinkThread([sink]) as writing:
                for k in range(400):
                    image = noise.integers(0, 255, (240, 320, 3), dtype=np.uint8)
                    writing.put(FrameResult(k, k / 25, image, (Person(1, body, 1.0, body_box(body)),), {{}}))
        except UserError as error:
            print("said:", error)
    """)
    assert done.stdout.startswith("said: cannot write") and "File too large" in done.stdout, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_pictures(tmp_path, frame):
    write_picture(tmp_path / "a.png", frame)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), frame)
    for name in ("a.doc", "a"):
        with pytest.raises(UserError, match="no picture format"):
            write_picture(tmp_path / name, frame)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
