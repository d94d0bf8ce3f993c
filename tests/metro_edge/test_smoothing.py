from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_edge.errors import UserError
from metro_edge.smoothing import OneEuro, smoothing_share


def paper_filter(values: list[float], times_s: list[float], min_cutoff: float, beta: float) -> list[float]:
    """Algorithm 1 of the paper for one number, written out."""
    result, speed = [values[0]], 0.0
    for value, now, before in zip(values[1:], times_s[1:], times_s[:-1], strict=True):
        rate = 1.0 / (now - before)
        alpha = 1.0 / (1.0 + rate / (2.0 * math.pi * 1.0))
        speed = alpha * (value - result[-1]) * rate + (1.0 - alpha) * speed
        alpha = 1.0 / (1.0 + rate / (2.0 * math.pi * (min_cutoff + beta * abs(speed))))
        result.append(alpha * value + (1.0 - alpha) * result[-1])
    return result


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0.005, 0.5)), min_size=1, max_size=20),
    st.floats(0.1, 10),
    st.floats(0, 5),
)
def test_every_coordinate_follows_the_paper(steps: list[tuple[float, float]], min_cutoff: float, beta: float) -> None:
    values, times = [v for v, _ in steps], list(np.cumsum([t for _, t in steps]))
    smoother = OneEuro(min_cutoff, beta)
    found = [smoother([[[v, -v]]], ["a"], t)[0, 0] for v, t in zip(values, times, strict=True)]
    expected = paper_filter(values, times, min_cutoff, beta)
    np.testing.assert_allclose(found, np.stack([expected, np.negative(expected)], 1), atol=1e-9)


def test_golden_values() -> None:
    smoother = OneEuro(min_cutoff_hz=1.0, beta=0.0)
    found = [float(smoother([[[v]]], [0], t)[0, 0, 0]) for v, t in ((0.0, 0.0), (1.0, 0.1), (1.0, 0.2))]
    share = 0.2 * math.pi / (1.0 + 0.2 * math.pi)
    np.testing.assert_allclose(found, [0.0, share, share + (1.0 - share) * share], rtol=1e-12)


def test_still_points_become_steadier_and_moving_points_lag_less_with_beta() -> None:
    noise = np.random.default_rng(0).normal(0.0, 0.005, (200, 14, 3))
    still = OneEuro()
    smooth = np.concatenate([still(frame[None], [0], i / 30) for i, frame in enumerate(noise)])
    assert smooth[50:].std() < 0.5 * noise[50:].std()

    def lag(beta: float) -> float:
        smoother = OneEuro(beta=beta)
        return 2.0 - float([smoother([[[2.0 * i / 30]]], [0], i / 30) for i in range(31)][-1][0, 0, 0])

    assert 0.0 < lag(5.0) < 0.5 * lag(0.0)


def test_tracks_are_apart_and_may_come_in_any_order() -> None:
    together, apart = OneEuro(), [OneEuro(), OneEuro()]
    points = np.random.default_rng(1).normal(size=(6, 2, 4, 3))
    for i, frame in enumerate(points):
        order = [1, 0] if i % 2 else [0, 1]
        found = together(frame[order], order, i / 30)
        expected = [apart[track](frame[[track]], [track], i / 30)[0] for track in order]
        np.testing.assert_array_equal(found, expected)


def test_a_track_away_for_too_long_starts_anew_and_a_short_absence_does_not() -> None:
    smoother = OneEuro(max_gap_s=0.5)
    smoother([[[0.0]]], ["a"], 0.0)
    assert smoother(np.zeros((0, 1, 1)), [], 0.3).shape == (0, 1, 1)
    assert 0.0 < smoother([[[1.0]]], ["a"], 0.4)[0, 0, 0] < 1.0
    assert smoother([[[5.0]]], ["a"], 1.0)[0, 0, 0] == 5.0


def test_what_is_away_for_too_long_is_forgotten() -> None:
    smoother = OneEuro(max_gap_s=0.5)
    for i in range(100):
        smoother([[[0.0]]], [i], i / 4)
    assert smoother.tracks == (97, 98, 99)


def test_reset_forgets() -> None:
    smoother = OneEuro()
    smoother([[[0.0]]], ["a"], 10.0)
    smoother.reset()
    assert smoother([[[3.0, 4.0]]], ["a"], 0.0).tolist() == [[[3.0, 4.0]]]


def test_share_is_the_low_pass_filters() -> None:
    assert float(smoothing_share(1.0, 1.0 / (2.0 * math.pi))) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"min_cutoff_hz": 0.0}, "min_cutoff_hz must be"),
        ({"speed_cutoff_hz": math.nan}, "speed_cutoff_hz must be"),
        ({"max_gap_s": math.inf}, "max_gap_s must be"),
        ({"beta": -0.1}, "beta must be"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, float], match: str) -> None:
    with pytest.raises(UserError, match=match):
        OneEuro(**values)


@pytest.mark.parametrize(
    ("points", "tracks", "time_s", "match"),
    [
        ("text", ["a"], 1.0, "must be numbers"),
        ([[1.0]], ["a"], 1.0, "got shape"),
        ([[[1.0]]], [], 1.0, "got 0 tracks"),
        ([[[1.0]], [[2.0]]], ["a", "a"], 1.0, "once"),
        ([[[math.nan]]], ["a"], 1.0, "NaN"),
        ([[[1.0]]], ["a"], math.nan, "finite number of seconds"),
        ([[[1.0]]], ["a"], 0.0, "must go on"),
        ([[[1.0, 2.0]]], ["a"], 1.0, "call reset"),
    ],
)
def test_bad_frames_are_refused_and_leave_no_trace(points: Any, tracks: list[str], time_s: float, match: str) -> None:
    smoother, untouched = OneEuro(), OneEuro()
    for one in (smoother, untouched):
        one([[[0.0]]], ["a"], 0.0)
    with pytest.raises(UserError, match=match):
        smoother(points, tracks, time_s)
    np.testing.assert_array_equal(smoother([[[1.0]]], ["a"], 0.1), untouched([[[1.0]]], ["a"], 0.1))
