from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.latency import WARMUP, check_runs, measure_interleaved, ratio, round_robin, runs_needed
from metro_edge.errors import UserError
from metro_edge.timing import Latency


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 80), st.integers(1, 20))
def test_round_robin_gives_everybody_the_same_number_in_alternating_blocks(
    subjects: int, runs: int, block: int
) -> None:
    names = [f"s{k}" for k in range(subjects)]
    order = list(round_robin(names, runs, block))
    totals: Counter[str] = Counter()
    for name, count in order:
        assert 1 <= count <= block
        totals[name] += count
        # Nobody is ever more than one block ahead.
        assert max(totals.values()) - min(totals[n] for n in names) <= block
    assert totals == Counter(dict.fromkeys(names, runs))
    for start in range(0, len(order), subjects):
        assert sorted(name for name, _ in order[start : start + subjects]) == names


def test_each_round_starts_with_another_subject() -> None:
    order = [name for name, _ in round_robin("abc", 40, 10)]
    assert "".join(order) == "abcbcacababc"


class FakeTime:
    """A clock in seconds that only moves when a subject works."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now_s

    def subject(self, name: str, *durations_s: float):
        def call() -> None:
            self.now_s += durations_s[self.calls.count(name) % len(durations_s)]
            self.calls.append(name)

        return call


def test_measures_what_each_call_took_and_counts_no_warm_up() -> None:
    time = FakeTime()
    calls = {"slow": time.subject("slow", 0.004), "fast": time.subject("fast", 0.001)}
    latency = measure_interleaved(calls, runs=25, block=10, clock=time)
    assert latency["slow"].samples_ms == pytest.approx([4.0] * 25)
    assert latency["fast"].samples_ms == pytest.approx([1.0] * 25)
    # Three blocks, each with one uncounted call.
    assert latency["slow"].warmup == latency["fast"].warmup == WARMUP + 3
    assert Counter(time.calls) == {"slow": 25 + WARMUP + 3, "fast": 25 + WARMUP + 3}
    assert time.calls[2 * WARMUP :][:22] == ["slow"] * 11 + ["fast"] * 11


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1e3), min_size=20, max_size=200))
def test_percentiles_bound_the_right_share_of_the_calls(durations_ms: list[float]) -> None:
    time = FakeTime()
    calls = {"a": time.subject("a", *(d / 1000 for d in durations_ms))}
    latency = measure_interleaved(calls, runs=len(durations_ms), block=len(durations_ms), clock=time)["a"]
    slack = 1e-6 * max(durations_ms)
    for percent, value in ((50, latency.p50_ms), (95, latency.p95_ms)):
        share = np.mean(latency.samples_ms <= value + slack)
        assert share >= percent / 100 - 1 / len(durations_ms)
        assert np.mean(latency.samples_ms < value - slack) <= percent / 100
    assert latency.p50_ms <= latency.p95_ms + slack <= max(durations_ms) + 2 * slack


def test_a_clock_that_slows_down_all_alike_leaves_the_ratio() -> None:
    drift = np.repeat([1.0, 3.0, 0.5], 10)
    reference = Latency(10.0 * drift, 0)
    found = ratio(Latency(4.0 * drift, 0), reference, block=10)
    assert (found.median, found.low, found.high) == pytest.approx((0.4, 0.4, 0.4))


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 100), min_size=20, max_size=60), st.integers(1, 15))
def test_ratio_to_itself_is_one_and_lies_in_its_range(samples_ms: list[float], block: int) -> None:
    latency = Latency(np.array(samples_ms), 0)
    same = ratio(latency, latency, block)
    assert same.median == same.low == same.high == 1.0
    other = ratio(Latency(np.array(samples_ms[::-1]), 0), latency, block)
    assert other.low <= other.median <= other.high


@pytest.mark.parametrize(("percent", "needed"), [(0, 1), (50, 2), (90, 10), (95, 20), (99, 100)])
def test_runs_needed(percent: float, needed: int) -> None:
    assert runs_needed(percent) == needed
    assert check_runs(needed, percent) == needed
    if needed > 1:
        with pytest.raises(UserError, match=rf"{needed - 1} runs are too few .* at least {needed}"):
            check_runs(needed - 1, percent)


def test_refuses_what_cannot_be_measured() -> None:
    with pytest.raises(UserError, match="at least 0 and below 100, got 100"):
        runs_needed(100)
    with pytest.raises(UserError, match="19 runs are too few"):
        measure_interleaved({"a": lambda: None}, runs=19)
    with pytest.raises(UserError, match="0 subjects"):
        measure_interleaved({}, runs=20)
    with pytest.raises(UserError, match="blocks of 0 calls"):
        measure_interleaved({"a": lambda: None}, runs=20, block=0)
    back = iter(np.arange(100, 0, -1.0))
    with pytest.raises(UserError, match="the clock went back"):
        measure_interleaved({"a": lambda: None}, runs=20, clock=lambda: float(next(back)))
    # Set back by an hour between two calls: every single call looks well.
    ticks = iter([*np.arange(10.0), *np.arange(-3600.0, -3500.0)])
    with pytest.raises(UserError, match="the clock went back"):
        measure_interleaved({"a": lambda: None}, runs=20, clock=lambda: float(next(ticks)))
    with pytest.raises(UserError, match="two subjects of one run, got 20 and 10 calls"):
        ratio(Latency(np.ones(20), 0), Latency(np.ones(10), 0))
    with pytest.raises(UserError, match="too short for this clock"):
        ratio(Latency(np.ones(20), 0), Latency(np.zeros(20), 0))
