"""Queues against theory and against sums by hand, on a simulated clock."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.queueing import Served, closed_loop, largest_rate, open_loop, planned
from metro_edge.errors import UserError

SERVICE_S = 0.02


class Engine:
    """Takes the same time for each frame, on a clock that only it and sleeping move."""

    def __init__(self, service_s: float = SERVICE_S) -> None:
        self.now, self.service_s, self.served = 100.0, service_s, []

    def serve(self, camera: int) -> None:
        self.served.append((self.now - 100.0, camera))
        self.now += self.service_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += max(seconds, 1e-9)  # less is lost in rounding, and time would stand still

    def clock(self) -> float:
        return self.now


def opened(plan, seconds: float, engine: Engine | None = None, queue: int = 1, warm_s: float = 0.0) -> Served:
    engine = engine or Engine()
    return open_loop(
        plan, engine.serve, seconds=seconds, queue=queue, warm_s=warm_s, clock=engine.clock, sleep=engine.sleep
    )


def test_latency_counts_from_the_plan_also_while_the_engine_is_busy():
    """Three cameras at once: the third waits for two others, though it was never late being fetched."""
    done = opened([(0.1, 0), (0.1, 1), (0.1, 2)], 1.0)
    np.testing.assert_allclose(done.latency_ms, [20.0, 40.0, 60.0])
    assert done.camera.tolist() == [0, 1, 2] and done.seconds == 1.0 and done.dropped == 0


def test_the_oldest_waiting_frame_of_the_camera_is_dropped():
    # While the first runs, 0.0 to 0.02, camera 0 gives three more: the last one is kept. Camera 1's frame stays.
    plan = [(0.0, 0), (0.004, 0), (0.008, 1), (0.010, 0), (0.016, 0)]
    engine = Engine()
    done = opened(plan, 0.02, engine)
    assert done.dropped == 2 and [camera for _, camera in engine.served] == [0, 1, 0]
    np.testing.assert_allclose(done.latency_ms, [20.0, 32.0, 44.0])
    assert done.frames == 5 and done.seconds == pytest.approx(0.06) and done.per_s == pytest.approx(50.0)
    assert done.missed(40.0) == 3 and done.missed(1.0) == 5 and done.missed(100.0) == 2
    assert opened(plan, 0.02, queue=3).dropped == 0


def test_of_two_that_wait_the_older_one_is_dropped():
    done = opened([(0.0, 0), (0.004, 0), (0.008, 0), (0.012, 0)], 0.02, queue=2)
    assert done.dropped == 1
    np.testing.assert_allclose(done.latency_ms, [20.0, 32.0, 48.0])


def test_frames_before_the_counting_are_served_and_not_counted():
    engine = Engine()
    done = opened([(0.0, 0), (0.001, 0), (0.002, 0), (0.5, 0)], 1.0, engine, warm_s=0.25)
    assert len(engine.served) == 3 and len(done.latency_ms) == 1 and done.dropped == 0 and done.seconds == 0.75


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_poisson_arrivals_wait_as_the_formula_says(load):
    """M/D/1: the mean wait is rho s / (2 (1 - rho)) (Pollaczek and Khinchine); room for all, so that none is lost."""
    rate = load / SERVICE_S
    plan = planned(1, rate, 20_000 / rate, "poisson", 1)
    done = opened(plan, 20_000 / rate, queue=10**6)
    expected = SERVICE_S + load * SERVICE_S / (2 * (1 - load))
    assert done.dropped == 0 and done.latency_ms.mean() == pytest.approx(expected * 1000, rel=0.06)


def test_an_engine_that_is_too_slow_does_what_it_can_and_drops_the_rest():
    plan = planned(4, 30.0, 20.0, "periodic", 0)  # 120 frames a second, 50 can be done
    done = opened(plan, 20.0)
    assert done.per_s == pytest.approx(50.0, rel=0.01) and done.frames == len(plan) == 2400
    # A frame that is answered waited for those that were due before, one of each camera, and the one in hand.
    assert done.latency_ms.max() <= 5 * 20.0 + 1e-6
    assert min(Counter(done.camera.tolist()).values()) > 100


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.floats(1.0, 100.0), st.integers(1, 4), st.sampled_from(["periodic", "poisson"]))
def test_every_frame_is_answered_or_dropped(cameras, rate, queue, arrivals):
    plan = planned(cameras, rate, 1.5, arrivals, 7)
    engine = Engine()
    done = opened(plan, 1.5, engine, queue)
    assert done.frames == len(plan) and len(engine.served) == len(done.latency_ms)
    assert (done.latency_ms >= SERVICE_S * 1000 - 1e-6).all()
    begun = [time for time, _ in engine.served]
    assert all(after - before >= SERVICE_S - 1e-9 for before, after in pairwise(begun))


def test_plans():
    plan = planned(3, 10.0, 2.0, "periodic", 5)
    assert plan == planned(3, 10.0, 2.0, "periodic", 5) != planned(3, 10.0, 2.0, "periodic", 6)
    assert plan == sorted(plan) and Counter(camera for _, camera in plan) == {0: 20, 1: 20, 2: 20}
    times = np.array([time for time, camera in plan if camera == 1])
    np.testing.assert_allclose(np.diff(times), 0.1)
    assert len({round(time % 0.1, 6) for time, _ in plan[:3]}) == 3  # not all at the same moment
    gaps = np.diff([time for time, _ in planned(1, 50.0, 400.0, "poisson", 5)])
    assert gaps.mean() == pytest.approx(0.02, rel=0.02) and gaps.std() == pytest.approx(0.02, rel=0.03)


def test_closed_loop_keeps_each_camera_at_one_frame():
    engine = Engine()
    done = closed_loop(4, engine.serve, seconds=10.0, warm_s=1.0, clock=engine.clock)
    assert done.per_s == pytest.approx(50.0, rel=0.02) and done.dropped == 0
    np.testing.assert_allclose(done.latency_ms, 80.0, rtol=1e-6)  # of four, each waits for the other three
    assert [camera for _, camera in engine.served[:8]] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_the_largest_rate_of_an_engine_of_known_speed():
    def probe(rate: float) -> tuple[int, int]:
        done = opened(planned(2, rate, 20.0, "periodic", 0), 20.0)
        return done.frames, done.missed(100.0)

    low, high, probes = largest_rate(probe, 40.0, allowed=0.01, tolerance=0.02)
    assert low is not None and high is not None and low <= 25.3 and high >= 25.0  # two cameras, 50 frames a second
    assert high - low <= 0.02 * high and len(probes) < 12
    assert all((p["missed"] <= 0.01 * p["frames"]) == (p["rate_hz"] <= low) for p in probes)


def test_a_search_that_begins_too_low_looks_higher_and_gives_up():
    low, high, _ = largest_rate(lambda rate: (100, int(rate > 30)), 10.0, allowed=0.0, tolerance=0.05)
    assert low is not None and high is not None and low <= 30 < high
    assert largest_rate(lambda _: (100, 0), 10.0, allowed=0.0, tolerance=0.05)[:2] == (160.0, None)
    low, high, probes = largest_rate(lambda _: (100, 100), 10.0, allowed=0.0, tolerance=0.05)
    assert low is None and high is not None and high <= 0.1 and len(probes) < 12


def test_what_is_refused():
    for values in ((0, 1.0, 1.0), (1, 0.0, 1.0), (1, 1.0, -1.0), (1, float("inf"), 1.0)):
        with pytest.raises(UserError, match="must be positive"):
            planned(*values, "periodic", 0)
    with pytest.raises(UserError, match="more than 2,000,000 frames"):
        planned(64, 1e9, 1.0, "periodic", 0)
    with pytest.raises(UserError, match="unknown arrivals 'bursts'"):
        planned(1, 1.0, 1.0, "bursts", 0)
    with pytest.raises(UserError, match="room for at least 1"):
        opened([(0.0, 0)], 1.0, queue=0)
    with pytest.raises(UserError, match="at least 1"):
        closed_loop(0, lambda _: None, seconds=1.0, warm_s=0.0, clock=lambda: 0.0)
    for given_ in ((0.0, 0.01, 0.05), (10.0, 1.0, 0.05), (10.0, 0.01, 0.0)):
        with pytest.raises(UserError, match="a search needs"):
            largest_rate(lambda _: (1, 0), given_[0], allowed=given_[1], tolerance=given_[2])


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_a_clock_that_goes_back_is_refused(loop):
    engine = Engine()

    def clock() -> float:
        return engine.now - (1.0 if len(engine.served) == 3 else 0.0)

    with pytest.raises(UserError, match="clock went back"):
        if loop == "closed":
            closed_loop(1, engine.serve, seconds=1.0, warm_s=0.0, clock=clock)
        else:
            plan = [(0.1 * k, 0) for k in range(9)]
            open_loop(plan, engine.serve, seconds=1.0, queue=1, warm_s=0.0, clock=clock, sleep=engine.sleep)
