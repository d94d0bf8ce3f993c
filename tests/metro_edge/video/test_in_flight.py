"""Several frames in flight: the same results in the same order, and what is done over."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

import metro_edge
from metro_edge.backends import Session
from metro_edge.demo import DemoAssets
from metro_edge.errors import PredictionError, UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.timing import StageClock
from metro_edge.video.boxes import BoxTable
from metro_edge.video.network import Network
from metro_edge.video.people import FixedPeople, GivenPeople, People, Person, body_box, overlap
from metro_edge.video.prominent import ProminentPerson
from metro_edge.video.smoother import BodySmoother
from metro_edge.video.sources import Arrays, SourceFrame
from metro_edge.video.stream import Stream

BOXES = np.array([[5.0, 4.0, 30.0, 40.0], [20.0, 6.0, 40.0, 38.0]])


@pytest.fixture(scope="module")
def assets() -> DemoAssets:
    return DemoAssets.load()


@pytest.fixture
def frames() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (9, 48, 64, 3), np.uint8))


class Slow(Session):
    """A session whose even calls take longer than odd ones, and that knows how many run at once."""

    def __init__(self, session: Session, fail_at: int | None = None) -> None:
        self.spec, self.precision, self.device = session.spec, session.precision, session.device
        self.concurrent = True
        self.session, self.fail_at = session, fail_at
        self.calls = self.now = self.most = 0
        self.lock = threading.Lock()

    def _infer(self, images):
        with self.lock:
            number, self.calls, self.now = self.calls, self.calls + 1, self.now + 1
            self.most = max(self.most, self.now)
        time.sleep(0.04 if number % 2 == 0 else 0.005)
        with self.lock:
            self.now -= 1
        if number == self.fail_at:
            raise PredictionError("broken in the middle")
        return self.session.infer(images)

    def close(self) -> None:
        self.session.close()


def results_of(bundle, frames, people: People, in_flight: int, fail_at: int | None = None):
    estimator = MeshEstimator.from_bundle(bundle, threads=1)
    estimator.session = slow = Slow(estimator.session, fail_at)
    slow.concurrent = in_flight > 1
    stream = Stream(Arrays(frames), estimator, people, BodySmoother(), in_flight=in_flight)
    return stream, slow


@pytest.mark.parametrize("known", ["fixed", "given"])
@pytest.mark.parametrize("in_flight", [2, 3, 16])
def test_boxes_that_are_known_give_the_same_results(shared_bundle, frames, known, in_flight):
    def people() -> People:
        if known == "fixed":
            return FixedPeople(BOXES)
        rows = [(k, (7, 4)[i], BOXES[i], (0.5, 0.75)[i]) for k in range(9) for i in range(k % 3)]
        return GivenPeople(BoxTable([*rows, (4, 9, np.array([500.0, 0.0, 9.0, 9.0]), 1.0)]))  # the last one outside

    one, slow = results_of(shared_bundle, frames, people(), 1)
    with one:
        expected = list(one)
    assert slow.most == 1
    many, slow = results_of(shared_bundle, frames, people(), in_flight)
    with many:
        got = list(many)
    assert 1 < slow.most <= in_flight
    assert [r.index for r in got] == list(range(9)) == [r.index for r in expected]
    for a, b in zip(expected, got, strict=True):
        assert a.identities == b.identities and a.image is b.image and a.stages_ms.keys() == b.stages_ms.keys()
        np.testing.assert_array_equal(a.ground, b.ground)
        for body, same in zip(a.bodies, b.bodies, strict=True):
            np.testing.assert_array_equal(body.joints, same.joints)
            np.testing.assert_array_equal(body.vertices, same.vertices)
            np.testing.assert_array_equal(body.translation, same.translation)


def test_an_error_comes_after_the_results_before_it(shared_bundle, frames):
    stream, _ = results_of(shared_bundle, frames, FixedPeople(BOXES), 3, fail_at=4)
    got = []
    with stream, pytest.raises(PredictionError, match="broken in the middle"):
        for result in stream:
            got.append(result.index)
    assert len(got) in (3, 4, 5) and got == list(range(len(got)))  # calls may start in another order than the frames


def test_stopping_gives_what_is_in_flight_and_nothing_more(shared_bundle, frames):
    stream, slow = results_of(shared_bundle, frames, FixedPeople(BOXES), 3)
    got = []
    with stream:
        for result in stream:
            got.append(result.index)
            if result.index == 1:
                stream.stop()
    assert got == list(range(len(got))) and 3 <= len(got) <= 4 and slow.calls == len(got)


def test_leaving_early_waits_for_the_network(shared_bundle, frames):
    stream, slow = results_of(shared_bundle, frames, FixedPeople(BOXES), 3)
    with stream:
        results = iter(stream)
        next(results)
        results.close()
        assert slow.now == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("network")]


class Alone(People):
    """Boxes that no frame knows ahead."""

    def __init__(self, boxes: np.ndarray) -> None:
        self.boxes = boxes

    def __call__(self, frame: SourceFrame, estimate) -> list[Person]:
        bodies = estimate(self.boxes)
        return [Person(number, body, 0.9, body_box(body)) for number, body in enumerate(bodies, 1)]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_people_of_one_frame_are_shared_out(shared_bundle, frames, count, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    boxes = np.array([(4.0 * k, 3.0, 25.0 + k, 40.0) for k in range(count)]).reshape(-1, 4)
    one, slow = results_of(shared_bundle, frames, Alone(boxes), 1)
    with one:
        expected = list(one)
    assert slow.most == min(count, 1)
    shared, slow = results_of(shared_bundle, frames, Alone(boxes), 2)
    with shared:
        got = list(shared)
    assert slow.most == min(count, 2)
    for a, b in zip(expected, got, strict=True):
        assert a.identities == b.identities == list(range(1, count + 1))
        assert ("network" in b.stages_ms) == bool(count) and b.stages_ms.keys() >= a.stages_ms.keys() - {"wait"}
        for body, same in zip(a.bodies, b.bodies, strict=True):
            np.testing.assert_allclose(body.joints, same.joints, atol=1e-6)
            np.testing.assert_array_equal(body.box, same.box)


def test_the_clock_is_told_the_times_of_the_longer_half(shared_bundle, frames, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    with MeshEstimator.from_bundle(shared_bundle, threads=1) as estimator:

        def found(image, boxes, camera, clock):
            clock.add({"crop": 1.0, "network": 10.0 * len(boxes)})
            return [None] * len(boxes)

        monkeypatch.setattr(estimator, "found", found)
        clock = StageClock()
        with Network(estimator, None, 1) as network:
            assert network.estimate(SourceFrame(0, 0.0, frames[0]), clock)(np.ones((5, 4))) == [None] * 5
    assert clock.take() == {"crop": 1.0, "network": 30.0}


@pytest.mark.parametrize("fail_at", [2, 3])
def test_an_error_in_either_half(shared_bundle, frames, fail_at, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    stream, slow = results_of(shared_bundle, frames, Alone(BOXES), 2, fail_at)
    with stream, pytest.raises(PredictionError, match="broken in the middle"):
        list(stream)
    assert stream.frames == 1 and slow.now == 0


class Doubtful(People):
    """Looks ahead, and finds what it gets of frame 3 of no use."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def ahead(self, frame: SourceFrame):
        self.asked.append(("ahead", frame.index))
        return BOXES[:1]

    def taken(self, frame, boxes, bodies):
        self.asked.append(("taken", frame.index))
        return None if frame.index == 3 else self._people(bodies)

    def __call__(self, frame, estimate):
        self.asked.append(("alone", frame.index))
        return self._people(estimate(BOXES[1:]))

    @staticmethod
    def _people(bodies) -> list[Person]:
        return [Person(1, body, 0.9, body_box(body)) for body in bodies]


