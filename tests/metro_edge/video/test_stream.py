"""The shipped network and clip, from a source to typed results."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import metro_edge
from metro_edge.demo import DemoAssets
from metro_edge.errors import PredictionError, UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.metrics import acceleration_error_mm
from metro_edge.timing import StageClock
from metro_edge.video.network import stream_threads
from metro_edge.video.people import People, Person, body_box, inside, overlap, share_in_frame
from metro_edge.video.smoother import BodySmoother
from metro_edge.video.sources import SourceFrame
from tests.metro_edge.video.clips import write_clip

FAST = {"precision": "int8", "threads": 1}


@pytest.fixture(scope="module")
def assets() -> DemoAssets:
    return DemoAssets.load()


@pytest.fixture(scope="module")
def followed(assets) -> list[metro_edge.video.stream.FrameResult]:
    """The default's results over: 30 frames of the clip, 25 of a meadow without anyone, 30 of the clip mirrored."""
    empty = assets.clip[0].copy()  # the person stands in the left half
    empty[:, :320] = empty[:, 320:]
    mirrored = [np.ascontiguousarray(frame[:, ::-1]) for frame in assets.clip[30:]]
    with metro_edge.stream([*assets.clip[:30], *[empty] * 25, *mirrored], fps=24, **FAST) as stream:
        return list(stream)


def test_the_default_closes_in_loses_and_finds_the_person_again(assets, followed):
    there = [bool(frame.people) for frame in followed]
    assert sum(there[:30]) >= 29 and sum(there[36:55]) == 0 and sum(there[57:]) >= 26
    overlaps = [
        overlap(f.people[0].box, box)[0, 0] for f, box in zip(followed[:30], assets.boxes, strict=False) if f.people
    ]
    assert np.mean(overlaps[2:]) > 0.7 and min(overlaps[2:]) > 0.4
    mirrored = assets.boxes[30:].copy()
    mirrored[:, 0] = 640 - mirrored[:, 0] - mirrored[:, 2]
    again = [overlap(f.people[0].box, box)[0, 0] for f, box in zip(followed[55:], mirrored, strict=True) if f.people]
    assert np.mean(again[2:]) > 0.6
    first, second = ({i for f in part for i in f.identities} for part in (followed[:30], followed[55:]))
    assert first == {1} and second == {2}  # away for over a second, and elsewhere: someone new


def test_results_are_typed_and_timed(followed):
    frame = followed[10]
    (person,) = frame.people
    assert frame.bodies == [person.body] and frame.identities == [1] and frame.index == 10
    assert frame.time_s == pytest.approx(10 / 24) and frame.image.shape == (480, 640, 3) and frame.dropped == 0
    assert 0 < person.confidence <= 1 and person.body.has_mesh
    assert {"wait", "crop", "network", "place", "smooth"} <= frame.stages_ms.keys()
    assert all(value >= 0 for value in frame.stages_ms.values())
    up = frame.ground[1, :3]
    assert up @ (0, -1, 0) > 0.8


def test_options_reach_the_bodies(tmp_path, assets):
    path = tmp_path / "boxes.txt"
    rows = [
        f"{n + 1},7," + ",".join(str(float(v) + (k < 2)) for k, v in enumerate(box))
        for n, box in enumerate(assets.boxes)
    ]
    path.write_text("\n".join(rows))
    matrix = [[700, 0, 300], [0, 700, 200], [0, 0, 1]]
    with metro_edge.stream(
        assets.clip[:12], boxes=path, camera_matrix=matrix, smooth=False, start_s=0.08, end_s=0.4, stride=2, **FAST
    ) as stream:
        frames = list(stream)
    assert [frame.index for frame in frames] == [2, 4, 6, 8] and all(frame.identities == [7] for frame in frames)
    body = frames[0].bodies[0]
    assert body.focal_px == 700 and body.centre_px == (300, 200)
    with MeshEstimator.from_bundle(**FAST) as estimator:
        (alone,) = estimator(assets.clip[2], assets.boxes[2], camera_matrix=matrix)
    np.testing.assert_allclose(body.joints, alone.joints, atol=1e-4)
    np.testing.assert_allclose(body.translation, alone.translation, atol=1e-3)


