"""Energy of frames: exact on made readings, and the whole command on the files of an Orin Nano."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from benchmarks import energy
from benchmarks.__main__ import main
from benchmarks.energy import SEGMENTS, Frames, Settings, entry_of, run_steadily
from benchmarks.energy_report import energy_markdown
from benchmarks.power import choose
from benchmarks.power.jetson import Ina3221Reader
from benchmarks.power.reader import NoReaderError, Reading
from benchmarks.power.sampler import Series
from benchmarks.power.sysfs import SysfsReader
from metro_edge.errors import UserError
from tests.benchmarks.power.files import orin_nano
from tests.benchmarks.power.test_sampler import Told

BUSY_W, IDLE_W = 12.0, 3.0


def frames_of(durations: list[float], pause: float = 0.0) -> Frames:
    starts = np.concatenate([[0.0], np.cumsum(np.array(durations) + pause)[:-1]])
    return Frames(starts, starts + durations, 0)


def steady(watts: float, end: float, heat: float = 50.0, **more: object) -> Series:
    times = np.arange(-0.5, end + 1.0, 0.25)
    half = {"a": watts / 2, "b": watts / 2}
    readings = [Reading(power_w=half, temperature_c={"cpu": heat + t}, **more) for t in times]
    return Series(Told(), times, readings)


def test_joules_of_a_frame_are_those_of_the_run_with_and_without_idle():
    frames = frames_of([0.1] * 60)
    entry = entry_of("engine", frames, [steady(IDLE_W, 2.0)], [steady(BUSY_W, 6.0)])
    power = entry["power"]["told"]
    assert power["joules"] == pytest.approx(BUSY_W * 6.0)
    assert power["joules_per_frame"] == pytest.approx(BUSY_W * 0.1)
    assert power["joules_per_frame_above_idle"] == pytest.approx((BUSY_W - IDLE_W) * 0.1)
    assert power["interval"] == {"low": pytest.approx(BUSY_W * 0.1), "high": pytest.approx(BUSY_W * 0.1)}
    assert (power["mean_w"], power["max_w"], power["idle_w"]) == pytest.approx((BUSY_W, BUSY_W, IDLE_W))
    assert power["method"] == "integrated" and power["rails"]["a"]["mean_w"] == BUSY_W / 2
    assert entry["fps"] == pytest.approx(10.0) and entry["frame_ms"]["p50_ms"] == pytest.approx(100.0)
    assert entry["throttling"] == {"reasons": {}, "slowed": False, "flagged": False}
    assert 55.7 < entry["temperature_c"]["cpu"]["max"] <= 56.0  # of the run, not of after it
    series = entry["series"]["told"]
    assert series["time_s"][0] == -0.5 and len(series["power_w"]["a"]) == len(series["time_s"])


def test_pauses_of_a_camera_count_towards_its_frames():
    entry = entry_of("engine", frames_of([0.02] * 60, 0.08), [steady(1.0, 2.0)], [steady(2.0, 6.0)])
    assert entry["power"]["told"]["joules_per_frame"] == pytest.approx(2.0 * 5.92 / 60)


def test_a_counter_gives_power_over_time_too():
    times = np.arange(-0.5, 7.5, 0.5)
    series = Series(Told(), times, [Reading(energy_j={"a": 4.0 * t, "b": t}) for t in times])
    entry = entry_of("engine", frames_of([0.1] * 60), [series], [series])
    power = entry["power"]["told"]
    assert power["method"] == "counted" and power["max_w"] == pytest.approx(5.0)
    assert power["joules_per_frame_above_idle"] == pytest.approx(0.0)
    assert entry["series"]["told"]["power_w"] == {"total": [5.0] * len(times)}


def test_throttling_is_flagged_by_a_reason_or_by_frames_that_slow_down():
    told = steady(BUSY_W, 6.0, throttled=("power cap",))
    entry = entry_of("engine", frames_of([0.1] * 60), [told], [told])
    assert entry["throttling"] == {"reasons": {"power cap": 1.0}, "slowed": False, "flagged": True}
    slower = frames_of([0.1] * 40 + [0.12] * 20)
    entry = entry_of("engine", slower, [steady(1.0, 2.0)], [steady(1.0, 7.0)])
    assert entry["slowdown"] == pytest.approx(1.2) and entry["throttling"]["flagged"]


def test_too_few_frames():
    with pytest.raises(UserError, match="too few"):
        entry_of("engine", frames_of([1.0] * (SEGMENTS - 1)), [], [])


class Clock:
    """Time that passes by what is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_run_lasts_as_long_as_it_should():
    clock = Clock()
    frames = run_steadily(lambda: clock.sleep(0.05), 2.0, None, clock=clock, sleep=clock.sleep)
    assert len(frames.starts_s) == 40 and frames.late == 0
    assert np.allclose(frames.ends_s - frames.starts_s, 0.05, atol=1e-4)


