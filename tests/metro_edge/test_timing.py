from __future__ import annotations

import numpy as np
import pytest

from metro_edge import timing
from metro_edge.errors import UserError
from metro_edge.timing import Latency, measure


class Clock:
    """A clock that moves only when it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def test_percentiles_of_known_durations(clock):
    durations_ms = iter([1000, 1000, *range(1, 102)])  # two warm-up calls, then 1 to 101 ms

    def call() -> None:
        clock.now_s += next(durations_ms) / 1000

    latency = measure(call, calls=101, warmup=2)
    np.testing.assert_allclose(latency.samples_ms, np.arange(1, 102))
    assert latency.p50_ms == pytest.approx(51) and latency.p95_ms == pytest.approx(96)
    values = latency.to_dict()
    assert values["p90_ms"] == pytest.approx(91) and values["p99_ms"] == pytest.approx(100)
    assert (values["calls"], values["warmup"], values["mean_ms"]) == (101, 2, pytest.approx(51))


def test_it_stops_at_the_limit_with_at_least_one_call(clock):
    def call() -> None:
        clock.now_s += 0.4

    assert len(measure(call, calls=50, warmup=0, limit_s=1.0).samples_ms) == 3
    assert len(measure(call, calls=50, warmup=0, limit_s=0.01).samples_ms) == 1


def test_one_sample():
    assert Latency(np.array([5.0]), 0).to_dict()["p99_ms"] == 5.0


@pytest.mark.parametrize("options", [{"calls": 0}, {"warmup": -1}, {"limit_s": 0.0}])
def test_bad_counts(options):
    with pytest.raises(UserError, match="cannot time"):
        measure(lambda: None, **options)