def test_several_people_share_one_camera_frame(assets):
    beside = np.concatenate([assets.clip[40], assets.clip[40]], axis=1)
    second = assets.boxes[40] + (640, 0, 0, 0)
    with metro_edge.stream([beside], boxes=[assets.boxes[40], second], focal_px=800, **FAST) as stream:
        (frame,) = stream
    one, two = frame.bodies
    np.testing.assert_allclose(one.joints, two.joints, atol=1e-5)  # the same pixels, in two places
    depth = one.translation[2]
    np.testing.assert_allclose(two.translation - one.translation, (640 * depth / 800, 0, 0), atol=0.02 * depth)


def test_a_stream_ends_when_it_is_stopped_and_runs_once(shared_bundle, tmp_path):
    path = write_clip(tmp_path / "a.mp4", 200)
    stream = metro_edge.stream(path, shared_bundle, boxes=[[0, 0, 64, 48]])
    seen = 0
    for _ in stream:
        seen += 1
        if seen == 5:
            threading.Thread(target=stream.stop).start()
    assert 5 <= seen < 200 and stream.frames == seen
    with pytest.raises(UserError, match="iterated over once"):
        next(iter(stream))
    stream.close()
    stream.close()
    stopped = metro_edge.stream(path, shared_bundle, boxes=[[0, 0, 64, 48]])
    stopped.stop()
    assert list(stopped) == []
    stopped.close()
    closed = metro_edge.stream(path, shared_bundle, boxes=[[0, 0, 64, 48]])
    closed.close()
    with pytest.raises(UserError, match="the stream is closed"):
        next(iter(closed))
    # Two threads at once: one of them reads, the other is told.
    shared, ends = metro_edge.stream(path, shared_bundle, boxes=[[0, 0, 64, 48]]), []

    def read() -> None:
        try:
            ends.append(len(list(shared)))
        except UserError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared.close()
    assert sorted(map(str, ends)) == ["200", "a stream can be iterated over once; open another one"]


def test_mistakes(shared_bundle, frame, tmp_path):
    with pytest.raises(UserError, match="exclude each other"):
        metro_edge.stream([frame], shared_bundle, boxes=[[0, 0, 9, 9]], detector="a.onnx")
    with pytest.raises(UserError, match="no boxes at"):
        metro_edge.stream([frame], shared_bundle, boxes=tmp_path / "none.txt")
    for wrong, message in {
        "boxes": ({"boxes": np.zeros((2, 5))}, r"boxes must be \(N, 4\)"),
        "turned": ({"boxes": np.ones((4, 2))}, r"boxes must be \(N, 4\)"),
        "words": ({"boxes": [["a"] * 4]}, "boxes must be numbers"),
        "nan": ({"boxes": [[0, 0, np.nan, 1]]}, "is not finite"),
        "start": ({"start_s": "1"}, "start must be a number of seconds from 0 on, got '1'"),
        "end": ({"end_s": float("inf")}, "end must be a number of seconds"),
        "threads": ({"threads": 1.5}, "number of threads must be 1 to"),
        "fps": ({"fps": "x"}, "fps must be a positive number"),
    }.values():
        with pytest.raises(UserError, match=message):
            metro_edge.stream([frame], shared_bundle, **wrong)
    with (
        metro_edge.stream([frame], shared_bundle, boxes=[[500, 0, 9, 9]]) as stream,
        pytest.raises(UserError, match="outside the 160 x 120 px frame"),
    ):
        list(stream)


def test_boxes_outside_the_frame_are_nobody(shared_bundle, frame, tmp_path):
    (tmp_path / "a.txt").write_text("1,1,10,10,50,80\n1,2,900,10,50,80\n3,1,20,10,50,80\n")
    with metro_edge.stream([frame] * 3, shared_bundle, boxes=tmp_path / "a.txt") as stream:
        assert [f.identities for f in stream] == [[1], [], [1]]
        assert stream.notes == ["1 boxes were left out: outside of their frames, or less than a pixel wide or high"]
    (tmp_path / "b.txt").write_text("9,1,10,10,50,80\n")
    with metro_edge.stream([frame] * 3, shared_bundle, boxes=tmp_path / "b.txt") as stream:
        assert [f.identities for f in stream] == [[], [], []]
        assert stream.notes == ["none of the 1 boxes is of a frame that was read"]


