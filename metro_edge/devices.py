"""Known devices: what their GPU can do at most, and which TensorRT their software brings. No GPU is asked.

Figures are peaks of the GPU alone (no DLA), without structured sparsity, in TFLOPS or TOPS: NVIDIA mostly prints the
sparse figure, which is twice the dense one. `fp16`, `int8` and `fp8` are the tensor cores', `fp32` the ordinary cores'
(plans have TF32 off). On GeForce cards fp16 and fp8 hold with fp16 accumulation and halve with fp32 accumulation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from metro_edge.errors import UserError

# Software -> the TensorRT it brings. Xavier ends at JetPack 5. TensorRT 11.4 is for AGX Orin and Thor:
# https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html
_XAVIER = {"JetPack 5.1": "8.5"}
_ORIN = {"JetPack 5.1": "8.5", "JetPack 6.0": "8.6", "JetPack 6.1 and 6.2": "10.3"}
_AGX_ORIN = {**_ORIN, "JetPack 7.2.2": "11.4"}
_THOR = {"JetPack 7.0 and 7.1": "10.13", "JetPack 7.2.2": "11.4"}
_DESKTOP = {"TensorRT 10": "10.13", "TensorRT 11": "11.4"}  # the user's choice; newest whose API was read

_ORIN_NANO_SHEET = "https://www.scribd.com/document/673174036/Orin-nano-datasheet"
_ORIN_SUPER_SHEET = "NVIDIA Jetson Orin Nano Super Developer Kit datasheet, December 2024"
_ORIN_NX_SHEET = "https://github.com/icub-tech-iit/cad-libraries/files/13056089/JETSON-ORIN-NX-DATASHEET.pdf"
_AGX_ORIN_BRIEF = "http://mzph.cn/web/30785.shtml (from nvidia-jetson-agx-orin-technical-brief.pdf)"
_XAVIER_NX_SHEET = (
    "https://documents.pub/document/"
    "data-sheet-preliminary-nvidia-jetson-xavier-nx-system-on-xavier-nx-data-sheetpdf.html"
)
_THOR_ARTICLE = "https://torring.dev/blog/2026/rtx-spark-throttling/"
_HOPPER_NOTES = "https://glennklockwood.com/garden/processors/h100 (dense figures; the H200 has the same GPU)"
_H200_MEMORY = "https://lzwjava.github.io/nvidia-h200-gpu-specs-en (memory and bandwidth)"
_RTX_4060_PAGE = (
    "https://hmc-tech.com/gpu/nvidia-geforce-rtx-4060-vs-nvidia-geforce-rtx-4060 (int8 as half of int4), bandwidth "
    "from https://fpsbench.com/compare/gpu/nvidia-geforce-rtx-4060-vs-nvidia-t600"
)
_RTX_4090_PAGE = "https://hmc-tech.com/gpus/nvidia-geforce-rtx-4090-vs-nvidia-rtx-pro-5000-blackwell"
_GA102_PAPER = "NVIDIA Ampere GA102 GPU Architecture whitepaper V2.0, appendix A"
_ADA_PAPER = "NVIDIA Ada GPU Architecture whitepaper V2.01, appendix A"
_BLACKWELL_PAPER = "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix A"


@dataclass(frozen=True)
class Device:
    """A GPU that plans are made for.

    Attributes:
        name: key in DEVICES, such as `orin-nano`.
        title: what people call it.
        compute_capability: such as `8.7`.
        peaks: fp32, fp16, int8, fp8 -> TFLOPS or TOPS, dense; None where its tensor cores lack the type.
        bandwidth_gbs: of its memory, GB/s (10^9 bytes).
        memory_gb: of the GPU; Jetsons share it with the processor.
        dla_cores: deep-learning accelerators beside the GPU.
        tensorrt: software -> version of the TensorRT that it brings.
        source: data sheet of the figures, a URL where a copy of it was read.
        checked: whether the figures were compared with `source`; False: from general knowledge of that sheet.
        gpu_names: what the driver calls this GPU; the Orin modules share one name.
    """

    name: str
    title: str
    compute_capability: str
    peaks: Mapping[str, float | None]
    bandwidth_gbs: float
    memory_gb: float
    dla_cores: int
    tensorrt: Mapping[str, str]
    source: str
    checked: bool = False
    gpu_names: tuple[str, ...] = ()

    @property
    def jetson(self) -> bool:
        """Whether it is a Jetson module, whose TensorRT comes with JetPack."""
        return any(software.startswith("JetPack") for software in self.tensorrt)

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that its cores compute in, of fp32, fp16, int8, fp8."""
        return tuple(name for name, peak in self.peaks.items() if peak is not None)

    def check_computes(self, precisions: Iterable[str]) -> None:
        """Raise UserError for a precision that its cores do not compute in."""
        for precision in precisions:
            if precision not in self.precisions:
                raise UserError(f"{self.title} does not compute in {precision}; it has {', '.join(self.precisions)}")


def _peaks(fp32: float, fp16: float, int8: float, fp8: float | None = None) -> Mapping[str, float | None]:
    return MappingProxyType({"fp32": fp32, "fp16": fp16, "int8": int8, "fp8": fp8})


def _geforce(
    name: str,
    capability: str,
    peaks: Mapping[str, float | None],
    bandwidth_gbs: float,
    memory_gb: float,
    source: str,
    checked: bool = False,
) -> Device:
    title = f"GeForce RTX {name.removeprefix('rtx-')}"
    return Device(
        name,
        title,
        capability,
        peaks,
        bandwidth_gbs,
        memory_gb,
        0,
        _DESKTOP,
        source,
        checked,
        gpu_names=(f"NVIDIA {title}",),
    )


