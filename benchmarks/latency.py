"""Latency of several calls measured interleaved, so that their ratios survive a clock that drifts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metro_edge.errors import UserError
from metro_edge.timing import Latency

BLOCK = 10  # calls of one subject in a row: short against the drift of clocks, long against the change of subject
WARMUP = 3  # calls of each subject before anything is counted
REPORTED_PERCENT = 95
Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Ratio:
    """How long a subject takes against another one: median, least and largest over the rounds of one run."""

    median: float
    low: float
    high: float


def runs_needed(percent: float) -> int:
    """Return how many calls a percentile needs for at least one of them to lie beyond it; 20 for 95."""
    if not 0 <= percent < 100:
        raise UserError(f"a percentile must be at least 0 and below 100, got {percent}")
    return max(1, math.ceil(100.0 / (100.0 - percent) - 1e-9))


def check_runs(runs: int, percent: float = REPORTED_PERCENT) -> int:
    """Return `runs`; raises UserError when they are too few for the percentile."""
    if runs < runs_needed(percent):
        raise UserError(f"{runs} runs are too few for a {percent:g}th percentile: give at least {runs_needed(percent)}")
    return runs


def round_robin(names: Sequence[Subject], runs: int, block: int = BLOCK) -> Iterator[tuple[Subject, int]]:
    """Yield (subject, calls) until each subject has `runs` calls, in blocks, all subjects once per round.

    Each round starts one subject later, so that none always follows the same one.
    """
    for start in range(0, runs, block):
        turn = (start // block) % len(names)
        for name in (*names[turn:], *names[:turn]):
            yield name, min(block, runs - start)


def measure_interleaved(
    calls: Mapping[Subject, Callable[[], object]],
    runs: int,
    block: int = BLOCK,
    clock: Callable[[], float] = time.perf_counter,
    uncounted: int = 1,
) -> dict[Subject, Latency]:
    """Time each subject `runs` times on the monotonic clock, in alternating blocks.

    Every block begins with uncounted calls, which bring the subject's weights back into the caches, as they are
    when it runs alone.

    Args:
        calls: subject -> call that returns when its work is done; a GPU's caller must wait for it inside.
        runs: counted calls of each subject, enough for the 95th percentile.
        block: calls of one subject in a row.
        clock: seconds, never going back.
        uncounted: calls at the start of each block; more than one where the threads of the engine before go on
            spinning for a while.

    Raises:
        UserError: no subject, too few runs, a block without calls, or a clock that went back.
    """
    check_runs(runs)
    if not calls or block < 1 or uncounted < 1:
        raise UserError(f"cannot time {len(calls)} subjects in blocks of {block} calls after {uncounted}")
    for call in calls.values():
        for _ in range(WARMUP):
            call()
    samples: dict[Subject, list[float]] = {name: [] for name in calls}
    last = -math.inf
    with tqdm(total=runs * len(calls), desc="latency", unit="call", leave=False) as bar:
        for name, count in round_robin(tuple(calls), runs, block):
            call = calls[name]
            for _ in range(uncounted):
                call()
            for _ in range(count):
                before = clock()
                call()
                after = clock()
                # Also between two calls: who set the clock back then may have done it within one, unseen.
                if not last <= before <= after:
                    raise UserError("the clock went back during the measurement: run it again")
                last = after
                samples[name].append((after - before) * 1000.0)
            bar.update(count)
    warmup = WARMUP + uncounted * math.ceil(runs / block)
    return {name: Latency(np.array(values), warmup) for name, values in samples.items()}


def joined(first: Latency, second: Latency) -> Latency:
    """Return two measurements of one subject as one; the first must be of whole rounds, so that rounds stay rounds."""
    return Latency(np.concatenate([first.samples_ms, second.samples_ms]), first.warmup + second.warmup)


def ratio(latency: Latency, reference: Latency, block: int = BLOCK) -> Ratio:
    """Compare round by round two subjects of one `measure_interleaved`: median over median of their blocks.

    Raises UserError for latencies of different runs.
    """
    rounds = round_ratios(latency, reference, block)
    return Ratio(float(np.median(rounds)), float(rounds.min()), float(rounds.max()))


def round_ratios(latency: Latency, reference: Latency, block: int = BLOCK) -> NDArray[np.float64]:
    """Return the ratio of each round (R,); raises UserError as `ratio` does."""
    a, b = _block_medians(latency.samples_ms, block), _block_medians(reference.samples_ms, block)
    if len(latency.samples_ms) != len(reference.samples_ms) or not len(a):
        raise UserError(
            f"a ratio needs two subjects of one run, got {len(latency.samples_ms)} and "
            f"{len(reference.samples_ms)} calls"
        )
    # A clock too coarse for the call reads 0.
    rounds = np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)
    if np.isnan(rounds).any():
        raise UserError("the reference is too short for this clock: its median call took 0 ms")
    return rounds


def whole_rounds(latency: Latency, block: int = BLOCK) -> NDArray[np.float64]:
    """Return the calls of the complete rounds, (R, block) ms: what is resampled, as calls of one block are alike."""
    count = len(latency.samples_ms) // block
    return latency.samples_ms[: count * block].reshape(count, block)


def _block_medians(samples_ms: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    starts = range(0, len(samples_ms), block)
    return np.array([np.median(samples_ms[start : start + block]) for start in starts])
