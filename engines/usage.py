"""What work took, by stages: time and the process's peak memory."""

from __future__ import annotations

import time
from pathlib import Path

from metro_edge.machine import peak_memory_mb

_RESET = Path("/proc/self/clear_refs")


class Usage:
    """Counts from its creation; printed, it says what all stages took together.

    Attributes:
        peak_mb: the most resident memory so far, in MB (10^6 bytes); None where unknown (Windows).
    """

    def __init__(self) -> None:
        self.start = self._stage_start = time.perf_counter()
        self._earlier_mb = 0.0
        _reset_peak()

    @property
    def peak_mb(self) -> float | None:
        """See above."""
        now = peak_memory_mb()
        return None if now is None else max(now, self._earlier_mb)

    def stage(self) -> str:
        """End a stage and return what it took; its peak is its own where the system can forget peaks (Linux)."""
        now = time.perf_counter()
        seconds, peak = now - self._stage_start, peak_memory_mb()
        self._stage_start = now
        if peak is not None:
            self._earlier_mb = max(self._earlier_mb, peak)
            _reset_peak()
        return _words(seconds, peak)

    def __str__(self) -> str:
        return _words(time.perf_counter() - self.start, self.peak_mb)


def _reset_peak() -> None:
    """Let the peak count from now on, where the system can (Linux: proc(5), clear_refs)."""
    try:
        _RESET.write_text("5")
    except OSError:
        return  # then peaks of stages are those of everything before too


def _words(seconds: float, peak_mb: float | None) -> str:
    return f"{seconds:.0f} s" + ("" if peak_mb is None else f", peak memory {peak_mb / 1000:.1f} GB")
