from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cpu_peaks, roofline
from benchmarks.__main__ import main
from benchmarks.cpu_peaks import NAME, measure_cpu
from metro_edge.devices import DEVICES, Device
from metro_edge.machine import cpu_model, usable_cores
from tests.test_layout import ROOT


@pytest.fixture(scope="module")
def small() -> Device:
    """This CPU, measured on arrays and matrices too small to say anything."""
    return measure_cpu(array_bytes=1 << 18, sides=(64,), repeats=2)


def test_peaks_are_measured(small: Device) -> None:
    assert small.name == NAME and NAME not in DEVICES
    assert 0 < small.bandwidth_gbs < 1e5
    assert all(peak is not None and 0 < peak < 1e3 for peak in (small.peaks[p] for p in ("fp32", "fp16", "int8")))
    assert small.peaks["fp16"] >= small.peaks["fp32"] and small.peaks["fp8"] is None  # type: ignore[operator]
    assert cpu_model() in small.source and "measured" in small.source and "64 x 64" in small.source
    assert "measured" in small.title and small.precisions == ("fp32", "fp16", "int8")


def test_a_product_takes_the_time_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(cpu_peaks.time, "perf_counter", lambda: float(next(clock)))
    device = measure_cpu(array_bytes=8_000_000, sides=(100,), repeats=2)
    assert device.peaks["fp32"] == pytest.approx(2e-6) and device.peaks["int8"] == pytest.approx(2e-6)  # in one second
    assert device.bandwidth_gbs == pytest.approx(0.024)  # add: three arrays of 8 MB


def test_a_roofline_of_this_cpu(small: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(roofline, "measure_cpu", lambda: small)
    words = ["roofline", str(ROOT / "metro_edge/assets/bundle"), "--device", "this-cpu", "t4", "-o", str(tmp_path)]
    assert main(words) == 0
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert report["devices"]["this-cpu"]["measured"] == {"cpu": cpu_model(), "cores": usable_cores()}
    assert report["devices"]["t4"]["measured"] is None and report["prediction"] is True
    text = next(tmp_path.glob("*.md")).read_text()
    assert "published or measured as said below" in text and "No network was timed" in text and small.source in text
