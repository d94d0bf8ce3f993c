"""Files of Linux that hold one number each, and the heat, clocks and throttling that every machine shows there.

Sources: the kernel's Documentation/driver-api/thermal/sysfs-api.rst (thermal zones, cooling devices),
admin-guide/pm/cpufreq.rst, ABI/testing/sysfs-class-devfreq, and arch/x86/kernel/cpu/mce/therm_throt.c for
`thermal_throttle`; NVIDIA's Jetson Linux Developer Guide R36, "Jetson Orin Nano Series, Jetson Orin NX Series and
Jetson AGX Orin Series", for the cooling devices `*-throttle-alert` and for `oc*_event_cnt`, over-current events.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.power.reader import Reader, Reading

# A thermal zone that is switched off reads -256 degrees on a Jetson, or fails.
_COLDEST_C, _HOTTEST_C = -55.0, 200.0
_GPU = re.compile(r"(^|\.)(gpu|ga10b|gv11b|gp10b|gm20b)|^gpu")
_OVER_CURRENT = {"1": "under-voltage", "2": "average over-current", "3": "instantaneous over-current"}


def text_of(path: Path) -> str | None:
    """Return the words of a small file; None when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return None


def number_of(path: Path) -> int | None:
    """Return the whole number in a file; None when there is none."""
    text = text_of(path)
    return int(text) if text and re.fullmatch(r"[+-]?\d+", text) else None


class SysfsReader(Reader):
    """Temperatures, clocks and signs of throttling; no power.

    Args:
        root: where the file system begins.
    """

    name = "sysfs"

    def __init__(self, root: Path = Path("/")) -> None:
        self._zones = [
            (name, folder / "temp")
            for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=_number)
            if (name := text_of(folder / "type"))
        ]
        self._clocks = dict(_clock_files(root))
        self._alerts = [
            (name, folder / "cur_state")
            for folder in sorted((root / "sys/class/thermal").glob("cooling_device*"), key=_number)
            if (name := text_of(folder / "type")) and name.endswith("-alert")
        ]
        self._counters = [(reason, path, number_of(path)) for reason, path in _throttle_counters(root)]

    def read(self) -> Reading:
        """Return what can be read now; a counter of events says throttled when it rose since the last reading."""
        temperatures: dict[str, float] = {}
        for name, path in self._zones:
            value = number_of(path)
            if value is not None and _COLDEST_C < value / 1000 < _HOTTEST_C:
                temperatures[name if name not in temperatures else f"{name} {path.parent.name}"] = value / 1000
        clocks = {}
        for name, (paths, per_mhz) in self._clocks.items():
            values = [value for path in paths if (value := number_of(path)) is not None]
            if values:
                clocks[name] = max(values) / per_mhz
        reasons = [name for name, path in self._alerts if (number_of(path) or 0) > 0]
        for index, (reason, path, last) in enumerate(self._counters):
            value = number_of(path)
            if value is not None and last is not None and value > last:
                reasons.append(reason)
            self._counters[index] = (reason, path, value)
        return Reading(temperature_c=temperatures, clock_mhz=clocks, throttled=tuple(dict.fromkeys(reasons)))


def _number(folder: Path) -> tuple[int, str]:
    found = re.search(r"(\d+)$", folder.name)
    return int(found[1]) if found else -1, folder.name


def _clock_files(root: Path) -> Iterator[tuple[str, tuple[list[Path], int]]]:
    """Yield unit -> files of its clock, of which the fastest counts, and how much of their unit is a MHz."""
    cores = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    if cores:
        yield "cpu", (cores, 1000)
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if _GPU.search(folder.name):
            yield "gpu", ([folder / "cur_freq"], 1_000_000)
            return


def _throttle_counters(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc[123]_event_cnt")):
        yield _OVER_CURRENT[path.name[2]], path
    # One package at least has a core 0; every core of it counts the same events.
    for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/package_throttle_count")):
        yield "CPU package over its temperature", path
