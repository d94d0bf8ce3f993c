"""The device table: known relations between the figures hold, names are found, unknown ones refused."""

from __future__ import annotations

import pytest

from metro_edge.devices import DEVICES, compute_capability, device, device_of_gpu
from metro_edge.errors import UserError

# Dense tensor rate over the rate of the ordinary FP32 cores, per clock and SM: (fp16, int8, fp8 or None).
RATES = {
    "7.2": (8, 16, None),  # Volta: 8 tensor cores of 64 FMA beside 64 FP32 cores; Xavier adds INT8
    "7.5": (8, 16, None),
    "8.6": (4, 8, None),  # GA10x: 4 tensor cores of 128 FMA beside 128 FP32 cores
    "8.7": (8, 16, None),  # Orin keeps the 256 FMA of GA100
    "8.9": (4, 8, 8),
    "9.0": (14.8, 29.6, 29.6),  # 16 and 32, but the FP32 figure is at 1.98 GHz and those of the tensor cores at 1.83
    "11.0": (32, 64, 64),
    "12.0": (4, 8, 8),
}


@pytest.mark.parametrize("name", DEVICES)
def test_peaks_follow_from_the_architecture(name: str) -> None:
    entry = DEVICES[name]
    rates = dict(zip(("fp16", "int8", "fp8"), RATES[entry.compute_capability], strict=True))
    fp32 = entry.peaks["fp32"]
    assert fp32 is not None
    for precision, rate in rates.items():
        peak = entry.peaks[precision]
        assert (peak is None) == (rate is None), precision
        if peak is not None and rate is not None:
            assert peak == pytest.approx(rate * fp32, rel=0.03), precision


@pytest.mark.parametrize("name", DEVICES)
def test_every_entry_is_complete(name: str) -> None:
    entry = DEVICES[name]
    assert entry.name == name and entry.title and entry.source and entry.tensorrt
    assert entry.bandwidth_gbs > 50 and entry.memory_gb >= 8
    assert not entry.checked or entry.source.startswith("http")
    assert set(entry.peaks) == {"fp32", "fp16", "int8", "fp8"}
    assert entry.jetson == entry.title.startswith("Jetson")
    assert "fp8" not in entry.precisions or float(entry.compute_capability) >= 8.9


def test_names() -> None:
    assert {"orin-nano", "orin-nano-super", "orin-nx", "agx-orin", "xavier-nx", "thor"} < set(DEVICES)
    assert {"l4", "t4", "h200"} < set(DEVICES)
    assert {f"rtx-{n}" for n in (3060, 3090, 4060, 4070, 4090, 5060, 5070, 5090)} < set(DEVICES)
    assert device("Orin_Nano") is device(" orin nano ") is DEVICES["orin-nano"]
    with pytest.raises(UserError, match="unknown device 'orin'; known: orin-nano"):
        device("orin")


def test_super_mode_is_the_same_gpu_at_another_clock() -> None:
    slow, fast = device("orin-nano"), device("orin-nano-super")
    assert slow.compute_capability == fast.compute_capability
    for precision in slow.precisions:
        assert fast.peaks[precision] == pytest.approx(slow.peaks[precision] * 1020 / 625, rel=0.03)  # MHz


def test_gpu_names() -> None:
    assert device_of_gpu("NVIDIA GeForce RTX 4090") is DEVICES["rtx-4090"]
    assert device_of_gpu("Orin") is None  # all Orin modules call theirs so
    assert device_of_gpu("NVIDIA GeForce RTX 4090 Laptop GPU") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("sm86", "8.6"), ("8.6", "8.6"), ("SM_120", "12.0"), ("86", "8.6"), ("orin-nano", "8.7"), ("RTX-4090", "8.9")],
)
def test_compute_capability(text: str, expected: str) -> None:
    assert compute_capability(text) == expected


@pytest.mark.parametrize("text", ["", "sm", "8", "8.60", "gtx-1080", "sm86,sm89"])
def test_not_a_compute_capability(text: str) -> None:
    with pytest.raises(UserError, match="neither a compute capability such as sm86 or 8.6 nor a device"):
        compute_capability(text)


def test_precisions_that_cores_lack():
    device("l4").check_computes(("int8", "fp8"))
    with pytest.raises(UserError, match="T4 does not compute in fp8; it has fp32, fp16, int8"):
        device("t4").check_computes(("fp16", "fp8"))
