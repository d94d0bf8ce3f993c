"""The fastest mix of precisions that keeps a budget in millimetres.

What an item costs by itself is only a guide, as losses do not add up: every mix that counts is measured as a whole.

1. Uniform mixes and those that the caller starts from are measured.
2. For prices from nothing to prohibitive (ms per mm), the mix of least time + price * expected loss is found on
   estimates, by changing single items and runs of neighbours, which share what it takes to change types between them.
   These mixes are measured by bisection around the budget, and a few others for the picture.
3. From the best that keeps the budget, changes that gain time are taken in, in order of gain per mm, half of what is
   left at a time; from one that just misses it, the dearest items are given up.
4. The fastest few are timed together with every uniform or given mix that keeps the budget. Of the fastest that is not
   FP32, and of the one that was expected to be, blocks that gain nothing when the whole is timed are given up. The
   fastest one is the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

Choice = tuple[str, ...]
REFERENCE = "fp32"
PRICES = 16
SINGLES = 7  # changes tried one by one when no half of them fits
BLOCKS = 8
WORTH = 0.015  # of the time, below which a difference between two timings may be chance


class Problem(Protocol):
    """What is searched.

    Attributes:
        items: names, in the order in which they run.
        precisions: that an item can have; fp32 among them.
    """

    @property
    def items(self) -> Sequence[str]:
        """See above."""

    @property
    def precisions(self) -> Sequence[str]:
        """See above."""

    def harm_mm(self, item: int, precision: str) -> float:
        """Return what an item is expected to lose by itself, at least 0."""

    def estimate_ms(self, choice: Choice) -> float:
        """Return the expected time of a mix; asked thousands of times."""

    def lost_mm(self, choice: Choice) -> float:
        """Measure what a mix loses."""

    def times_ms(self, choices: Sequence[Choice]) -> Sequence[float]:
        """Measure mixes together, so that their times compare."""


@dataclass(frozen=True)
class Trial:
    """A mix that was measured.

    Attributes:
        choice: precision per item.
        lost_mm: measured.
        estimate_ms: expected time.
        ms: measured time, None where it was not timed.
        origin: how the search came to it.
    """

    choice: Choice
    lost_mm: float
    estimate_ms: float
    origin: str
    ms: float | None = None


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        best: the fastest mix within the budget.
        trials: all that were measured, in that order; `best` and the timed ones with their times.
    """

    best: Trial
    trials: tuple[Trial, ...]

    @property
    def timed(self) -> tuple[Trial, ...]:
        """The trials that have a measured time, fastest first."""
        return tuple(sorted((t for t in self.trials if t.ms is not None), key=lambda t: (t.ms or 0.0, t.lost_mm)))


def search(
    problem: Problem,
    budget_mm: float,
    starts: Mapping[str, Choice] | None = None,
    *,
    evaluations: int = 40,
    timed: int = 6,
    seed: int = 0,
) -> Found:
    """Search a problem.

    Args:
        problem: what is searched; all fp32 must lose nothing.
        budget_mm: largest loss that is accepted, at least 0.
        starts: further mixes to measure and start from, by name.
        evaluations: how many mixes are measured for their loss at most; uniform and started ones always are.
        timed: how many mixes are timed besides the uniform ones and the starts.
        seed: of the order in which changes of equal worth are tried.

    Returns:
        What was found; the same for the same arguments, if the problem answers the same.
    """
    return _Search(problem, budget_mm, evaluations, timed, seed).run(dict(starts or {}))


