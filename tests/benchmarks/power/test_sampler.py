"""What readings in the background add up to."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.power.reader import Reader, Reading
from benchmarks.power.sampler import Sampler, Series
from metro_edge.errors import UserError


class Told(Reader):
    """Gives what it was told, the last again and again."""

    name, total, scope = "told", ("a", "b"), "both"

    def __init__(self, *readings: Reading | UserError) -> None:
        self._readings = itertools.chain(readings, itertools.repeat(readings[-1] if readings else Reading()))

    def read(self) -> Reading:
        reading = next(self._readings)
        if isinstance(reading, UserError):
            raise reading
        return reading


def power(*pairs: tuple[float, float]) -> list[Reading]:
    return [Reading(power_w={"a": a, "b": b, "of another": 1e9}) for a, b in pairs]


def energy(*values: float) -> list[Reading]:
    return [Reading(energy_j={"a": value, "b": 2 * value}) for value in values]


def test_power_is_integrated_over_the_rails_that_count():
    series = Series(Told(), [0.0, 1.0, 2.0], power((1, 1), (3, 1), (3, 1)))
    assert not series.counted
    assert series.energy_j(0.0, 2.0) == pytest.approx(3.0 + 4.0)
    assert series.energy_j(0.5, 1.5) == pytest.approx(0.5 * (3.0 + 4.0) / 2 + 0.5 * 4.0)


@given(
    st.lists(st.floats(0.01, 1.0), min_size=2, max_size=30),
    st.lists(st.floats(0.0, 100.0), min_size=31, max_size=31),
    st.floats(0.05, 0.95),
)
def test_parts_of_a_run_add_up(steps, watts, share):
    times = np.concatenate([[5.0], 5.0 + np.cumsum(steps)])
    series = Series(Told(), times, power(*((w, 1.0) for w in watts[: len(times)])))
    cut = 5.0 + share * (times[-1] - 5.0)
    whole = series.energy_j(5.0, times[-1])
    assert series.energy_j(5.0, cut) + series.energy_j(cut, times[-1]) == pytest.approx(whole, rel=1e-9, abs=1e-9)


def test_a_counter_is_read_between_readings_and_gives_power():
    series = Series(Told(), [0.0, 1.0, 4.0], energy(10, 12, 18))
    assert series.counted
    assert series.energy_j(0.5, 4.0) == pytest.approx(3 * (18 - 11))  # a gap of 3 s does not matter to a counter
    times, watts = series.power_w()
    assert times.tolist() == [0.5, 2.5] and watts.tolist() == [6.0, 6.0]


def test_a_gap_makes_integrated_power_a_guess():
    series = Series(Told(), [0.0, 1.0, 4.0], power((1, 1), (1, 1), (1, 1)))
    with pytest.raises(UserError, match=r"no reading for 3\.0 s"):
        series.energy_j(0.0, 4.0)


def test_a_rail_that_was_lost_is_named():
    series = Series(Told(), [0.0, 1.0], [*power((1, 1)), Reading(power_w={"a": 1.0})])
    with pytest.raises(UserError, match="told lost b"):
        series.energy_j(0.0, 1.0)
    assert np.isnan(series.values("power_w", "b")[1])


def test_times_beyond_the_readings():
    series = Series(Told(), [1.0, 2.0], power((1, 1), (1, 1)))
    for start, end in ((0.5, 1.5), (1.5, 2.5), (1.5, 1.5)):
        with pytest.raises(UserError, match="no readings of told around"):
            series.energy_j(start, end)


@pytest.mark.parametrize("times", [[0.0, 0.0], [1.0, 0.5]])
def test_a_clock_that_jumps_back(times):
    with pytest.raises(UserError, match="clock went back"):
        Series(Told(), times, power((1, 1), (1, 1)))


def test_one_reading_is_too_few():
    with pytest.raises(UserError, match="1 readings"):
        Series(Told(), [0.0], power((1, 1)))


def test_sampling_covers_what_runs():
    with Sampler([Told(*power((2, 3))), Told(*energy(1))], interval_s=0.005) as sampler:
        start = time.perf_counter()
        time.sleep(0.05)
        end = time.perf_counter()
    first, second = sampler.series()
    assert len(first.readings) > 3 and second.counted
    assert first.energy_j(start, end) == pytest.approx(5.0 * (end - start))


def test_a_reader_that_fails_meanwhile():
    with Sampler([Told(*power((1, 1)), UserError("the rail is gone"))], interval_s=0.005) as sampler:
        time.sleep(0.05)
    with pytest.raises(UserError, match="the rail is gone"):
        sampler.series()


def test_sampling_ends_with_an_error():
    sampler = Sampler([Told(*power((1, 1)))], interval_s=0.005)
    with pytest.raises(RuntimeError, match="elsewhere"), sampler:
        raise RuntimeError("elsewhere")
    assert not any(thread.is_alive() for thread in sampler._threads)
