"""The search on made problems, whose losses add up or do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.quantize.search import REFERENCE, Choice, search

PRECISIONS = ("int8", "fp16", REFERENCE)


@dataclass
class Made:
    """A problem with a loss and a time per item and precision, and a cost of changing type between neighbours.

    Attributes:
        harm, gain: (N, 3) mm and ms saved; nothing in fp32.
        change: ms for each neighbour of another precision.
        power: the loss of a mix is the sum of its items' losses to this power; 1 adds up.
        bias: (N,) mm that an item adds or takes away in a mix, whatever it loses by itself.
        wrong: (N, 3) ms by which the real time differs from the expected one.
    """

    harm: np.ndarray
    gain: np.ndarray
    change: float = 0.0
    power: float = 1.0
    bias: np.ndarray | float = 0.0
    wrong: np.ndarray | float = 0.0
    measured: list[Choice] = field(default_factory=list)
    precisions: Sequence[str] = PRECISIONS

    @property
    def items(self) -> list[str]:
        return [f"item {i}" for i in range(len(self.harm))]

    def _picked(self, values: np.ndarray, choice: Choice) -> np.ndarray:
        return np.array([values[i, PRECISIONS.index(p)] for i, p in enumerate(choice)])

    def harm_mm(self, item: int, precision: str) -> float:
        return float(self.harm[item, PRECISIONS.index(precision)])

    def estimate_ms(self, choice: Choice) -> float:
        changes = sum(a != b for a, b in pairwise(choice))
        return 100.0 - float(self._picked(self.gain, choice).sum()) + self.change * changes

    def lost_mm(self, choice: Choice) -> float:
        self.measured.append(choice)
        lower = np.array([p != REFERENCE for p in choice])
        bias = np.broadcast_to(np.asarray(self.bias, float), len(choice))
        return float(self._picked(self.harm, choice).sum() ** self.power + (bias * lower).sum())

    def times_ms(self, choices: Sequence[Choice]) -> list[float]:
        wrong = np.broadcast_to(np.asarray(self.wrong, float), self.harm.shape)
        return [self.estimate_ms(c) + float(self._picked(wrong, c).sum()) for c in choices]


def made(seed: int, count: int, **more) -> Made:
    random = np.random.default_rng(seed)
    scale = np.array([1.0, 0.05, 0.0])
    harm = random.exponential(0.2, (count, 1)) * random.uniform(0.5, 1.5, (count, 3)) * scale
    gain = random.uniform(-0.3, 1.0, (count, 3)) * np.array([2.0, 1.0, 0.0])
    return Made(harm, gain, **more)


problems = st.builds(
    lambda seed, count, change, power, biased, wrong: made(
        seed,
        count,
        change=change,
        power=power,
        bias=np.random.default_rng(seed + 1).normal(0, 0.05, count) if biased else 0.0,
        wrong=wrong * np.random.default_rng(seed + 2).normal(0, 1, (count, 3)) * [1, 1, 0],
    ),
    st.integers(0, 10_000),
    st.integers(1, 14),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
)


@settings(max_examples=60, deadline=None)
@given(problem=problems, budget=st.floats(0.0, 3.0), seed=st.integers(0, 3))
def test_never_over_budget_and_never_slower_than_a_uniform_mix_within_it(problem, budget, seed):
    found = search(problem, budget, seed=seed)
    assert problem.lost_mm(found.best.choice) <= budget
    assert found.best.lost_mm == problem.lost_mm(found.best.choice)
    for precision in PRECISIONS:
        uniform = (precision,) * len(problem.items)
        if problem.lost_mm(uniform) <= budget:
            assert found.best.ms <= problem.times_ms([uniform])[0] + 1e-9
    assert found.best.ms == pytest.approx(problem.times_ms([found.best.choice])[0])
    assert all(found.best.ms <= t.ms for t in found.timed if t.lost_mm <= budget)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), chance=st.integers(0, 5))
def test_the_same_for_the_same_seed(seed, chance):
    first, second = (search(made(seed, 8, change=0.1), 0.8, seed=chance) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("change", [0.0, 0.3])
def test_near_the_optimum_where_losses_add_up(change):
    shares = []
    for seed in range(12):
        problem, budget = made(seed, 7, change=change), 0.7
        mixes = [c for c in product(PRECISIONS, repeat=7) if problem.lost_mm(c) <= budget]
        optimum = 100 - min(problem.estimate_ms(c) for c in mixes)
        shares.append((100 - search(problem, budget).best.ms) / optimum)
    assert np.mean(shares) > 0.97 and min(shares) > 0.85


def test_losses_that_do_not_add_up_are_measured_not_believed():
    # Together they lose the square root of what they lose alone: an additive search would stop far too early.
    problem = Made(np.tile([1.0, 0.5, 0.0], (9, 1)), np.tile([1.0, 0.2, 0.0], (9, 1)), power=0.5)
    best = search(problem, 3.0).best
    assert set(best.choice) == {"int8"} and best.lost_mm == pytest.approx(3.0)
    # ... and the square: it must stop early.
    problem = Made(np.tile([1.0, 1.0, 0.0], (9, 1)), np.tile([1.0, 0.2, 0.0], (9, 1)), power=2.0)
    best = search(problem, 9.0).best
    assert best.choice.count("int8") == 3 and best.lost_mm == pytest.approx(9.0)


def test_items_that_lose_time_stay_exact():
    gain = np.zeros((8, 3))
    gain[:, 0] = [3, -1, 2, -1, -1, 2, 1, -2]
    best = search(Made(np.full((8, 3), 1e-4) * [1, 1, 0], gain), 1.0).best
    assert [p == "int8" for p in best.choice] == list(gain[:, 0] > 0)


def test_lone_items_that_do_not_pay_for_their_casts_stay_exact():
    gain = np.zeros((9, 3))
    gain[:, 0] = [-1, -1, 0.5, -1, -1, 1, 1, 1, 1]
    best = search(Made(np.full((9, 3), 1e-4) * [1, 1, 0], gain, change=0.4), 1.0).best
    # The lone one gains 0.5 and costs 2 x 0.4; the run of four gains 4 and costs 0.4.
    assert best.choice == (*[REFERENCE] * 5, *["int8"] * 4)


def test_time_that_turns_out_otherwise_than_expected_is_found_out():
    # INT8 is expected to gain, and loses: FP32 is the result.
    problem = Made(
        np.full((6, 3), 1e-3) * [1, 1, 0], np.full((6, 3), 1.0) * [1, 0, 0], wrong=np.full((6, 3), 3.0) * [1, 1, 0]
    )
    assert set(search(problem, 1.0).best.choice) == {REFERENCE}
    # It loses in one block alone: that block is given up.
    wrong = np.zeros((16, 3))
    wrong[4:6, 0] = 12.0
    problem = Made(np.full((16, 3), 1e-3) * [1, 1, 0], np.full((16, 3), 1.0) * [1, 0, 0], wrong=wrong)
    best = search(problem, 1.0).best
    assert [i for i, p in enumerate(best.choice) if p == REFERENCE] == [4, 5]


def test_no_more_mixes_are_measured_than_allowed():
    problem = made(3, 30, change=0.1, power=2.0)
    search(problem, 0.5, evaluations=12)
    assert len(set(problem.measured)) <= 12 + 1  # and one more when blocks are given up


def test_what_a_search_starts_from_is_measured():
    problem = made(5, 6)
    start: Choice = ("int8", "fp16", REFERENCE, "int8", "fp16", REFERENCE)
    found = search(problem, 1.0, {"mine": start})
    assert [t.choice for t in found.trials if t.origin == "mine"] == [start]


def test_what_a_search_starts_from_is_timed_however_slow_it_is_expected_to_be():
    problem = made(5, 12)
    start: Choice = ("fp16", *[REFERENCE] * 11)
    found = search(problem, 100.0, {"mine": start})
    (mine,) = (t for t in found.trials if t.choice == start)
    assert sum(t.estimate_ms < mine.estimate_ms for t in found.trials) >= 6 and mine.ms is not None
    over = search(problem, 1e-9, {"mine": start})  # but not beyond the budget
    assert all(t.ms is None for t in over.trials if t.choice == start)


def test_budget_of_nothing_gives_fp32_where_everything_costs():
    found = search(made(7, 10), 0.0)
    assert set(found.best.choice) == {REFERENCE} and found.best.lost_mm == 0.0
    assert min(t.lost_mm for t in found.trials if set(t.choice) != {REFERENCE}) > 0
