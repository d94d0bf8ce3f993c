"""Identities: with the small network, whose bodies stay where they are cropped, and with the shipped one (slow)."""

from __future__ import annotations

import numpy as np
import pytest

import metro_edge
from benchmarks.mot import clear_mot
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.video.boxes import BoxTable
from metro_edge.video.detector import Detections
from metro_edge.video.sources import SourceFrame
from metro_edge.video.stream import choose_people
from metro_edge.video.tracking import DetectedPeople, IdentityTracker, TrackedBoxes

FPS = 25.0
SIZE_WH = (320, 180)
Box = tuple[float, float, float, float]


class Walks:
    """A detector that knows: people {identity: (first frame, last frame, x from, x to, y, height)}.

    Attributes:
        calls: how often it was asked.
    """

    def __init__(self, people: dict[int, tuple], miss: float = 0.0, noise: float = 0.0) -> None:
        self.people, self.miss, self.noise = people, miss, noise
        self.calls, self.frame = 0, 0
        self._rng = np.random.default_rng(0)

    def truth(self, frame: int) -> dict[int, Box]:
        boxes = {}
        for identity, (first, last, x0, x1, y, height) in self.people.items():
            if first <= frame <= last:
                x = x0 + (x1 - x0) * (frame - first) / max(last - first, 1)
                boxes[identity] = (x, y, 0.45 * height, height)
        return boxes

    def __call__(self, image: np.ndarray) -> Detections:
        self.calls += 1
        frame = round(float(image[0, 0, 0]) + 256 * float(image[0, 1, 0]))  # the picture tells its number
        boxes = [box for box in self.truth(frame).values() if self._rng.random() >= self.miss]
        array = np.array(boxes, np.float64).reshape(-1, 4)
        array[:, :2] += self._rng.normal(0, 1, (len(array), 2)) * self.noise * array[:, 2:]
        return Detections(array, self._rng.uniform(0.6, 0.95, len(array)))


def pictures(count: int) -> list[np.ndarray]:
    frames = []
    for number in range(count):
        image = np.full((SIZE_WH[1], SIZE_WH[0], 3), 100, np.uint8)
        image[0, 0], image[0, 1] = number % 256, number // 256
        frames.append(image)
    return frames


def followed(walks: Walks, bundle, frames: int, every: int) -> tuple[list, list]:
    """Truth and what was found, per frame identities and boxes."""
    truth, found = [], []
    with metro_edge.stream(pictures(frames), bundle, detector=walks, detect_every=every, fps=FPS) as stream:
        for result in stream:
            boxes = walks.truth(result.index)
            truth.append((list(boxes), np.array(list(boxes.values())).reshape(-1, 4)))
            found.append((result.identities, np.array([person.box for person in result.people]).reshape(-1, 4)))
    return truth, found


@pytest.mark.parametrize("every", [1, 3])
def test_people_who_enter_leave_and_cross_keep_their_identities(shared_bundle, every):
    walks = Walks(
        {1: (0, 60, 20, 200, 30, 110), 2: (20, 80, 290, 200, 60, 100), 3: (0, 35, 230, 260, 20, 120)},
        miss=0.1, noise=0.01,
    )  # fmt: skip
    truth, found = followed(walks, shared_bundle, 81, every)
    score = clear_mot(truth, found)
    assert score.switches == 0 and score.mota > (0.9 if every == 1 else 0.8), score
    assert len({identity for identities, _ in found for identity in identities}) == 3


def test_the_detector_runs_every_kth_frame_and_when_someone_is_lost(shared_bundle):
    walks = Walks({1: (0, 99, 100, 100, 30, 110)})
    _, found = followed(walks, shared_bundle, 50, 10)
    assert walks.calls == 5 and all(identities == [1] for identities, _ in found[1:])
    # Someone who leaves the picture is lost, and looked for in the next frame.
    gone = Walks({1: (0, 99, 100, 100, 30, 110), 2: (0, 30, 200, 330, 30, 110)})
    followed(gone, shared_bundle, 50, 10)
    assert gone.calls >= 5


def test_someone_who_comes_back_soon_is_the_same_and_later_someone_new(shared_bundle):
    walks = Walks({1: (0, 20, 100, 100, 30, 110), 2: (35, 60, 100, 100, 30, 110), 3: (140, 170, 100, 100, 30, 110)})
    _, found = followed(walks, shared_bundle, 171, 1)
    (first,), (soon,), (later,) = (found[k][0] for k in (10, 50, 165))
    assert first == soon and later != first and found[100][0] == []