_TABLE = (
    Device(
        "orin-nano", "Jetson Orin Nano 8 GB", "8.7", _peaks(1.28, 10.0, 20.0), 68.0, 8.0, 0, _ORIN,
        _ORIN_NANO_SHEET, checked=True, gpu_names=("Orin",),
    ),
    Device(
        "orin-nano-super", "Jetson Orin Nano 8 GB, Super mode", "8.7", _peaks(2.09, 16.7, 33.4), 102.0, 8.0, 0, _ORIN,
        _ORIN_SUPER_SHEET, gpu_names=("Orin",),
    ),
    Device(
        "orin-nx", "Jetson Orin NX 16 GB", "8.7", _peaks(1.88, 15.0, 30.0), 102.4, 16.0, 2, _ORIN, _ORIN_NX_SHEET,
        gpu_names=("Orin",),
    ),
    Device(
        "agx-orin", "Jetson AGX Orin 64 GB", "8.7", _peaks(5.3, 42.5, 85.0), 204.8, 64.0, 2, _AGX_ORIN,
        _AGX_ORIN_BRIEF, checked=True, gpu_names=("Orin",),
    ),
    Device(
        "xavier-nx", "Jetson Xavier NX", "7.2", _peaks(0.845, 6.76, 13.5), 51.2, 8.0, 2, _XAVIER,
        _XAVIER_NX_SHEET, checked=True, gpu_names=("Xavier",),
    ),
    Device(
        "thor", "Jetson AGX Thor (T5000)", "11.0", _peaks(8.06, 258.0, 517.0, 517.0), 273.0, 128.0, 0, _THOR,
        _THOR_ARTICLE, gpu_names=("NVIDIA Thor",),
    ),
    _geforce("rtx-3060", "8.6", _peaks(12.7, 51.0, 102.0), 360.0, 12.0, _GA102_PAPER),
    _geforce("rtx-3090", "8.6", _peaks(35.6, 142.0, 284.0), 936.0, 24.0, _GA102_PAPER),
    _geforce("rtx-4060", "8.9", _peaks(15.1, 60.5, 121.0, 121.0), 272.0, 8.0, _RTX_4060_PAGE, checked=True),
    _geforce("rtx-4070", "8.9", _peaks(29.1, 116.6, 233.2, 233.2), 504.2, 12.0, _ADA_PAPER),
    _geforce("rtx-4090", "8.9", _peaks(82.6, 330.3, 660.6, 660.6), 1008.0, 24.0, _RTX_4090_PAGE, checked=True),
    _geforce("rtx-5060", "12.0", _peaks(19.2, 76.8, 153.5, 153.5), 448.0, 8.0, _BLACKWELL_PAPER),
    _geforce("rtx-5070", "12.0", _peaks(30.9, 123.5, 246.9, 246.9), 672.0, 12.0, _BLACKWELL_PAPER),
    _geforce("rtx-5090", "12.0", _peaks(104.8, 419.0, 838.0, 838.0), 1792.0, 32.0, _BLACKWELL_PAPER),
    Device(
        "l4", "L4", "8.9", _peaks(30.3, 121.0, 242.5, 242.5), 300.0, 24.0, 0, _DESKTOP,
        "https://grokipedia.com/page/NVIDIA_L4_vs_L40S (NVIDIA L4 data sheet, sparse figures halved)",
        checked=True, gpu_names=("NVIDIA L4",),
    ),
    Device(
        "t4", "T4", "7.5", _peaks(8.1, 65.0, 130.0), 320.0, 16.0, 0, _DESKTOP,
        "https://heise.de/news/Nvidia-Tesla-P4-K-I-Beschleuniger-mit-8-TFlops-bei-75-Watt-Leistungsaufnahme-4164684.html",
        checked=True, gpu_names=("Tesla T4", "NVIDIA T4"),
    ),
    Device(
        "h200", "H200 SXM", "9.0", _peaks(66.9, 989.4, 1978.9, 1978.9), 4800.0, 141.0, 0, _DESKTOP,
        f"{_HOPPER_NOTES}; {_H200_MEMORY}", checked=True, gpu_names=("NVIDIA H200",),
    ),
)  # fmt: skip
DEVICES: Mapping[str, Device] = MappingProxyType({entry.name: entry for entry in _TABLE})


def device(name: str) -> Device:
    """Return the device of a name, upper or lower case, `_` or space for `-`; raises UserError when unknown."""
    found = DEVICES.get(re.sub(r"[\s_]+", "-", name.strip().lower()))
    if found is None:
        raise UserError(f"unknown device {name!r}; known: {', '.join(DEVICES)}")
    return found


def device_of_gpu(gpu_name: str) -> Device | None:
    """Return the device whose GPU the driver calls `gpu_name`; None where there is none, or several."""
    found = [entry for entry in DEVICES.values() if gpu_name in entry.gpu_names]
    return found[0] if len(found) == 1 else None


def compute_capability(text: str) -> str:
    """Return the compute capability (`8.6`) that `sm86`, `8.6`, `sm_120` or a device's name stands for.

    Raises:
        UserError: neither a compute capability nor a known device.
    """
    if match := re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)", text.strip().lower()):
        return f"{match[1]}.{match[2]}"
    try:
        return device(text).compute_capability
    except UserError:
        raise UserError(
            f"{text!r} is neither a compute capability such as sm86 or 8.6 nor a device; devices: {', '.join(DEVICES)}"
        ) from None