@dataclass
class _Search:
    problem: Problem
    budget_mm: float
    evaluations: int
    timed: int
    seed: int
    trials: dict[Choice, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.count = len(self.problem.items)
        self.precisions = tuple(self.problem.precisions)
        self.harm = np.array(
            [
                [self.problem.harm_mm(i, p) if p != REFERENCE else 0.0 for p in self.precisions]
                for i in range(self.count)
            ]
        ).reshape(self.count, len(self.precisions))
        self.codes = {precision: k for k, precision in enumerate(self.precisions)}
        self.rows = np.arange(self.count)
        self.tie = np.random.default_rng(self.seed).random((self.count, len(self.precisions)))

    def run(self, starts: dict[str, Choice]) -> Found:
        uniform = {f"all {p}": (p,) * self.count for p in self.precisions}
        for name, choice in (uniform | starts).items():
            self.measure(choice, name)
        self.along_prices()
        self.refine()
        return self.time([*uniform.values(), *starts.values()])

    # What is known of a mix

    def estimate(self, choice: Choice) -> float:
        return self.problem.estimate_ms(choice)

    def expected(self, choice: Choice) -> float:
        codes = np.fromiter(map(self.codes.__getitem__, choice), np.int64, self.count)
        return float(self.harm[self.rows, codes].sum())

    def measure(self, choice: Choice, origin: str) -> Trial:
        if choice not in self.trials:
            self.trials[choice] = Trial(choice, self.problem.lost_mm(choice), self.estimate(choice), origin)
        return self.trials[choice]

    def keeps(self, trial: Trial) -> bool:
        return trial.lost_mm <= self.budget_mm

    @property
    def spent(self) -> bool:
        return len(self.trials) >= self.evaluations

    def fastest(self) -> Trial:
        """Return the mix within the budget that is expected to be the fastest."""
        return min(filter(self.keeps, self.trials.values()), key=lambda t: (t.estimate_ms, t.lost_mm))

    # 2. Prices

    def along_prices(self) -> None:
        mixes = self.mixes_by_price()
        low, high = 0, len(mixes)  # those before `low` are too dear for the budget, those from `high` on keep it
        while low < high and not self.spent:
            middle = (low + high) // 2
            if self.keeps(self.measure(mixes[middle], "price")):
                high = middle
            else:
                low = middle + 1
        for choice in mixes[:: max(1, len(mixes) // 6)]:
            if len(self.trials) < self.evaluations // 2:
                self.measure(choice, "price")

    def mixes_by_price(self) -> list[Choice]:
        """Return different mixes, from the fastest to the most exact, as estimates have it."""
        plain: Choice = (REFERENCE,) * self.count
        fastest = self.cheapest(plain, 0.0)
        gain = max(self.estimate(plain) - self.estimate(fastest), 1e-9)
        harms = self.harm[self.harm > 0]
        if not harms.size:
            return [fastest]
        # A price at which the whole gain is worth less than the least harm, and one at which any gain is worth more.
        top, bottom = gain / harms.min(), 1e-3 * gain / max(harms.sum(), 1e-12)
        found = [fastest]
        current = fastest
        for price in np.geomspace(bottom, top, PRICES):
            options = [self.cheapest(start, float(price)) for start in (current, plain)]
            current = min(options, key=lambda c, p=price: self.cost(c, float(p)))  # type: ignore[misc]
            found.append(current)
        return sorted(dict.fromkeys(found), key=lambda c: (-self.expected(c), self.estimate(c)))

    def cost(self, choice: Choice, price: float) -> float:
        return self.estimate(choice) + price * self.expected(choice)

    def cheapest(self, start: Choice, price: float) -> Choice:
        """Return the mix of least cost that single changes, and changes of runs, lead to."""
        current, least = start, self.cost(start, price)
        for _ in range(20):
            before = least
            for first, last in self.runs():
                for precision in self.precisions:
                    changed = current[:first] + (precision,) * (last - first) + current[last:]
                    if changed != current and (cost := self.cost(changed, price)) < least - 1e-12:
                        current, least = changed, cost
            if least >= before - 1e-12:
                return current
        return current

    def runs(self) -> list[tuple[int, int]]:
        """Return ranges of items that are changed together: everything, halves and so on, overlapping, single ones."""
        found = []
        size = self.count
        while size >= 1:
            step = max(1, size // 2)
            found += [(first, min(first + size, self.count)) for first in range(0, max(self.count - step, 1), step)]
            size //= 2
        return list(dict.fromkeys(found))

    # 3. Refinement

    def refine(self) -> None:
        over = [t for t in self.trials.values() if not self.keeps(t) and t.estimate_ms < self.fastest().estimate_ms]
        if over:
            self.give_up(min(over, key=lambda t: (t.lost_mm, t.estimate_ms)).choice)
        while not self.spent:
            before = self.fastest()
            changes = self.gains(before.choice)
            self.take_in(before.choice, changes)
            if self.fastest() is before and not self.swap(before, changes):
                break

    def gains(self, choice: Choice) -> list[tuple[int, str]]:
        """Return changes of single items that save time, most saved per mm first."""
        now = self.estimate(choice)
        found = []
        for i in range(self.count):
            for k, precision in enumerate(self.precisions):
                saved = now - self.estimate(_with(choice, i, precision))
                added = self.harm[i, k] - self.harm[i, self.precisions.index(choice[i])]
                if saved > 1e-3 * now / max(self.count, 1):
                    found.append((saved / max(added, 1e-9), self.tie[i, k], i, precision))
        return [(i, precision) for _, _, i, precision in sorted(found, reverse=True)]

    def take_in(self, choice: Choice, changes: list[tuple[int, str]]) -> None:
        """Take in as many changes as the budget allows: all, else the better half of them, and so on."""
        size = len(changes)
        while size and not self.spent:
            changed = choice
            for i, precision in reversed(changes[:size]):
                changed = _with(changed, i, precision)
            if self.estimate(changed) < self.estimate(choice) and self.keeps(self.measure(changed, "taken in")):
                return
            size //= 2
        for i, precision in changes[1:SINGLES]:
            changed = _with(choice, i, precision)
            if not self.spent and changed not in self.trials and self.keeps(self.measure(changed, "taken in")):
                return

    def swap(self, best: Trial, changes: list[tuple[int, str]]) -> bool:
        """Take in a change and give up the item with the most harm per ms instead; says whether that gained time."""
        for i, precision in changes[:4]:
            changed = _with(best.choice, i, precision)
            dear = sorted(
                (j for j in range(self.count) if j != i and changed[j] != REFERENCE),
                key=lambda j: self._saved_by(changed, j) / max(self._harm_of(changed, j), 1e-12),
            )
            for j in dear[:2]:
                swapped = _with(changed, j, REFERENCE)
                if self.spent or self.estimate(swapped) >= best.estimate_ms or swapped in self.trials:
                    continue
                if self.keeps(self.measure(swapped, "swapped")):
                    return True
        return False

    def give_up(self, choice: Choice) -> None:
        """Find how many items, those of most harm per ms first, have to be FP32 to keep the budget, by bisection."""
        dear = [j for j in range(self.count) if choice[j] != REFERENCE]
        dear.sort(key=lambda j: self._saved_by(choice, j) / max(self._harm_of(choice, j), 1e-12))
        low, high = 0, len(dear)
        while low < high and not self.spent:
            middle = (low + high) // 2
            changed = choice
            for j in dear[:middle]:
                changed = _with(changed, j, REFERENCE)
            if self.keeps(self.measure(changed, "given up")):
                high = middle
            else:
                low = middle + 1

    def _harm_of(self, choice: Choice, i: int) -> float:
        return float(self.harm[i, self.precisions.index(choice[i])])

    def _saved_by(self, choice: Choice, i: int) -> float:
        """Return the time that an item's precision saves beside FP32, among the others as they are."""
        return self.estimate(_with(choice, i, REFERENCE)) - self.estimate(choice)

    # 4. Time

    def time(self, always: Sequence[Choice]) -> Found:
        within = sorted(filter(self.keeps, self.trials.values()), key=lambda t: (t.estimate_ms, t.lost_mm))
        chosen = [t.choice for t in within[: self.timed]] + [t.choice for t in within if t.choice in always]
        self.compare(list(dict.fromkeys(chosen)))
        lower = [t for t in self.trials.values() if t.ms is not None and set(t.choice) != {REFERENCE}]
        if lower:
            hopeful = min(lower, key=lambda t: (t.estimate_ms, t.lost_mm))
            for choice in dict.fromkeys((min(lower, key=_time).choice, hopeful.choice)):
                self.polish(self.trials[choice])
        best = min((t for t in self.trials.values() if t.ms is not None), key=_time)
        return Found(best, tuple(self.trials.values()))

    def compare(self, choices: Sequence[Choice]) -> None:
        """Time mixes together."""
        for choice, ms in zip(choices, self.problem.times_ms(choices), strict=True):
            self.trials[choice] = replace(self.trials[choice], ms=float(ms))

    def polish(self, best: Trial) -> None:
        """Give up the blocks whose lower precision turns out to gain no time when the whole is timed."""
        edges = np.linspace(0, self.count, min(BLOCKS, self.count) + 1).astype(int)
        blocks = [(a, b) for a, b in pairwise(edges) if set(best.choice[a:b]) - {REFERENCE}]
        variants = [_exact(best.choice, a, b) for a, b in blocks]
        now, *times = self.problem.times_ms([best.choice, *variants])
        better = best.choice
        for (a, b), ms in zip(blocks, times, strict=True):
            if ms < now * (1 - WORTH):
                better = _exact(better, a, b)
        if better != best.choice and self.keeps(self.measure(better, "blocks given up")):
            timed = [t.choice for t in self.trials.values() if t.ms is not None]
            self.compare(list(dict.fromkeys([*timed, better])))


def _time(trial: Trial) -> tuple[float, float]:
    return trial.ms or 0.0, trial.lost_mm


def _with(choice: Choice, i: int, precision: str) -> Choice:
    return (*choice[:i], precision, *choice[i + 1 :])


def _exact(choice: Choice, first: int, last: int) -> Choice:
    """Return a mix with a range of items in FP32."""
    return choice[:first] + (REFERENCE,) * (last - first) + choice[last:]
