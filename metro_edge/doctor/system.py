"""What the operating system tells of driver, device, power mode and clocks; only files and nvidia-smi are asked.

Where a Jetson keeps it: the release in /etc/nv_tegra_release, the power mode in nvpmodel's files (metro_edge.machine),
the clocks in /sys/class/devfreq and cpufreq, in Hz and kHz. `jetson_clocks` raises the lowest clock to the highest.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metro_edge import machine

GPU_CLOCKS = re.compile(r"gpu|ga10b|gv11b|gp10b")  # devfreq's names for the GPUs of Jetsons
SMI_FIELDS = (
    "name",
    "driver_version",
    "compute_cap",
    "pstate",
    "power.limit",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
)
SMI_TIMEOUT_S = 20.0
_NVIDIA = "0x10de"


@dataclass(frozen=True)
class System:
    """What was found; None where this machine does not tell.

    Attributes:
        distribution: ID of /etc/os-release, such as `ubuntu`.
        jetson: module and release, such as `NVIDIA Jetson Orin Nano, L4T R36.4.3`; None on other machines.
        nvidia_device: whether the PCI bus, or the Jetson, has an NVIDIA GPU; None where the bus cannot be read.
        driver: version of the kernel's driver.
        cuda: newest CUDA version that the driver serves.
        toolkit: version of nvcc.
        power_mode: of a Jetson.
        clocks: processor, GPU -> clocks, in MHz, as text.
        locked: whether jetson_clocks keeps the GPU at its highest clock; None elsewhere.
        smi: what nvidia-smi says of the first GPU, by SMI_FIELDS.
    """

    distribution: str | None
    jetson: str | None
    nvidia_device: bool | None
    driver: str | None
    cuda: str | None
    toolkit: str | None
    power_mode: str | None
    clocks: Mapping[str, str]
    locked: bool | None
    smi: Mapping[str, str]


def read_system(root: Path = Path("/")) -> System:
    """Return what files under `root`, the loaded driver and nvidia-smi tell; never raises for what is missing."""
    smi = _smi()
    gpu = _gpu_clocks(root)
    cpu = _cpu_clocks(root)
    clocks = {} if cpu is None else {"CPU": cpu}
    if gpu is not None:
        current, lowest, highest = gpu
        clocks["GPU"] = f"{current} MHz, {lowest} to {highest}"
    elif smi.get("clocks.sm", "").isdigit():
        clocks["GPU"] = f"{smi['clocks.sm']} MHz of {smi.get('clocks.max.sm', '?')}, {smi.get('pstate', '?')}"
    jetson = _jetson(root)
    return System(
        distribution=_matched(root / "etc/os-release", r'^ID="?([\w.-]+)'),
        jetson=jetson,
        nvidia_device=True if jetson or smi else _nvidia_on_pci(root),
        driver=smi.get("driver_version") or _matched(root / "proc/driver/nvidia/version", r"Module.*?\s(\d+\.[\d.]+)"),
        cuda=_driver_cuda(),
        toolkit=_toolkit(),
        power_mode=machine.power_mode(root),
        clocks=clocks,
        locked=None if gpu is None or jetson is None else gpu[1] == gpu[2],
        smi=smi,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except (OSError, ValueError):
        return ""


def _matched(path: Path, pattern: str) -> str | None:
    found = re.search(pattern, _text(path), re.MULTILINE)
    return found[1] if found else None


def _jetson(root: Path) -> str | None:
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release"))
    if found is None:
        return None
    model = _text(root / "proc/device-tree/model") or "Jetson"
    return f"{model}, L4T R{found[1]}.{found[2]}"


def _nvidia_on_pci(root: Path) -> bool | None:
    devices = root / "sys/bus/pci/devices"
    if not devices.is_dir():
        return None
    return any(
        _text(device / "vendor") == _NVIDIA and _text(device / "class").startswith("0x03")
        for device in sorted(devices.iterdir())
    )


def _gpu_clocks(root: Path) -> tuple[int, int, int] | None:
    """Return current, lowest and highest clock of a Jetson's GPU in MHz."""
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if GPU_CLOCKS.search(folder.name):
            texts = [_text(folder / name) for name in ("cur_freq", "min_freq", "max_freq")]
            if all(text.isdigit() for text in texts):
                current, lowest, highest = (int(text) // 1_000_000 for text in texts)
                return current, lowest, highest
    return None


def _cpu_clocks(root: Path) -> str | None:
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    texts = [_text(folder / name) for name in ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq")]
    if not all(text.isdigit() for text in texts):
        return None
    current, lowest, highest = (int(text) // 1000 for text in texts)
    governor = _text(folder / "scaling_governor")
    return f"{current} MHz, {lowest} to {highest}" + (f", governor {governor}" if governor else "")


def _driver_cuda() -> str | None:
    version = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _output(command: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _toolkit() -> str | None:
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    places = ["nvcc", *(str(Path(root) / "bin" / "nvcc") for root in roots if root)]
    for place in places:
        if nvcc := shutil.which(place):
            found = re.search(r"release (\d+\.\d+)", _output([nvcc, "--version"], SMI_TIMEOUT_S))
            return found[1] if found else None
    return None


def _smi() -> dict[str, str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    text = _output([program, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"], SMI_TIMEOUT_S)
    lines = text.strip().splitlines()
    values: list[Any] = [value.strip() for value in lines[0].split(",")] if lines else []
    if len(values) != len(SMI_FIELDS):
        return {}
    return {
        name: value
        for name, value in zip(SMI_FIELDS, values, strict=True)
        if "N/A" not in value and not value.startswith("[")
    }
