"""Readings in the background while something else runs, and what they add up to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.power.reader import Reader, Reading
from metro_edge.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

LONGEST_GAP_S = 2.0  # between two readings of power; what was drawn between them would be a guess
_JOIN_S = 15.0
FloatArray = NDArray[np.float64]


class Series:
    """Readings of one reader in order.

    Args:
        reader: whose they are.
        times_s: (N,) of a monotonic clock, N at least 2.
        readings: N of them.

    Raises:
        UserError: fewer than two readings, or a clock that went back or stood still.
    """

    def __init__(self, reader: Reader, times_s: Sequence[float], readings: Sequence[Reading]) -> None:
        self.reader = reader
        self.times_s = np.asarray(times_s, np.float64)
        self.readings = tuple(readings)
        if len(self.readings) < 2:
            raise UserError(f"{reader.name} gave {len(self.readings)} readings: measure longer")
        if not (np.diff(self.times_s) > 0).all():
            raise UserError("the clock went back during the measurement: run it again")

    @property
    def counted(self) -> bool:
        """Whether energy is counted by the device, and not integrated from power here."""
        return self._all_have("energy_j")

    @property
    def longest_gap_s(self) -> float:
        """Longest time between two readings."""
        return float(np.diff(self.times_s).max())

    def values(self, kind: str, name: str) -> FloatArray:
        """Return (N,) of one quantity, such as `temperature_c` of `gpu`; NaN where a reading lacks it."""
        return np.array([getattr(reading, kind).get(name, np.nan) for reading in self.readings])

    def names(self, kind: str) -> list[str]:
        """Return what a quantity was read of."""
        return list(dict.fromkeys(name for reading in self.readings for name in getattr(reading, kind)))

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Return what was drawn between two times, of all that counts towards the reader's total.

        Raises:
            UserError: times beyond the readings, a rail that was not read every time, or, where power is integrated,
                no reading for LONGEST_GAP_S.
        """
        if not self.times_s[0] <= start_s < end_s <= self.times_s[-1]:
            raise UserError(f"no readings of {self.reader.name} around the time that is measured")
        if self.counted:
            total = self._sum("energy_j")
            ends = np.interp([start_s, end_s], self.times_s, total)
            return float(ends[1] - ends[0])
        if self.longest_gap_s > LONGEST_GAP_S:
            raise UserError(
                f"{self.reader.name} gave no reading for {self.longest_gap_s:.1f} s: the machine slept or was too "
                "busy; measure again"
            )
        power = self._sum("power_w")
        inside = (self.times_s > start_s) & (self.times_s < end_s)
        times = np.array([start_s, *self.times_s[inside], end_s])
        watts = np.interp(times, self.times_s, power)
        return float(np.sum(np.diff(times) * (watts[1:] + watts[:-1]) / 2))

    def power_w(self) -> tuple[FloatArray, FloatArray]:
        """Return times (M,) and watts (M,) of the total: as read, or from one reading of a counter to the next."""
        if self._all_have("power_w"):
            return self.times_s, self._sum("power_w")
        energy = self._sum("energy_j")
        return (self.times_s[1:] + self.times_s[:-1]) / 2, np.diff(energy) / np.diff(self.times_s)

    def _all_have(self, kind: str) -> bool:
        return all(set(self.reader.total) <= getattr(reading, kind).keys() for reading in self.readings)

    def _sum(self, kind: str) -> FloatArray:
        if not self._all_have(kind):
            lacking = next(
                name for reading in self.readings for name in self.reader.total if name not in getattr(reading, kind)
            )
            raise UserError(f"{self.reader.name} lost {lacking} during the measurement: measure again")
        return np.sum([self.values(kind, name) for name in self.reader.total], axis=0)


class Sampler:
    """Reads under `with`, from before what runs there until after it.

    Args:
        readers: open ones; each gets a thread, as one may wait for its next line.
        interval_s: between readings.
        clock: seconds, monotonic.
    """

    def __init__(
        self, readers: Sequence[Reader], interval_s: float = 0.1, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._readers, self._interval_s, self._clock = readers, interval_s, clock
        self._end = threading.Event()
        self._samples: list[list[tuple[float, Reading]]] = [[] for _ in readers]
        self._errors: list[UserError] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for reader, samples in zip(self._readers, self._samples, strict=True):
            samples.append(self._sample(reader))
        self._threads = [
            threading.Thread(target=self._follow, args=pair, daemon=True, name=pair[0].name)
            for pair in zip(self._readers, self._samples, strict=True)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(_JOIN_S)
        if error is None and not self._errors:
            for reader, samples in zip(self._readers, self._samples, strict=True):
                samples.append(self._sample(reader))

    def series(self) -> list[Series]:
        """Return what was read, reader by reader; raises UserError when a reader failed meanwhile, and as `Series`."""
        if self._errors:
            raise self._errors[0]
        return [
            Series(reader, *zip(*samples, strict=True))
            for reader, samples in zip(self._readers, self._samples, strict=True)
        ]

    def _sample(self, reader: Reader) -> tuple[float, Reading]:
        reading = reader.read()  # waits for the next line, whose time is when it comes
        return self._clock(), reading

    def _follow(self, reader: Reader, samples: list[tuple[float, Reading]]) -> None:
        while not self._end.wait(self._interval_s):
            try:
                samples.append(self._sample(reader))
            except UserError as error:
                self._errors.append(error)
                return
