from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import bootstrap
from benchmarks.bootstrap import Interval, figure, interval, mean, median, p95
from metro_edge.errors import UserError


def test_golden_values() -> None:
    found = interval(np.arange(100.0))
    assert found is not None
    # Of the normal law: 49.5 ± 1.96 · 28.87 / 10.
    assert (found.low, found.high) == pytest.approx((49.5 - 5.66, 49.5 + 5.66), abs=0.4)
    # 1 of 8 values is 8, so the mean is k of 8 with k binomial (8, 1/8): 97.7 % below 4, 91 % below 3.
    assert interval([0.0] * 7 + [8.0]) == Interval(0.0, 3.0)
    assert interval([2.0] * 6) == Interval(2.0, 2.0)
    assert figure([1.0, 2.0, 6.0]) == 3.0 and figure([1.0, 2.0, 6.0], median) == 2.0
    assert figure(np.arange(101.0), p95) == 95.0


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(300):
        found = interval(rng.normal(5.0, 1.0, 50), resamples=400)
        covered += found is not None and found.contains(5.0)
    assert 0.90 < covered / 300 < 0.98


FLOATS = st.floats(-1e6, 1e6)


@settings(deadline=None, max_examples=60)
@given(st.lists(FLOATS, min_size=6, max_size=60), st.sampled_from([mean, median, p95]), st.integers(0, 9))
def test_contains_the_figure_and_stays_within_the_values(values: list[float], statistic, seed: int) -> None:
    found = interval(values, statistic, resamples=200, seed=seed)
    if statistic is p95 and len(values) < 20:
        assert found is None and figure(values, p95) is None
        return
    assert found == interval(values, statistic, resamples=200, seed=seed)  # seeded
    assert found.contains(figure(values, statistic))
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack


@settings(deadline=None, max_examples=40)
@given(st.lists(FLOATS, min_size=6, max_size=40), st.floats(-1e3, 1e3))
def test_moves_with_the_values(values: list[float], shift: float) -> None:
    a, b = interval(values, resamples=100), interval(np.array(values) + shift, resamples=100)
    assert (b.low - a.low, b.high - a.high) == pytest.approx((shift, shift), abs=1e-6)


def test_rounds_are_drawn_whole() -> None:
    # Within a round all calls are alike, so 8 rounds of 10 calls tell no more than 8 values.
    rounds = np.random.default_rng(2).normal(10, 1, (8, 1))
    alike, single = interval(np.repeat(rounds, 10, axis=1)), interval(rounds)
    assert (alike.low, alike.high) == pytest.approx((single.low, single.high))


def test_parts_that_fit_in_memory_change_nothing_but_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(0, 1, 50)
    whole = interval(values)
    monkeypatch.setattr(bootstrap, "_CHUNK", 120)
    parts = interval(values)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.05)


def test_intervals_overlap_when_they_share_a_value() -> None:
    assert Interval(0, 1).overlaps(Interval(1, 2)) and Interval(0, 3).overlaps(Interval(1, 2))
    assert not Interval(0, 1).overlaps(Interval(1.1, 2)) and not Interval(1.1, 2).overlaps(Interval(0, 1))
    assert Interval(0, 1).contains(1) and not Interval(0, 1).contains(1.1)


def test_too_few_and_bad_values() -> None:
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None and interval([]) is None
    assert interval(np.arange(19.0), p95) is None and interval(np.arange(20.0), p95) is not None
    for bad in (np.nan, np.inf):
        with pytest.raises(UserError, match="NaN or infinite"):
            interval([1.0, bad])
    with pytest.raises(UserError, match="at least 1, got 0"):
        interval(np.arange(9.0), resamples=0)
