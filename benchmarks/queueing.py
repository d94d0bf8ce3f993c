"""Cameras in front of one engine: arrivals, queues that drop the oldest frame, and latency from the planned arrival.

Everything runs on one thread. Arrivals are a plan that is fixed before, so that an engine that falls behind cannot slow
them down: a frame's latency counts from when it was due, also while the engine was busy with another one. Counting from
when the frame was fetched instead would leave out the waiting ("coordinated omission").
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError

ARRIVALS = ("periodic", "poisson")
MOST_ARRIVALS = 2_000_000  # of one plan, which is held in memory
Clock = Callable[[], float]
Serve = Callable[[int], object]  # runs one frame of a camera, by its number, and waits for it


@dataclass(frozen=True, eq=False)
class Served:
    """What became of the frames that were counted.

    Attributes:
        latency_ms: (N,) float64 of those that were answered, in the order of their answers, from the planned arrival.
        camera: (N,) their cameras.
        dropped: frames that newer ones of their camera replaced.
        seconds: from the beginning of counting until the last answer, or the end of the plan where that is later.
    """

    latency_ms: NDArray[np.float64]
    camera: NDArray[np.int64]
    dropped: int
    seconds: float

    @property
    def frames(self) -> int:
        """All frames that were due."""
        return len(self.latency_ms) + self.dropped

    @property
    def per_s(self) -> float:
        """Frames answered a second."""
        return len(self.latency_ms) / self.seconds

    def missed(self, deadline_ms: float) -> int:
        """Return how many frames were dropped or answered after the deadline."""
        return self.dropped + int((self.latency_ms > deadline_ms).sum())


def check_plan(cameras: int, rate_hz: float, seconds: float, arrivals: str) -> None:
    """Raise UserError as `planned` does."""
    if cameras < 1 or not (rate_hz > 0 and seconds > 0 and np.isfinite([rate_hz, seconds]).all()):
        raise UserError(f"cannot plan {cameras} cameras at {rate_hz:g} Hz for {seconds:g} s: all must be positive")
    if arrivals not in ARRIVALS:
        raise UserError(f"unknown arrivals {arrivals!r}; known: {', '.join(ARRIVALS)}")
    if cameras * rate_hz * seconds > MOST_ARRIVALS:
        raise UserError(
            f"{cameras} cameras at {rate_hz:g} Hz for {seconds:g} s are more than {MOST_ARRIVALS:,} frames: "
            "take a lower rate or less time"
        )


def planned(cameras: int, rate_hz: float, seconds: float, arrivals: str, seed: int) -> list[tuple[float, int]]:
    """Return (seconds from the start, camera) of all arrivals, in order.

    Periodic cameras each begin at a drawn moment of their period; Poisson ones wait exponentially long between frames.

    Raises:
        UserError: no camera, a rate or time that is not positive, more than MOST_ARRIVALS frames, or other arrivals
            than ARRIVALS.
    """
    check_plan(cameras, rate_hz, seconds, arrivals)
    random = np.random.default_rng((seed, cameras))
    plan: list[tuple[float, int]] = []
    for camera in range(cameras):
        if arrivals == "periodic":
            times = np.arange(random.uniform(0, 1 / rate_hz), seconds, 1 / rate_hz)
        else:
            most = int(rate_hz * seconds + 10 * (rate_hz * seconds) ** 0.5 + 20)  # ten standard deviations
            times = np.cumsum(random.exponential(1 / rate_hz, most))
        plan += [(float(time), camera) for time in times if time < seconds]
    return sorted(plan)


def open_loop(
    plan: Sequence[tuple[float, int]],
    serve: Serve,
    *,
    seconds: float,
    queue: int,
    warm_s: float,
    clock: Clock,
    sleep: Callable[[float], object],
) -> Served:
    """Serve frames that come by plan, whatever becomes of the ones before; the frame that was due first is next.

    Args:
        plan: what `planned` returned.
        serve: runs a frame.
        seconds: of the plan; frames that wait at its end are still served and counted.
        queue: frames of each camera that may wait; one more drops that camera's oldest.
        warm_s: frames due before are served and not counted.
        clock, sleep: seconds.

    Raises:
        UserError: no room to wait, or a clock that went back.
    """
    if queue < 1:
        raise UserError(f"a queue must have room for at least 1 frame of each camera, got {queue}")
    waiting: dict[int, deque[float]] = {camera: deque() for _, camera in plan}
    latency: list[float] = []
    cameras: list[int] = []
    dropped, arrived, last = 0, 0, 0.0
    start = clock()
    while True:
        now = _since(start, clock, last)
        while arrived < len(plan) and plan[arrived][0] <= now:
            due, camera = plan[arrived]
            arrived += 1
            if len(waiting[camera]) == queue:
                dropped += waiting[camera].popleft() >= warm_s
            waiting[camera].append(due)
        ready = [camera for camera, frames in waiting.items() if frames]
        if not ready:
            if arrived == len(plan):
                break
            sleep(plan[arrived][0] - now)
            last = now
            continue
        camera = min(ready, key=lambda c: (waiting[c][0], c))
        due = waiting[camera].popleft()
        serve(camera)
        last = _since(start, clock, now)
        if due >= warm_s:
            latency.append((last - due) * 1000.0)
            cameras.append(camera)
    return Served(np.array(latency), np.array(cameras, np.int64), dropped, max(last, seconds) - warm_s)


def closed_loop(cameras: int, serve: Serve, *, seconds: float, warm_s: float, clock: Clock) -> Served:
    """Serve cameras that each send a frame when the one before is answered: nothing is dropped, nothing overtakes.

    Args:
        cameras: how many.
        serve, clock: see `open_loop`.
        seconds: no frame is sent after.
        warm_s: frames sent before are served and not counted.

    Raises:
        UserError: no camera, or a clock that went back.
    """
    if cameras < 1:
        raise UserError(f"the number of cameras must be at least 1, got {cameras}")
    sent = [(0.0, camera) for camera in range(cameras)]
    latency: list[float] = []
    answered: list[int] = []
    start, last = clock(), 0.0
    while sent:
        due, camera = heapq.heappop(sent)
        serve(camera)
        last = _since(start, clock, last)
        if due >= warm_s:
            latency.append((last - due) * 1000.0)
            answered.append(camera)
        if last < seconds:
            heapq.heappush(sent, (last, camera))
    return Served(np.array(latency), np.array(answered, np.int64), 0, max(last, seconds) - warm_s)


def largest_rate(
    probe: Callable[[float], tuple[int, int]], high: float, *, allowed: float, tolerance: float
) -> tuple[float | None, float | None, list[dict[str, float]]]:
    """Search by bisection for the largest rate at which the share of missed frames stays allowed.

    Args:
        probe: rate in Hz -> frames, and how many of them missed.
        high: where the search begins: doubled until it is too much, up to four times.
        allowed: share that may miss.
        tolerance: the search ends when the rates around lie within this share of the upper one.

    Returns:
        The largest rate that held and the smallest that did not, and all probes {`rate_hz`, `frames`, `missed`}. None
        for the first when every rate down to a hundredth of `high` missed; None for the second when none did.

    Raises:
        UserError: a rate that is not positive, or shares not between 0 and 1.
    """
    if not high > 0 or not 0 <= allowed < 1 or not 0 < tolerance < 1:
        raise UserError(
            f"a search needs a positive rate and shares from 0 to 1, got {high:g} Hz, {allowed:g} and {tolerance:g}"
        )
    probes: list[dict[str, float]] = []

    def holds(rate: float) -> bool:
        frames, missed = probe(rate)
        probes.append({"rate_hz": rate, "frames": frames, "missed": missed})
        return missed <= allowed * frames

    low: float | None = None
    least = high / 100.0
    for _ in range(5):
        if not holds(high):
            break
        low, high = high, high * 2.0
    else:
        return low, None, probes
    while high > least and high - (low or 0.0) > tolerance * high:
        middle = ((low or 0.0) + high) / 2.0
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, high, probes


def _since(start: float, clock: Clock, last: float) -> float:
    now = clock() - start
    if now < last:
        raise UserError("the clock went back during the measurement: run it again")
    return now