def test_boxes_without_identities_get_them(shared_bundle, tmp_path):
    walks = Walks({1: (0, 40, 20, 120, 30, 110), 2: (0, 40, 250, 150, 40, 100)})
    rows = []
    for frame in range(41):
        for x, y, width, height in walks.truth(frame).values():
            rows.append(f"{frame + 1},-1,{x + 1},{y + 1},{width},{height},0.9")
    (tmp_path / "det.txt").write_text("\n".join(rows))
    with metro_edge.stream(pictures(41), shared_bundle, boxes=tmp_path / "det.txt", fps=FPS) as stream:
        identities = [result.identities for result in stream]
    assert identities == [[1, 2]] * 41


def rows_of(frames: range, score: float = 1.0, left: float = 20.0) -> str:
    """Two people who keep their places."""
    return "".join(f"{k + 1},-1,{left + 200 * n},60,40,100,{score}\n" for k in frames for n in (0, 1))


@pytest.mark.parametrize(
    "rows, wanted",
    [
        (rows_of(range(6)), [[1, 2]] * 6),
        (rows_of(range(0, 6, 2)), [[1, 2], []] * 3),  # not in every frame
        (rows_of(range(6), score=0.3), [[1, 2]] * 6),  # a detector that is unsure
        (rows_of(range(3, 4)), [[], [], [], [1, 2], [], []]),  # a single time
        (rows_of(range(1)) + rows_of(range(5, 6), left=110), [[1, 2], [], [], [], [], [3, 4]]),  # others, elsewhere
    ],
)
def test_every_box_that_is_given_is_somebody(shared_bundle, tmp_path, rows, wanted):
    (tmp_path / "det.txt").write_text(rows)
    with metro_edge.stream(pictures(6), shared_bundle, boxes=tmp_path / "det.txt", fps=FPS) as stream:
        assert [result.identities for result in stream] == wanted and stream.notes == []


@pytest.mark.parametrize("score", [1.0, 0.3])
def test_someone_fast_is_followed_by_the_tracker_whatever_their_score(shared_bundle, tmp_path, score):
    """Boxes that hardly touch those of the frame before: the motion tells, of unsure boxes too."""
    x, rows = 5.0, ""
    for frame in range(9):
        rows += f"{frame + 1},-1,{x + 1},60,30,100,{score}\n"
        x += (23.0, 12.0, 14.0, 18.0, 22.0, 26.0, 28.0, 28.0, 28.0)[frame]  # the second overlaps the first by 0.13
    (tmp_path / "det.txt").write_text(rows)
    with metro_edge.stream(pictures(9), shared_bundle, boxes=tmp_path / "det.txt", fps=FPS) as stream:
        assert [result.identities for result in stream] == [[1]] * 9


def test_the_trackers_identity_that_comes_back_does_not_double_a_person():
    here, there = [10.0, 60, 40, 100], [200.0, 60, 40, 100]
    table = BoxTable((frame, None, np.array(box), 1.0) for frame in range(3) for box in (here, there)[: 1 + frame // 2])
    people = TrackedBoxes(table)
    answers = iter(([5], [7], [5, 7]))  # lost, found as someone else, and both
    people._tracker = lambda boxes, scores, time_s: np.array(next(answers))
    frames = [SourceFrame(k, k / FPS, image) for k, image in enumerate(pictures(3))]
    found = [people.identities(f, table.of_frame(f.index).boxes, np.zeros(2)).tolist() for f in frames]
    assert found[:2] == [[1], [1]] and len(set(found[2])) == 2


def test_an_identity_goes_to_one_box_at_a_time(shared_bundle, tmp_path):
    """Boxes that flicker, so that the tracker loses people and finds them again."""
    rng = np.random.default_rng(0)
    rows = ""
    for k in range(60):
        for x in (20, 60, 100, 200):
            if rng.random() < 0.7:
                rows += f"{k + 1},-1,{x + rng.normal(0, 3):.1f},60,40,100\n"
    (tmp_path / "det.txt").write_text(rows)
    with metro_edge.stream(pictures(60), shared_bundle, boxes=tmp_path / "det.txt", fps=FPS) as stream:
        found = [result.identities for result in stream]
    assert all(len(set(ids)) == len(ids) for ids in found)
    assert sum(map(len, found)) == len(rows.splitlines())
    assert len({i for ids in found for i in ids}) <= 8


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="N at least 1"):
        DetectedPeople(Walks({}), 0)
    with pytest.raises(UserError, match="an ONNX file or an object to call, got int"):
        DetectedPeople(5)
    people = DetectedPeople(lambda image: [[0, 0, 9, 9]])
    with pytest.raises(UserError, match=r"must return .*Detections, got list"):
        people(SourceFrame(0, 0.0, pictures(1)[0]), lambda boxes: [])
    with pytest.raises(UserError, match="no detector at"):
        choose_people(None, tmp_path / "none.onnx")
    import builtins

    real = builtins.__import__

    def without(name, *rest, **more):
        if name in ("trackers", "supervision"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"metro-edge\[track\]"):
        IdentityTracker()