def test_a_rate_is_kept_and_late_frames_are_counted():
    clock = Clock()
    frames = run_steadily(lambda: clock.sleep(0.01), 2.0, 20.0, clock=clock, sleep=clock.sleep)
    assert len(frames.starts_s) == 40 and np.allclose(np.diff(frames.starts_s), 0.05, atol=1e-4) and frames.late == 0
    clock = Clock()
    frames = run_steadily(lambda: clock.sleep(0.1), 2.0, 20.0, clock=clock, sleep=clock.sleep)
    assert len(frames.starts_s) == 20 and frames.late > 15  # as fast as it goes


def test_a_clock_that_goes_back():
    times = itertools.chain([0.0, 0.1, 0.05], itertools.repeat(9.0))
    with pytest.raises(UserError, match="clock went back"):
        run_steadily(lambda: None, 1.0, None, clock=lambda: next(times))


@pytest.fixture
def orin(tmp_path, monkeypatch):
    """This machine as an Orin Nano, and runs of moments."""
    root = orin_nano(tmp_path / "root")
    monkeypatch.setitem(choose.READERS, "ina3221", lambda _: Ina3221Reader(root))
    monkeypatch.setattr(choose, "SysfsReader", lambda _: SysfsReader(root))
    monkeypatch.setattr(energy, "LEAST_S", 0.2)
    monkeypatch.setattr(energy, "LEAST_IDLE_S", 0.1)


def test_the_command(orin, bundle, tmp_path, capsys):
    words = ["energy", str(bundle.path), "--seconds", "0.5", "--idle-seconds", "0.1", "--precision", "fp32", "int8"]
    assert main([*words, "--fps", "50", "--interval-ms", "10", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    files = {path.suffix: path for path in (tmp_path / "out").iterdir()}
    assert set(files) == {".json", ".md", ".png"} and printed == files[".md"].read_text()
    report = json.loads(files[".json"].read_text())
    assert main(["table", str(files[".json"])]) == 0 and capsys.readouterr().out == printed
    assert report["kind"] == "metro-edge energy" and report["schema_version"] == 1
    assert list(report["precisions"]) == ["fp32", "int8"]
    watts = 4.968 * 1.520
    for entry in report["precisions"].values():
        power = entry["power"]["ina3221"]
        assert power["mean_w"] == pytest.approx(watts) and power["total"] == ["VDD_IN"]
        assert power["joules_per_frame"] == pytest.approx(watts * entry["seconds"] / entry["frames"])
        assert power["joules_per_frame_above_idle"] == pytest.approx(0.0, abs=1e-9)  # its files stand still
        assert entry["clock_mhz"]["gpu"]["mean"] == 1020.0 and entry["temperature_c"]["gpu-thermal"]["last"] == 50.468
    # A busy machine may well slow down within the moments of this run.
    flagged = any(entry["throttling"]["flagged"] for entry in report["precisions"].values())
    assert ("Throttled" in printed) == flagged and ("No sign of throttling" in printed) != flagged
    assert "VDD_IN" in printed


def test_markdown_names_throttling_and_late_frames():
    told = steady(BUSY_W, 6.0, throttled=("power cap",))
    frames = frames_of([0.1] * 60)
    entry = entry_of("engine", Frames(frames.starts_s, frames.ends_s, 4), [told], [told])
    device = {"processor": "CPU", "name": "Some CPU", "backend": "onnxruntime", "threads": None, "power_mode": "MAXN"}
    machine = {"cpu": "Some CPU", "cores": 2, "system": "Linux 6", "architecture": "aarch64", "python": "3.11.0"}
    settings = {"seconds": 6.0, "idle_seconds": 2.0, "fps": 10.0, "interval_ms": 100, "segments": SEGMENTS}
    report = {
        "bundle": {"name": "tiny"}, "device": device, "machine": {**machine, "versions": {}},
        "settings": {**settings, "protocol": "made"}, "precisions": {"fp32": entry}, "metro_edge": "0.1.0",
        "created": "2026-01-02T03:04:05Z", "command": "python -m benchmarks energy",
    }  # fmt: skip
    text = energy_markdown(report, None)
    assert "**Throttled, fp32:** power cap in 100% of the readings" in text and "4 of 60 frames started late" in text
    assert "power mode MAXN" in text and "10 frames a second asked for" in text and "![" not in text


def test_a_machine_that_measures_nothing_is_refused_before_anything_is_made(bundle, tmp_path, monkeypatch, capsys):
    def absent(root):
        raise NoReaderError("none here")

    for name in choose.READERS:
        monkeypatch.setitem(choose.READERS, name, absent)
    assert main(["energy", str(bundle.path), "-o", str(tmp_path / "out")]) == 2
    assert "nothing here measures the power of the CPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"precisions": ("fp99",)}, "fp99"),
        ({"backend": "x"}, "unknown backend"),
        ({"seconds": 1.0}, "--seconds"),
        ({"seconds": float("nan")}, "--seconds"),
        ({"idle_seconds": 0.0}, "--idle-seconds"),
        ({"fps": 0.0}, "--fps"),
        ({"interval_ms": 5}, "--interval-ms"),
    ],
)
def test_settings_that_make_no_sense(values, words, tmp_path):
    with pytest.raises(UserError, match=words):
        Settings(tmp_path, **values)
