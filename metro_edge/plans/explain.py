"""What a build for a known device would do, said without building: no TensorRT and no GPU are needed.

The calls are those of metro_edge.plans.versions.configure, which runs here on an object that writes them down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from metro_edge.backends.gpu import Gpu
from metro_edge.bundle import Bundle
from metro_edge.devices import Device
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.plans.cache import KEY_LENGTH, plan_file
from metro_edge.plans.info import identity_of
from metro_edge.plans.options import BuildOptions
from metro_edge.plans.versions import (
    LIBRARIES,
    RTX_CAPABILITIES,
    Features,
    Library,
    check_fp8,
    check_options,
    configure,
    features,
    features_of,
    load_library,
)

RTX_VERSION = "1.7"  # told of where none is installed
JETSON_PLATFORM = "linux-aarch64"
TURING = "7.5"


class _Names:
    """An enumeration whose members are their names: `_Names("BuilderFlag").TF32` is `BuilderFlag.TF32`."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __getattr__(self, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        return f"{self._kind}.{name}"


class _NamesOnly:
    """A library that has every enumeration, each of names only."""

    def __getattr__(self, name: str) -> _Names:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Names(name)


class _WrittenDown:
    """A builder's configuration that writes down what is called and set."""

    def __init__(self) -> None:
        object.__setattr__(self, "lines", [])

    def __setattr__(self, name: str, value: object) -> None:
        self.lines.append(f"config.{name} = {value}")

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: object) -> None:
            self.lines.append(f"config.{name}({', '.join(map(str, arguments))})")

        return call


def calls_of(has: Features, options: BuildOptions) -> list[str]:
    """Return what a build with these options calls and sets, in the words of the Python API."""
    trt, config = cast(Library, _NamesOnly()), _WrittenDown()
    flags = "1 << STRONGLY_TYPED" if has.asks_for_strong_typing else "0"
    configure(trt, cast(Any, config), has, options)
    if options.timing_cache is not None:
        config.lines.append(f"config.set_timing_cache({options.timing_cache})")
    profiles = [f"config.add_optimization_profile(batch {profile})" for profile in options.profiles]
    return [f"builder.create_network({flags})", *config.lines, *profiles]


@dataclass(frozen=True)
class PrecisionPlan:
    """What comes of one of the bundle's graphs.

    Attributes:
        precision: of the graph.
        refused: why no plan is built; None: one is.
        plan: name in the cache of the plan that is expected; `*` stands for what only the device knows.
        key: of that plan, None where only the device knows it.
    """

    precision: str
    refused: str | None
    plan: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Build:
    """A build with one library.

    Attributes:
        software: what brings the library, such as `JetPack 6.1 and 6.2`.
        library, version: the library.
        where: on the device, or ahead of time.
        refused: why it does not build at all; None: it does.
        calls: what would be called and set.
        precisions: one per graph of the bundle.
        exact: whether keys and names are those of the library that is installed here; else its version is assumed.
    """

    software: str
    library: str
    version: str
    where: str
    refused: str | None
    calls: tuple[str, ...] = ()
    precisions: tuple[PrecisionPlan, ...] = ()
    exact: bool = False


def explain(
    device: Device, bundle: Bundle, precisions: tuple[str, ...], options: BuildOptions, library: str = "auto"
) -> list[Build]:
    """Return what each TensorRT of a device, and TensorRT-RTX ahead of time, would build; see `Build`.

    Args:
        device: that the plan is for.
        bundle: a loaded bundle.
        precisions: of its graphs.
        options: `capabilities` are those of the device.
        library: `tensorrt`, `tensorrt_rtx` or, for both, `auto`.

    Raises UserError for an unknown library.
    """
    if library != "auto" and library not in LIBRARIES:
        raise UserError(f"unknown library {library!r}; known: auto, {', '.join(LIBRARIES)}")
    builds = [
        _build(device, bundle, precisions, options, software, "tensorrt", f"{version}.0")
        for software, version in device.tensorrt.items()
        if library != "tensorrt_rtx"
    ]
    if library == "tensorrt":
        return builds
    installed = _installed_rtx()
    has = installed or features_of("tensorrt_rtx", RTX_VERSION)
    software = "TensorRT-RTX" + (", installed here" if installed else "")
    return [*builds, _build(device, bundle, precisions, options, software, "tensorrt_rtx", has.version, has)]


def _installed_rtx() -> Features | None:
    try:
        return features(load_library("tensorrt_rtx"))
    except (MissingExtraError, UserError):
        return None