def test_where_nobody_is_the_estimator_says_none(bundle_of, network, frame):
    """A camera whose scale falls below zero with the picture's brightness: per box, not for the whole frame."""
    bundle = bundle_of(network(camera=(-0.05, 0.0, 0.0)))
    dark_and_bright = np.zeros_like(frame)
    dark_and_bright[:, 80:] = 255
    clock = StageClock()
    with MeshEstimator.from_bundle(bundle) as estimator:
        found = estimator.found(dark_and_bright, [[0, 10, 60, 90], [90, 10, 60, 90]], clock=clock)
        assert [body is None for body in found] == [True, False] or found == [None, None]
        assert estimator.found(frame, np.zeros((0, 4))) == []
        with pytest.raises(PredictionError, match="not positive"):
            estimator(np.zeros_like(frame), [0, 10, 60, 90])
    assert {"crop", "network", "place"} <= clock.take().keys() and clock.take() == {}


@pytest.mark.parametrize("kind", ["flat", "noise"])
def test_the_default_finds_nobody_where_nobody_is(kind):
    rng = np.random.default_rng(0)
    image = np.full((240, 320, 3), 120, np.uint8) if kind == "flat" else rng.integers(0, 255, (240, 320, 3), np.uint8)
    with metro_edge.stream([image] * 20, **FAST) as stream:
        assert sum(len(frame.people) for frame in stream) == 0


def test_boxes_and_overlaps(body_at):
    box = body_box(body_at())
    pixels = body_at().vertices_px
    assert (box[:2] <= pixels.min(axis=0) + 3).all() and (box[:2] + box[2:] >= pixels.max(axis=0) - 3).all()
    alone = body_box(body_at(mesh=False))
    assert overlap(alone, box)[0, 0] > 0.5
    assert overlap([0, 0, 10, 10], [[5, 0, 10, 10], [20, 0, 5, 5], [0, 0, 10, 10]])[0].tolist() == pytest.approx(
        [1 / 3, 0, 1]
    )
    assert share_in_frame(np.array([-5.0, 0, 10, 10]), (100, 100)) == 0.5
    checked = inside(np.array([[0, 0, 9, 9], [0, 0, 0.5, 9], [500, 0, 9, 9]]), (100, 100))
    assert np.isfinite(checked).all(axis=1).tolist() == [True, False, False]


def test_a_way_to_follow_people_of_ones_own(shared_bundle, frame):
    """The interface that a detector of our own, or the caller's rule, comes in by."""
    from metro_edge.video.sources import Arrays
    from metro_edge.video.stream import Stream

    class Left(People):
        def __call__(self, frame: SourceFrame, estimate) -> list[Person]:
            with self.clock("detect"):
                bodies = estimate(np.array([[0.0, 0, 60, 100]]))
            return [Person(3, body, 0.5, body_box(body)) for body in bodies]

    with Stream(Arrays([frame] * 2), MeshEstimator.from_bundle(shared_bundle), Left()) as stream:
        results = list(stream)
    assert [r.identities for r in results] == [[3], [3]] and "detect" in results[0].stages_ms


def test_int8_adds_little_jitter_and_smoothing_takes_most_of_it(assets):
    """Acceleration error of the clip's joints against FP32's own accelerations, per precision and smoothing."""

    def jitter(precision: str, smooth: bool) -> float:
        with MeshEstimator.from_bundle(precision=precision, threads=1) as estimator:
            smoother = BodySmoother(mesh=False)
            joints = []
            for k, (frame, box) in enumerate(zip(assets.clip, assets.boxes, strict=True)):
                (body,) = estimator(frame, box)
                person = Person(1, body, 0.9, body_box(body))
                joints.append((smoother([person], k / 24, (480, 640))[0] if smooth else person).body.joints)
        return acceleration_error_mm(np.stack(joints))

    assert jitter("int8", True) < 1.05 * jitter("fp32", True)
    assert jitter("int8", False) < 1.08 * jitter("fp32", False)  # as the network gives it: 5.3 % on this clip
    assert jitter("int8", True) < 0.5 * jitter("int8", False)


def test_a_core_is_left_to_decoding(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert stream_threads() == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert stream_threads() == 1
    assert stream_threads("tensorrt") is None  # which has none
