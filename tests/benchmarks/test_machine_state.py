"""The state of the machine from files that are written here, and what of it casts doubt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.machine_state import SAMPLE_S, MachineState, doubts, read_state, state_line

QUIET = MachineState(
    {"lowest": 1900.0, "median": 2000.0, "highest": 2100.0}, "performance", None, [0.4, 0.3, 0.2], 0.01, 0.0,
    {"total": 1000, "stolen": 10}, 8000.0, 5, 50.0, None,
)  # fmt: skip


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


FILES = {
    "proc/loadavg": "1.25 0.50 0.10 2/345 6789\n",
    "proc/stat": "cpu  100 0 50 800 40 0 0 10 0 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n",
    "proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 2000000 kB\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2500000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
    "sys/class/thermal/thermal_zone0/temp": "48500\n",
    "sys/class/thermal/thermal_zone1/temp": "61000\n",
}


def test_all_that_linux_tells(tmp_path):
    write(tmp_path, FILES)

    def sleep(seconds: float) -> None:
        assert seconds == SAMPLE_S
        # 100 ticks later: 30 of others' work, 60 idle, 10 stolen by the host.
        write(tmp_path, {"proc/stat": "cpu  120 0 60 850 50 0 0 20 0 0\n"})

    state = read_state(root=tmp_path, sleep=sleep)
    assert state.clock_mhz == {"lowest": 1500.0, "median": 2000.0, "highest": 2500.0}
    assert (state.governor, state.load_average, state.throttled) == ("schedutil", [1.25, 0.5, 0.1], 7)
    assert (state.busy, state.stolen) == (pytest.approx(0.3), pytest.approx(0.1))
    assert state.memory_available_mb == pytest.approx(2048.0) and state.hottest_c == 61.0
    assert state.ticks == {"total": 1100, "stolen": 20} and state.power_mode is None and state.gpu_clocks is None
    line = state_line(state.to_dict())
    assert "clock 2000 MHz" in line and "governor schedutil" in line and "throttled 7 times" in line and "61 C" in line


def test_the_clock_of_cpuinfo_where_there_is_no_cpufreq(tmp_path):
    write(tmp_path, {"proc/cpuinfo": "processor : 0\ncpu MHz\t\t: 2000.125\n\nprocessor : 1\ncpu MHz : 3000.0\n"})
    state = read_state(root=tmp_path, sleep=lambda _: None)
    assert state.clock_mhz == {"lowest": 2000.125, "median": 2500.0625, "highest": 3000.0}


def test_nothing_is_told(tmp_path):
    state = read_state(gpu=True, root=tmp_path, sleep=lambda _: None)
    assert {**state.to_dict(), "gpu_clocks": None} == dict.fromkeys(state.to_dict())
    assert state_line({**state.to_dict(), "gpu_clocks": None}) == "governor not told, throttling not told"
    assert doubts(state, state, 2) == []


def test_this_machine():
    state = read_state()
    assert state.to_dict().keys() == QUIET.to_dict().keys()
    assert state.busy is None or 0 <= state.busy <= 1


def test_a_quiet_machine_leaves_no_doubt():
    assert doubts(QUIET, replace(QUIET, ticks={"total": 2000, "stolen": 20}), 2) == []


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            {"load_average": [1.01, 0.0, 0.0]},
            {},
            "load average was 1.01 before the start, over 0.5 for each of 2 cores",
        ),
        ({"busy": 0.11}, {}, "other programs took 11% of the cores"),
        ({}, {"ticks": {"total": 2000, "stolen": 60}}, "took 5% of the cores' time"),
        ({}, {"clock_mhz": {"lowest": 1.0, "median": 1700.0, "highest": 1.0}}, "the clock changed by -15%"),
        ({}, {"throttled": 8}, "throttled for their heat 3 times"),
        ({"memory_available_mb": 400.0}, {}, "only 400 MB"),
    ],
)
def test_each_doubt(before, after, words):
    found = doubts(replace(QUIET, **before), replace(QUIET, **after), 2)
    assert len(found) == 1 and words in found[0]
