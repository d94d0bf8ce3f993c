"""What a measurement ran on: processor, system and versions; nothing that names the computer or its user."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("numpy", "opencv-python", "onnxruntime")


def describe_machine(libraries: Iterable[str] = LIBRARIES) -> dict[str, Any]:
    """Return `cpu`, usable `cores`, `memory_gb`, `system`, `architecture`, `python` and `versions`.

    Args:
        libraries: distributions whose versions are listed; one that is not installed is None.
    """
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in libraries},
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Return one line of text for what `describe_machine` returned."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']} {machine['architecture']}, "
        f"Python {machine['python']}, {versions}"
    )


def cpu_model() -> str:
    """Return the processor's name, as well as the system tells it."""
    for path, key in ((Path("/proc/cpuinfo"), "model name"), (Path("/proc/device-tree/model"), None)):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if key is None:
            return text.strip("\0 \n")
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown processor"


def usable_cores() -> int:
    """Return how many logical cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def power_mode(root: Path = Path("/")) -> str | None:
    """Return the name of a Jetson's power mode, such as `MAXN` or `MODE_15W`; None on other machines.

    nvpmodel keeps the mode's number in /var/lib/nvpmodel/status (`pmode:0002`) and the names in /etc/nvpmodel.conf
    (`< POWER_MODEL ID=2 NAME=MODE_15W >`); both are read, since the program itself may need privileges.

    Args:
        root: where the file system begins.
    """
    try:
        status = (root / "var/lib/nvpmodel/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    if (found := re.search(r"pmode:\s*(\d+)", status)) is None:
        return None
    number = int(found[1])
    try:
        names = (root / "etc/nvpmodel.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        names = ""
    named = re.search(rf"^\s*<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)", names, re.MULTILINE)
    return named[1] if named else f"mode {number}"


def peak_memory_mb() -> float | None:
    """Return the most resident memory that this process has had, in MB (10^6 bytes); None where unknown (Windows)."""
    # Linux's getrusage starts from the peak of the process that started this one, however large that was.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
