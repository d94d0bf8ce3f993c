"""What a conversion took: time and the process's peak memory."""

from __future__ import annotations

import sys
import time
from pathlib import Path

_STATUS = Path("/proc/self/status")


class Usage:
    """Counts from its creation."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __str__(self) -> str:
        seconds, peak = time.perf_counter() - self.start, peak_memory_mb()
        return f"{seconds:.0f} s" + ("" if peak is None else f", peak memory {peak / 1000:.1f} GB")


def peak_memory_mb() -> float | None:
    """Return the most resident memory that this process has had, in MB (10^6 bytes); None where unknown (Windows)."""
    # Linux's getrusage starts from the peak of the process that started this one, however large that was.
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
