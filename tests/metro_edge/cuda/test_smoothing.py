"""The One-Euro kernel against metro_edge.smoothing over many frames of people who come and go."""

from __future__ import annotations

import numpy as np
import pytest

from metro_edge import smoothing
from metro_edge.cuda.arrays import DeviceBuffer
from metro_edge.cuda.smoothing import OneEuro
from metro_edge.errors import UserError

SETTINGS = {"min_cutoff_hz": 0.7, "beta": 0.9, "speed_cutoff_hz": 1.3, "max_gap_s": 0.5}


def smooth(smoother: OneEuro, points: np.ndarray, tracks, time_s: float, in_place: bool = False) -> np.ndarray:
    given = DeviceBuffer.of(points.astype(np.float32))
    target = given if in_place else DeviceBuffer(points.shape, np.float32)
    smoother(given, tracks, time_s, target)
    return target.get()


@pytest.mark.gpu
@pytest.mark.parametrize(("points", "dimensions"), [(14, 3), (171, 3), (17, 2)])
def test_sixty_frames_are_those_of_the_numpy_filter(device, points, dimensions):
    """Each frame adds roundings of metres in float32, 1.2e-7, to a state that forgets: below 2e-6 m for ever."""
    r = np.random.default_rng(points)
    reference = smoothing.OneEuro(**SETTINGS)
    smoother = OneEuro(points, dimensions, device.loader, max_tracks=8, **SETTINGS)
    places = r.normal(0, 0.5, (12, points, dimensions))
    time_s = 100.0
    for frame in range(60):
        time_s += r.uniform(0.01, 0.05) if frame != 30 else 0.8  # then everybody was away too long
        places = places + r.normal(0, 0.03, places.shape)
        tracks = [int(t) for t in r.permutation(12)[: r.integers(0, 6)]]
        tracks = [t for t in tracks if t in smoother.tracks or len(smoother.tracks) < 3]
        rows = places[tracks].astype(np.float32)
        expected = reference(rows, tracks, time_s)
        got = smooth(smoother, rows, tracks, time_s, in_place=frame % 2 == 0)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)
        assert set(smoother.tracks) == set(reference.tracks)


@pytest.mark.gpu
@pytest.mark.parametrize("people", [64, 65, 130])
def test_many_people(device, people):
    r = np.random.default_rng(people)
    reference, smoother = smoothing.OneEuro(), OneEuro(5, 3, device.loader, max_tracks=130)
    for frame in range(3):
        points = r.normal(0, 1, (people, 5, 3)).astype(np.float32)
        tracks = [f"p{i}" for i in r.permutation(people)]
        expected = reference(points, tracks, 0.04 * frame)
        np.testing.assert_allclose(smooth(smoother, points, tracks, 0.04 * frame), expected, rtol=0, atol=2e-6)


@pytest.mark.gpu
def test_memory_of_those_who_left_is_used_again_and_reset_forgets(device):
    smoother = OneEuro(2, 3, device.loader, max_tracks=2, max_gap_s=0.5)
    points = np.ones((2, 2, 3), np.float32)
    smooth(smoother, points, ["a", "b"], 0.0)
    with pytest.raises(UserError, match="3 tracks, but this filter remembers 2"):
        smooth(smoother, points[:1], ["c"], 0.1)
    np.testing.assert_array_equal(smooth(smoother, 7 * points, ["c", "d"], 1.0), 7 * points)
    assert set(smoother.tracks) == {"c", "d"}
    smoother.reset()
    assert smoother.tracks == ()
    np.testing.assert_array_equal(smooth(smoother, 9 * points, ["c", "d"], 0.5), 9 * points)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "tracks", "time_s", "text"), [
    ((2, 4, 3), ["a"], 2.0, "every one of the 2 rows"), ((2, 4, 3), ["a", "a"], 2.0, "in a frame once"),
    ((1, 4, 3), ["a"], 1.0, "must go on"), ((1, 4, 3), ["a"], np.nan, "finite number of seconds"),
    ((1, 4, 2), ["a"], 2.0, r"points must be \(1, 4, 3\)"),
])  # fmt: skip
def test_frames_that_cannot_be_leave_no_trace(device, shape, tracks, time_s, text):
    smoother, reference = OneEuro(4, 3, device.loader), smoothing.OneEuro()
    first, second = np.zeros((1, 4, 3), np.float32), np.ones((1, 4, 3), np.float32)
    smooth(smoother, first, ["a"], 1.0)
    reference(first, ["a"], 1.0)
    with pytest.raises(UserError, match=text):
        smooth(smoother, np.full(shape, 9.0), tracks, time_s)
    expected = reference(second, ["a"], 1.04)
    np.testing.assert_allclose(smooth(smoother, second, ["a"], 1.04), expected, rtol=0, atol=2e-6)


@pytest.mark.gpu
def test_settings_that_cannot_be(device):
    for options in (
        {"min_cutoff_hz": 0},
        {"beta": -1},
        {"speed_cutoff_hz": np.nan},
        {"max_gap_s": 0},
        {"max_tracks": 0},
    ):
        with pytest.raises(UserError, match="must be"):
            OneEuro(4, 3, device.loader, **options)