def test_what_is_of_no_use_is_done_over_with_all_in_flight_behind_it(shared_bundle, frames):
    people = Doubtful()
    stream, _ = results_of(shared_bundle, frames[:7], people, 3)
    with stream:
        got = list(stream)
    assert [result.index for result in got] == list(range(7))
    assert [index for what, index in people.asked if what == "alone"] == [3, 4, 5]
    assert [index for what, index in people.asked if what == "taken"] == [0, 1, 2, 3, 6]
    first = {result.index: result.bodies[0].box for result in got}
    assert [index for index, box in first.items() if np.allclose(box, BOXES[1])] == [3, 4, 5]


def test_the_prominent_person_is_followed_lost_and_found_with_frames_in_flight(assets):
    """As with one frame at a time, see test_stream.py; boxes that follow are a frame older."""
    empty = assets.clip[0].copy()
    empty[:, :320] = empty[:, 320:]
    mirrored = [np.ascontiguousarray(frame[:, ::-1]) for frame in assets.clip[30:]]
    pictures = [*assets.clip[:30], *[empty] * 25, *mirrored]
    with metro_edge.stream(pictures, fps=24, precision="int8", threads=1, in_flight=3) as stream:
        got = list(stream)
    assert [result.index for result in got] == list(range(85))
    there = [bool(result.people) for result in got]
    assert sum(there[:30]) >= 29 and sum(there[36:55]) == 0 and sum(there[57:]) >= 26
    overlaps = [overlap(r.people[0].box, box)[0, 0] for r, box in zip(got[:30], assets.boxes, strict=False) if r.people]
    assert np.mean(overlaps[2:]) > 0.7 and min(overlaps[2:]) > 0.4
    assert {i for r in got[:30] for i in r.identities} == {1} and {i for r in got[55:] for i in r.identities} == {2}