def _build(
    device: Device,
    bundle: Bundle,
    precisions: tuple[str, ...],
    options: BuildOptions,
    software: str,
    library: str,
    version: str,
    has: Features | None = None,
) -> Build:
    rtx = library == "tensorrt_rtx"
    where = "ahead of time, on any x86-64 machine, without a GPU" if rtx else "on the device itself"
    known = has.capabilities if has else RTX_CAPABILITIES
    try:
        if rtx and device.compute_capability not in known:
            raise UserError(
                f"TensorRT-RTX does not build for compute capability {device.compute_capability}, it knows "
                f"{', '.join(known)}"
            )
        if rtx and device.compute_capability == TURING:
            # Seen with 1.7.1 on the graphs of the shipped bundle, in all precisions.
            raise UserError("TensorRT-RTX has no FP32 matrix products on Turing, and every graph of ours has some")
        has = has or features_of(library, version)
        target = _for_device(options, (device.compute_capability,) if rtx else ())
        if options.dla is not None and options.dla >= device.dla_cores:
            have = f"{device.dla_cores} DLA cores, numbered from 0" if device.dla_cores else "no DLA cores"
            raise UserError(f"{device.title} has {have}; core {options.dla} was asked for")
        check_options(has, target, "fp16", gpu=not rtx)
    except UserError as error:
        return Build(software, library, version, where, str(error))
    plans = tuple(_precision_plan(device, bundle, precision, target, has) for precision in precisions)
    exact = rtx and software.endswith("here")
    return Build(software, library, version, where, None, tuple(calls_of(has, target)), plans, exact)


def _for_device(options: BuildOptions, capabilities: tuple[str, ...]) -> BuildOptions:
    values = {**vars(options), "capabilities": capabilities}
    return BuildOptions(**values)


def _precision_plan(
    device: Device, bundle: Bundle, precision: str, options: BuildOptions, has: Features
) -> PrecisionPlan:
    try:
        if precision == "fp8":
            check_fp8((device.compute_capability,))
        onnx_sha256 = bundle.onnx_sha256(precision)
        check_options(has, options, precision, gpu=not has.capabilities)
    except UserError as error:
        return PrecisionPlan(precision, str(error))
    gpu = Gpu(device.gpu_names[0] if device.gpu_names else device.title, device.compute_capability)
    platform = JETSON_PLATFORM if device.jetson and not has.capabilities else None
    identity = identity_of(has, onnx_sha256, precision, options, gpu, platform=platform)
    name = plan_file(bundle, identity)
    if device.jetson and not has.capabilities:  # whose power mode, which is in the key, only the device knows
        return PrecisionPlan(precision, None, name.replace(identity.key[:KEY_LENGTH], "*"))
    return PrecisionPlan(precision, None, name, identity.key)


def text_of(device: Device, bundle: Bundle, builds: list[Build]) -> str:
    """Return `explain`'s answer for people."""
    peaks = ", ".join(f"{name} {'none' if peak is None else f'{peak:g}'}" for name, peak in device.peaks.items())
    cores = f"{device.dla_cores} DLA cores" if device.dla_cores else "no DLA"
    lines = [
        f"{device.title}: compute capability {device.compute_capability}, {device.memory_gb:g} GB at "
        f"{device.bandwidth_gbs:g} GB/s, {cores}",
        f"  dense peaks, TFLOPS or TOPS: {peaks}",
        f"  source: {device.source}{'' if device.checked else ' (not compared)'}",
        f"bundle {bundle.spec.name}: {', '.join(bundle.precisions)}",
    ]
    for build in builds:
        lines += ["", f"{build.software}: {build.library} {build.version}"]
        if build.refused is not None:
            lines.append(f"  no plan: {build.refused}")
            continue
        lines.append(f"  built {build.where}:")
        lines += [f"    {call}" for call in build.calls]
        for plan in build.precisions:
            if plan.refused is not None:
                lines.append(f"  {plan.precision}: no plan: {plan.refused}")
            else:
                lines.append(f"  {plan.precision} -> {plan.plan}")
        if any(plan.plan and plan.key is None for plan in build.precisions):
            lines.append("  (* is the hash of all that, and of the driver's name for the GPU and the power mode)")
        elif not build.exact:
            lines.append("  (names hold if the library and the driver call themselves so on the device)")
    if all(build.refused is not None for build in builds):
        lines += [
            "",
            "No plan is built so. On its CPU the bundle runs without one: `metro-edge run`",
        ]
    return "\n".join(lines)
