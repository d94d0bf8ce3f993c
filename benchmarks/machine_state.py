"""The state of the machine around a measurement: clocks, load, memory, throttling; and what of it casts doubt.

Linux tells it in /proc and /sys, each in the place named below; elsewhere, and where a virtual machine hides it, it is
None.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metro_edge.machine import power_mode, usable_cores

SAMPLE_S = 0.5  # for which this process sleeps while the others' work is counted
MAX_LOAD = 0.5  # of the cores, load average before the start
MAX_BUSY = 0.1  # of the cores' time, others' work before the start
MAX_STOLEN = 0.02  # of the cores' time, taken by the host of a virtual machine
MAX_CLOCK_CHANGE = 0.1  # from before to after
MIN_MEMORY_MB = 500.0


@dataclass(frozen=True)
class MachineState:
    """One look at the machine; None for what it does not tell.

    Attributes:
        clock_mhz: `lowest`, `median` and `highest` current clock over the cores: cpufreq, else /proc/cpuinfo.
        governor: of the first core.
        power_mode: of a Jetson.
        load_average: runnable tasks over the last 1, 5 and 15 minutes.
        busy: share of all cores' time in which anything ran, while this process slept for SAMPLE_S.
        stolen: share that the host of a virtual machine kept for itself in the same time.
        ticks: `total` and `stolen` of /proc/stat so far, for the share over the measurement.
        memory_available_mb: in 10^6 bytes.
        throttled: how often the cores were throttled for their heat since the start of the system.
        hottest_c: of the thermal zones.
        gpu_clocks: of the first GPU, in words; only where a GPU is measured.
    """

    clock_mhz: dict[str, float] | None
    governor: str | None
    power_mode: str | None
    load_average: list[float] | None
    busy: float | None
    stolen: float | None
    ticks: dict[str, int] | None
    memory_available_mb: float | None
    throttled: int | None
    hottest_c: float | None
    gpu_clocks: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return asdict(self)


def read_state(
    gpu: bool = False, root: Path = Path("/"), sleep: Callable[[float], object] = time.sleep
) -> MachineState:
    """Look at the machine; takes SAMPLE_S.

    Args:
        gpu: ask for the GPU's clocks, too.
        root: where the file system begins.
        sleep: waits some seconds.
    """
    before = _ticks(root)
    sleep(SAMPLE_S)
    busy = stolen = None
    after = _ticks(root)
    if before is not None and after is not None and after[0] > before[0]:
        total = after[0] - before[0]
        busy, stolen = (after[1] - before[1]) / total, (after[2] - before[2]) / total
    load = _text(root / "proc/loadavg").split()
    return MachineState(
        clock_mhz=_clocks(root),
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        power_mode=power_mode(root),
        load_average=[float(word) for word in load[:3]] if len(load) >= 3 else None,
        busy=busy,
        stolen=stolen,
        ticks=None if after is None else {"total": after[0], "stolen": after[2]},
        memory_available_mb=_memory_mb(root),
        throttled=_sum(root, "cpu[0-9]*/thermal_throttle/core_throttle_count"),
        hottest_c=_hottest(root),
        gpu_clocks=_gpu_clocks(root) if gpu else None,
    )


def doubts(before: MachineState, after: MachineState, cores: int | None = None) -> list[str]:
    """Return, in words, what of the machine's state casts doubt on the times measured between two looks."""
    cores = usable_cores() if cores is None else cores
    found = []
    if before.load_average is not None and before.load_average[0] > MAX_LOAD * cores:
        found.append(
            f"background load: the load average was {before.load_average[0]:.2f} before the start, over "
            f"{MAX_LOAD:g} for each of {cores} cores"
        )
    if before.busy is not None and before.busy > MAX_BUSY:
        found.append(f"background load: other programs took {before.busy:.0%} of the cores before the start")
    if before.ticks and after.ticks and after.ticks["total"] > before.ticks["total"]:
        stolen = (after.ticks["stolen"] - before.ticks["stolen"]) / (after.ticks["total"] - before.ticks["total"])
        if stolen > MAX_STOLEN:
            found.append(f"the host of this virtual machine took {stolen:.0%} of the cores' time meanwhile")
    if before.clock_mhz and after.clock_mhz:
        change = after.clock_mhz["median"] / before.clock_mhz["median"] - 1.0
        if abs(change) > MAX_CLOCK_CHANGE:
            found.append(f"the clock changed by {change:+.0%} from before to after")
    if before.throttled is not None and after.throttled is not None and after.throttled > before.throttled:
        found.append(f"the cores were throttled for their heat {after.throttled - before.throttled} times")
    if before.memory_available_mb is not None and before.memory_available_mb < MIN_MEMORY_MB:
        found.append(f"only {before.memory_available_mb:.0f} MB of memory were left before the start")
    return found


def state_line(state: dict[str, Any]) -> str:
    """Return one line of text for what `MachineState.to_dict` returned."""
    clock, load = state["clock_mhz"], state["load_average"]
    parts = [
        None if clock is None else f"clock {clock['median']:.0f} MHz",
        f"governor {state['governor'] or 'not told'}",
        state["power_mode"] and f"power mode {state['power_mode']}",
        None if load is None else f"load average {load[0]:.2f}",
        None if state["busy"] is None else f"others busy {state['busy']:.0%} of the cores",
        None
        if state["memory_available_mb"] is None
        else f"{state['memory_available_mb'] / 1000:.1f} GB of memory free",
        "throttling not told" if state["throttled"] is None else f"throttled {state['throttled']} times so far",
        None if state["hottest_c"] is None else f"{state['hottest_c']:.0f} C",
        state["gpu_clocks"] and f"GPU {state['gpu_clocks']}",
    ]
    return ", ".join(part for part in parts if part)


def _text(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    return ""


def _ticks(root: Path) -> tuple[int, int, int] | None:
    """Return total, busy and stolen ticks of all cores; idle are the fourth and fifth, stolen the eighth (proc(5))."""
    words = _text(root / "proc/stat").split("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu":
        return None
    ticks = [int(word) for word in words[1:9]]  # what follows, guests' time, is in user and nice already
    return sum(ticks), sum(ticks) - ticks[3] - ticks[4] - ticks[7], ticks[7]


def _clocks(root: Path) -> dict[str, float] | None:
    folder = root / "sys/devices/system/cpu"
    texts = [_text(path) for path in folder.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    values = [int(text) / 1000.0 for text in texts if text.isdigit()]
    if not values:
        lines = (line.partition(":") for line in _text(root / "proc/cpuinfo").splitlines())
        values = [float(value) for name, _, value in lines if name.strip() == "cpu MHz"]
    if not values or min(values) <= 0:
        return None
    return {"lowest": min(values), "median": statistics.median(values), "highest": max(values)}


def _memory_mb(root: Path) -> float | None:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def _sum(root: Path, pattern: str) -> int | None:
    texts = [_text(path) for path in (root / "sys/devices/system/cpu").glob(pattern)]
    values = [int(text) for text in texts if text.isdigit()]
    return sum(values) if values else None


def _hottest(root: Path) -> float | None:
    texts = [_text(path) for path in (root / "sys/class/thermal").glob("thermal_zone*/temp")]
    values = [int(text) / 1000.0 for text in texts if text.lstrip("-").isdigit()]
    return max(values) if values else None


def _gpu_clocks(root: Path) -> str | None:
    from metro_edge.doctor.system import read_system

    return read_system(root).clocks.get("GPU")