def test_someone_lost_ahead_is_searched_for_at_once(assets):
    """Not asked for once more at the place where they were lost."""
    people, frame = ProminentPerson(), SourceFrame(0, 0.0, assets.clip[0])
    assert people.ahead(frame) is None  # nobody is known yet
    with MeshEstimator.from_bundle(precision="int8", threads=1) as estimator:
        assert people(frame, lambda boxes: estimator.found(frame.image, boxes))
    boxes = people.ahead(frame)
    assert boxes is not None and len(boxes) == 1
    assert people.taken(frame, boxes, [None]) is None and people.ahead(frame) is None


def test_how_many_by_themselves(shared_bundle, frames, monkeypatch):
    def chosen(source, cores: int = 4, **options) -> int:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
        with MeshEstimator.from_bundle(shared_bundle, **options) as estimator:
            return Stream(source, estimator, FixedPeople(BOXES)).in_flight

    assert chosen(Arrays(frames), threads=1) == 2
    assert chosen(Arrays(frames), threads=1, backend="openvino") == 1  # opened for one caller
    assert chosen(Arrays(frames), threads=1, backend="openvino", in_flight=2) == 2
    assert chosen(Arrays(frames), cores=1, threads=1) == 1
    assert chosen(Arrays(frames), affinity=[0]) == 1  # both would be kept on one core
    live = Arrays(frames)
    live.live = True
    assert chosen(live, threads=1) == 1


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_engines_are_opened_for_as_many(shared_bundle, frames, backend):
    pytest.importorskip(backend)
    with metro_edge.stream(frames, shared_bundle, boxes=BOXES, threads=1, backend=backend) as one:
        expected = [body.joints for result in one for body in result.bodies]
        in_flight = one.in_flight
    assert in_flight == (2 if len(os.sched_getaffinity(0)) > 1 else 1)
    with metro_edge.stream(frames, shared_bundle, boxes=BOXES, threads=1, backend=backend, in_flight=3) as many:
        found = [body.joints for result in many for body in result.bodies]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_stream_from_the_beginning_has_as_many_in_flight(shared_bundle, frames):
    with metro_edge.stream(frames, shared_bundle, boxes=BOXES, in_flight=3) as stream:
        assert stream.in_flight == stream.again().in_flight == 3


@pytest.mark.parametrize("count", [0, -1, 17])
def test_a_number_that_is_none(shared_bundle, frames, count):
    with pytest.raises(UserError, match=f"1 to 16 frames may be in flight, got {count}"):
        metro_edge.stream(frames, shared_bundle, in_flight=count)


def test_an_engine_that_takes_one_at_a_time(shared_bundle, frames):
    estimator = MeshEstimator.from_bundle(shared_bundle, affinity=[0])
    with estimator, pytest.raises(UserError, match=r"as it was opened, runs one frame at a time, not 2"):
        Stream(Arrays(frames), estimator, FixedPeople(BOXES), in_flight=2)


def test_a_way_that_looks_ahead_says_what_it_takes(shared_bundle, frames):
    class Half(People):
        def __call__(self, frame, estimate):
            return []

        def ahead(self, frame):
            return BOXES

    with metro_edge.stream(frames, shared_bundle) as stream:
        stream.people = Half()
        stream.in_flight = 2
        with pytest.raises(NotImplementedError, match="a way that looks ahead"):
            list(stream)
