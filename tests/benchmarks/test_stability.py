"""When a measurement has settled: the rule on made-up times, and the loop on a clock of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.latency import WARMUP
from benchmarks.stability import Stability, measure_until_settled, window_percentiles
from metro_edge.errors import UserError

RULE = Stability(window=20, windows=3, within=0.05, least=60, most=200)


class Machine:
    """Frames that take what a function of their number says, on a clock that only they move."""

    def __init__(self, ms_of) -> None:
        self.now, self.calls, self.ms_of = 0.0, 0, ms_of

    def __call__(self) -> dict[str, float]:
        ms = self.ms_of(self.calls)
        self.calls += 1
        self.now += ms / 1000
        return {"whole": ms, "half": ms / 2}


def run(rule: Stability, **machines: Machine):
    return measure_until_settled(machines, rule, "whole", lambda: sum(m.now for m in machines.values()))


def test_steady_frames_settle_at_once():
    machine = Machine(lambda _: 10.0)
    done = run(RULE, a=machine)["a"]
    assert machine.calls == 60 + done.uncounted
    assert (done.settled_after, done.first, len(done.stages_ms["whole"])) == (60, 0, 60)
    assert done.uncounted == WARMUP + 3  # and one at the beginning of each window
    np.testing.assert_array_equal(done.stages_ms["half"], 5.0)


def test_frames_that_get_faster_settle_later_and_the_slow_ones_are_left_out():
    # Three windows of 20 counted frames and their uncounted ones are slow.
    done = run(RULE, a=Machine(lambda n: 20.0 if n < WARMUP + 3 * 21 else 10.0))["a"]
    assert (done.settled_after, done.first) == (60, 0)  # slow, and steady
    # With 40 % of the second window slow, only windows 3 to 5 agree.
    done = run(RULE, a=Machine(lambda n: 20.0 if n < WARMUP + 21 + 8 else 10.0))["a"]
    assert (done.settled_after, done.first) == (100, 40)
    assert done.stages_ms["whole"][done.first :].max() == 10.0


def test_a_slow_twentieth_that_comes_and_goes_never_settles():
    """The medians agree, the 95th percentiles do not."""
    done = run(RULE, a=Machine(lambda n: 30.0 if n % 42 < 3 else 10.0))["a"]
    assert done.settled_after is None and done.first == 0 and len(done.stages_ms["whole"]) == 200


def test_all_go_on_until_the_last_has_settled():
    steady, late = Machine(lambda _: 10.0), Machine(lambda n: 1000.0 / (n + 1) if n < 90 else 10.0)
    done = run(RULE, steady=steady, late=late)
    assert done["steady"].settled_after == 60 and done["late"].settled_after > 100
    assert len(done["steady"].stages_ms["whole"]) == len(done["late"].stages_ms["whole"]) == done["late"].settled_after
    assert steady.calls == late.calls


@settings(deadline=None)
@given(st.lists(st.floats(1.0, 100.0), min_size=60, max_size=130), st.floats(0.01, 0.9))
def test_settled_windows_are_within_the_share(values, within):
    rule = Stability(20, 3, within, 60, 200)
    samples = np.array(values)
    windows = window_percentiles(samples, rule)
    assert len(windows) == len(samples) // 20
    last = windows[-3:]
    apart = [max(w[k] for w in last) - min(w[k] for w in last) for k in ("p50_ms", "p95_ms")]
    middle = [float(np.median([w[k] for w in last])) for k in ("p50_ms", "p95_ms")]
    assert rule.settled(samples) == all(a <= within * m for a, m in zip(apart, middle, strict=True))


@pytest.mark.parametrize("after_calls", [1, 30])
def test_a_clock_that_goes_back_is_refused(after_calls):
    machine = Machine(lambda _: 10.0)

    def clock() -> float:
        return machine.now - (5.0 if machine.calls > WARMUP + 1 + after_calls else 0.0)

    with pytest.raises(UserError, match="clock went back"):
        measure_until_settled({"a": machine}, RULE, "whole", clock)


def test_a_negative_stage_is_refused():
    with pytest.raises(UserError, match="clock went back"):
        run(RULE, a=Machine(lambda n: 10.0 if n < 30 else -1.0))


def test_nothing_to_measure():
    with pytest.raises(UserError, match="no subject"):
        measure_until_settled({}, RULE, "whole")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 19}, "at least 20 frames for a 95th"),
        ({"windows": 1}, "two or more windows"),
        ({"within": 0.0}, "between 0 and 1"),
        ({"within": 1.0}, "between 0 and 1"),
        ({"within": float("nan")}, "between 0 and 1"),
        ({"least": 59}, "at least 60 frames"),
        ({"most": 59}, "no more at least than at most"),
    ],
)
def test_rules_that_make_no_sense(change, words):
    with pytest.raises(UserError, match=words):
        Stability(**{"window": 20, "windows": 3, "within": 0.05, "least": 60, "most": 200, **change})
