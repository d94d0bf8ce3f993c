"""The doctor's report: parts, whether each works, and how to mend it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metro_edge import machine
from metro_edge.doctor.probes import Answer, ask
from metro_edge.doctor.system import System, read_system
from metro_edge.errors import UserError

SCHEMA_VERSION = 1
# What somebody may need -> the parts that it takes.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("opencv", "onnxruntime", "cpu"),
    "openvino": ("openvino",),
    "tensorrt": ("driver", "gpu", "tensorrt", "pycuda"),
    "rtx": ("driver", "gpu", "tensorrt_rtx", "pycuda"),
}
TITLES = {
    "opencv": "OpenCV",
    "onnxruntime": "ONNX Runtime",
    "cpu": "CPU path",
    "openvino": "OpenVINO",
    "driver": "driver",
    "gpu": "GPU",
    "toolkit": "CUDA toolkit",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX",
    "pycuda": "PyCUDA",
}
OPTIONAL = ("toolkit",)  # nothing that ships needs it: it compiles kernels, and PyCUDA when that is installed


@dataclass(frozen=True)
class Part:
    """One row.

    Attributes:
        name: key of TITLES.
        works: whether it does.
        found: what there is, such as a version; None where nothing works.
        problem: why it does not work.
        install: the line that mends it, where one does.
    """

    name: str
    works: bool
    found: str | None
    problem: str | None = None
    install: str | None = None


@dataclass(frozen=True)
class Report:
    """What `examine` found.

    Attributes:
        version: of metro-edge.
        machine: of metro_edge.machine.describe_machine.
        system: driver, device, power mode and clocks.
        parts: in the order of TITLES.
    """

    version: str
    machine: Mapping[str, Any]
    system: System
    parts: tuple[Part, ...]

    def missing(self, need: str) -> list[Part]:
        """Return the parts of a need (NEEDS) that do not work; raises UserError for an unknown one."""
        if need not in NEEDS:
            raise UserError(f"unknown need {need!r}; known: {', '.join(NEEDS)}")
        return [part for part in self.parts if part.name in NEEDS[need] and not part.works]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values: `schema_version`, the attributes, and `needs`: need -> whether it is met."""
        return {
            "schema_version": SCHEMA_VERSION,
            "metro_edge": self.version,
            "machine": dict(self.machine),
            "system": {**asdict(self.system), "clocks": dict(self.system.clocks), "smi": dict(self.system.smi)},
            "parts": {part.name: {k: v for k, v in asdict(part).items() if k != "name"} for part in self.parts},
            "needs": {need: not self.missing(need) for need in NEEDS},
        }


def examine(root: Path = Path("/")) -> Report:
    """Look at this machine; libraries are asked in processes of their own, nothing that is missing raises.

    Args:
        root: where the file system begins.
    """
    from metro_edge import __version__

    system = read_system(root)
    questions = ("opencv", "onnxruntime", "cpu", "openvino", "gpu", "tensorrt", "tensorrt_rtx", "pycuda")
    answers = {**ask(questions), "driver": _driver(system), "toolkit": _toolkit(system)}
    if answers["driver"].found is None:
        answers["gpu"] = answers["driver"]
    parts = []
    for name in TITLES:
        answer = answers[name]
        works = answer.found is not None
        parts.append(Part(name, works, answer.found, answer.problem, None if works else install_line(name, system)))
    return Report(__version__, machine.describe_machine(()), system, tuple(parts))


def _driver(system: System) -> Answer:
    if system.cuda is None:
        none = "no NVIDIA GPU in this machine" if system.nvidia_device is False else "no NVIDIA driver answers"
        return Answer(None, none)
    return Answer(f"{system.driver or 'version unknown'}, CUDA {system.cuda}")


def _toolkit(system: System) -> Answer:
    return Answer(None, "no nvcc") if system.toolkit is None else Answer(system.toolkit)


def install_line(name: str, system: System) -> str | None:
    """Return the command that installs a part on this machine; None where none would help."""
    jetson = system.jetson is not None
    if name in ("opencv", "onnxruntime", "cpu"):
        return "pip install --force-reinstall metro-edge"
    if name == "openvino":
        return "pip install 'metro-edge[openvino]'"
    if name == "tensorrt_rtx":  # also builds where there is no GPU
        known = platform.system() == "Linux" and platform.machine() == "x86_64"
        return "pip install 'metro-edge[rtx]'" if known else None
    if name in ("driver", "gpu"):
        if system.nvidia_device is False:
            return None
        by_system = {"ubuntu": "sudo ubuntu-drivers install", "debian": "sudo apt install nvidia-driver"}
        return "sudo apt install nvidia-l4t-cuda" if jetson else by_system.get(system.distribution or "")
    if name == "toolkit":
        with_apt = jetson or system.distribution in ("ubuntu", "debian")
        return f"sudo apt install {'nvidia-jetpack' if jetson else 'nvidia-cuda-toolkit'}" if with_apt else None
    if name == "tensorrt":
        return "sudo apt install python3-libnvinfer" if jetson else "pip install 'metro-edge[tensorrt]'"
    # PyCUDA is compiled when it is installed, and needs the toolkit's headers for that.
    toolkit = None if system.toolkit else install_line("toolkit", system)
    return f"{toolkit} && pip install pycuda" if toolkit else "pip install pycuda"


def text_of(report: Report) -> str:
    """Return the report as lines for people."""
    system, this = report.system, report.machine
    lines = [
        f"metro-edge {report.version}, Python {this['python']}",
        f"{this['cpu']}, {this['cores']} cores, {this['memory_gb'] or '?'} GB, {this['system']} {this['architecture']}",
    ]
    if system.jetson:
        lines.append(system.jetson)
    lines.append("")
    for part in report.parts:
        state = "ok" if part.works else "-" if part.name in OPTIONAL else "missing"
        lines.append(f"{TITLES[part.name]:<14}{state:<9}{part.found or part.problem}")
        if not part.works and part.install:
            lines.append(f"{'':<23}{part.install}")
    if system.power_mode:
        lines.append(f"{'power mode':<23}{system.power_mode}")
    elif "power.limit" in system.smi:
        lines.append(f"{'power limit':<23}{system.smi['power.limit']} W")
    lines += [f"{name + ' clock':<23}{text}" for name, text in system.clocks.items()]
    if system.locked is not None:
        locked = "on" if system.locked else "off: clocks follow the load; for steady times: sudo jetson_clocks"
        lines.append(f"{'jetson_clocks':<23}{locked}")
    if system.jetson and any(part.name == "tensorrt" and not part.works for part in report.parts):
        lines.append("JetPack's TensorRT is seen by a virtual environment made with --system-site-packages alone.")
    lines.append("")
    for need in NEEDS:
        absent = ", ".join(TITLES[part.name] for part in report.missing(need))
        lines.append(f"{need:<14}{'lacks ' + absent if absent else 'works'}")
    return "\n".join(lines)
