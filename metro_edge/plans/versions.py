"""Every difference between TensorRT 10.0 to 11.x and TensorRT-RTX 1.x, and all that is set in their builders.

Both libraries have one API and are used through it, whichever is installed. mypy checks the calls against the stubs of
TensorRT 10.13, the tests against the recorded names of other versions. What differs, and where that was read:

- Strong typing must be asked for in 10.x, is the only kind of network in 11 (the flag is ignored) and in RTX.
  https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x-python-api-reference.html
- FP16 and INT8 builder flags, calibrators and explicit batch end with 11; none of them is used here.
- HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY comes with 10.9 (stubs of 10.8 and 10.9). RTX ignores the level.
- DLA: up to 10.7, and again from 11.4 on. https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/
  inference-library/work-with-dla.html and api/migration/tensorrt-10x-to-11x-jetson.html
- Timing caches do nothing in RTX, which chooses kernels when the plan is first run (its own deprecation warning).
- RTX alone builds ahead of time for compute capabilities; TensorRT times its kernels on the GPU that is there.
- RTX has no lean runtime, so no version-compatible plans, and compiles the weights' rearrangement of refittable plans
  for the GPU that is there (seen with 1.7.1: without a driver such builds fail).
- Version-compatible plans run with newer versions of their major, and those of 10 with 11.
  https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/getting-started/support-matrix.html
- RTX's plans run on Linux and Windows alike. tensorrt-rtx/latest/inference-library/cpu-engines.html
- Weight-stripped plans are REFIT_IDENTICAL in TensorRT, for whoever loads them has the same weights and others cost
  speed; RTX documents REFIT. REFIT of 11.3 can drop biases. https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/
  inference-library/refitting-engines.html and tensorrt-rtx/latest/inference-library/refitting-engines.html
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from metro_edge.errors import MissingExtraError, UserError
from metro_edge.plans.options import BuildOptions

if TYPE_CHECKING:
    import tensorrt as stubs

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}  # module: the extra that installs it
OLDEST = {"tensorrt": (10, 0), "tensorrt_rtx": (1, 0)}  # 10: the first strongly typed networks with Q/DQ and FP16
ANY_SYSTEM = ("tensorrt_rtx",)
MAJOR_STEPS = {10: 11}
JETSON = Path("/etc/nv_tegra_release")  # there on every Jetson
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # of 1.7
FP8_CAPABILITY = (8, 9)  # the first tensor cores with FP8, beside 9.0 and every later one


class Library(Protocol):
    """What is used of the module `tensorrt` or `tensorrt_rtx`."""

    __name__: str
    __version__: str
    Builder: type[stubs.Builder]
    BuilderFlag: type[stubs.BuilderFlag]
    DataType: type[stubs.DataType]
    DeviceType: type[stubs.DeviceType]
    ExecutionContextAllocationStrategy: type[stubs.ExecutionContextAllocationStrategy]
    HardwareCompatibilityLevel: type[stubs.HardwareCompatibilityLevel]
    LayerInformationFormat: type[stubs.LayerInformationFormat]
    LayerType: type[stubs.LayerType]
    MemoryPoolType: type[stubs.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[stubs.NetworkDefinitionCreationFlag]
    OnnxParser: type[stubs.OnnxParser]
    ProfilingVerbosity: type[stubs.ProfilingVerbosity]
    Runtime: type[stubs.Runtime]
    TensorIOMode: type[stubs.TensorIOMode]


@dataclass(frozen=True)
class Features:
    """What a version of a library has.

    Attributes:
        library, version: `tensorrt` or `tensorrt_rtx`, and its version.
        asks_for_strong_typing: networks are strongly typed only when that is asked for.
        compatibilities: of metro_edge.plans.options.COMPATIBILITIES.
        version_compatible, dla, timing_cache: whether it has them.
        refits_rightly: whether refittable plans compute what others do.
        refits_without_gpu: whether refittable and weight-stripped plans build without a driver.
        capabilities: compute capabilities that it builds for ahead of time, without a GPU.
    """

    library: str
    version: str
    asks_for_strong_typing: bool
    compatibilities: tuple[str, ...]
    version_compatible: bool
    dla: bool
    timing_cache: bool
    refits_rightly: bool
    refits_without_gpu: bool
    capabilities: tuple[str, ...]

    @property
    def name(self) -> str:
        """Library and version."""
        return f"{self.library} {self.version}"


def version_of(text: str) -> tuple[int, int]:
    """Return major and minor of `10.3.0.26`, or of `11`; raises UserError for anything else."""
    match = re.match(r"(\d+)(?:\.(\d+))?(?:\.|$)", text)
    if match is None:
        raise UserError(f"{text!r} is not a version: one such as 10.3 was expected")
    return int(match[1]), int(match[2] or 0)


def takes_plans_of(here: str, built_with: str) -> bool:
    """Whether version `here` of tensorrt runs the version-compatible plans of version `built_with`."""
    (major, _), (old_major, _) = version_of(here), version_of(built_with)
    return version_of(here) >= version_of(built_with) and major in (old_major, MAJOR_STEPS.get(old_major))


def features_of(library: str, version: str) -> Features:
    """Return what a version of `tensorrt` or `tensorrt_rtx` has, without loading it.

    Raises:
        UserError: unknown library, or a version that is too old.
    """
    if library not in LIBRARIES:
        raise UserError(f"unknown library {library!r}; known: auto, {', '.join(LIBRARIES)}")
    number = version_of(version)
    if number < OLDEST[library]:
        oldest = ".".join(map(str, OLDEST[library]))
        raise UserError(f"{library} {version} is too old: {oldest} or newer is needed")
    rtx = library == "tensorrt_rtx"
    levels = ("none",) if rtx else ("none", "ampere+") if number < (10, 9) else ("none", "same-capability", "ampere+")
    return Features(
        library=library,
        version=version,
        asks_for_strong_typing=not rtx and number < (11, 0),
        compatibilities=levels,
        version_compatible=not rtx,
        dla=not rtx and (number <= (10, 7) or number >= (11, 4)),
        timing_cache=not rtx,
        refits_rightly=rtx or number != (11, 3),
        refits_without_gpu=False,
        capabilities=RTX_CAPABILITIES if rtx else (),
    )


def features(trt: Library) -> Features:
    """Return what a loaded library has; its own list of compute capabilities counts."""
    known = features_of(trt.__name__, trt.__version__)
    if not known.capabilities:
        return known
    members = cast(Any, trt).ComputeCapability.__members__  # RTX alone has it
    names = tuple(f"{name[2:-1]}.{name[-1]}" for name in members if name.startswith("SM"))
    return replace(known, capabilities=names)


def load_library(library: str = "auto") -> Library:
    """Import and return `tensorrt` or `tensorrt_rtx`; `auto` takes the first of the two that works.

    A module without a Builder does not count: an empty namespace package lets `import tensorrt` succeed.

    Raises:
        MissingExtraError: not installed.
        UserError: unknown name, a library that fails to load, one that is too old, or a Jetson whose own is not found.
    """
    if library != "auto" and library not in LIBRARIES:
        raise UserError(f"unknown library {library!r}; known: auto, {', '.join(LIBRARIES)}")
    broken: list[str] = []
    for name in LIBRARIES if library == "auto" else (library,):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            broken.append(f"{name} is installed but does not load: {error}")
            continue
        if not hasattr(module, "Builder"):
            continue
        try:
            features_of(name, module.__version__)
        except UserError as error:
            broken.append(str(error))
            continue
        return cast(Library, module)
    if broken:
        raise UserError("; ".join(broken))
    if library != "tensorrt_rtx" and JETSON.exists():
        raise UserError(
            "tensorrt is needed to build a plan and is not in this environment. JetPack brings it for the system's "
            "Python: make the environment with `python3 -m venv --system-site-packages`"
        )
    if library == "auto":
        raise MissingExtraError("tensorrt (or tensorrt_rtx: the extra rtx)", "tensorrt", "build a plan")
    raise MissingExtraError(library, LIBRARIES[library], "build a plan")


def check_options(has: Features, options: BuildOptions, precision: str, *, gpu: bool) -> None:
    """Raise UserError, with the reason, unless a library can do what is asked for; `gpu`: whether there is one."""
    if options.capabilities and not has.capabilities:
        raise UserError(
            f"{has.name} builds for this device's GPU alone, not for {', '.join(options.capabilities)}: it times its "
            "kernels there; build on that device, or ahead of time with tensorrt_rtx"
        )
    if unknown := [name for name in options.capabilities if name not in has.capabilities]:
        raise UserError(
            f"{has.name} cannot build for compute capability {', '.join(unknown)}, it knows "
            f"{', '.join(has.capabilities)}; for a Jetson use tensorrt on the device itself"
        )
    if options.compatibility not in has.compatibilities:
        reason = (
            "its plans run on the GPUs it knows from compute capability 8.0 on, or on those named"
            if has.capabilities
            else f"it has {', '.join(has.compatibilities)}"
        )
        raise UserError(f"{has.name} has no hardware compatibility {options.compatibility!r}: {reason}")
    if options.version_compatible and not has.version_compatible:
        raise UserError(f"{has.name} cannot build version-compatible plans: it has no lean runtime")
    if options.timing_cache is not None and not has.timing_cache:
        raise UserError(f"{has.name} keeps no timing cache: it chooses kernels on the GPU when a plan is first run")
    if options.refit and not has.refits_rightly:
        raise UserError(
            f"{has.name} can drop biases of refittable plans, says NVIDIA: build without refit or with another version"
        )
    if (options.refit or options.strip_weights) and not gpu and not has.refits_without_gpu:
        raise UserError(
            f"{has.name} compiles the weights of a refittable or weight-stripped plan on a GPU, and there is no "
            "NVIDIA driver here: build it where there is one, or without refit and strip_weights"
        )
    if options.dla is not None:
        _check_dla(has, precision)
    if precision == "fp8":
        check_fp8(options.capabilities)


def _check_dla(has: Features, precision: str) -> None:
    if has.library == "tensorrt_rtx":
        raise UserError(f"{has.name} knows no DLA: tensorrt on a Jetson does")
    if not has.dla:
        raise UserError(
            f"{has.name} has no DLA: TensorRT has it up to 10.7 (JetPack 6) and from 11.4 on (JetPack 7.2.2, AGX Orin)"
        )
    if precision not in ("fp16", "int8"):
        raise UserError(f"a DLA computes in fp16 and int8, not in {precision}")


def check_fp8(capabilities: tuple[str, ...]) -> None:
    """Raise UserError where a compute capability is too low for FP8."""
    low = [name for name in capabilities if tuple(map(int, name.split("."))) < FP8_CAPABILITY]
    if low:
        raise UserError(
            f"compute capability {', '.join(low)} has no FP8 tensor cores, the first are 8.9's: use int8 or fp16"
        )


def network_flags(trt: Library, has: Features) -> int:
    """Return the argument of Builder.create_network: strongly typed, always."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if has.asks_for_strong_typing else 0


def configure(trt: Library, config: stubs.IBuilderConfig, has: Features, options: BuildOptions) -> None:
    """Set all of a builder's configuration except batches, timing cache and progress. Options were checked.

    TF32 is off: fp32 means IEEE float32. Layers are described in full, for the engine inspector.
    """
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.compatibility == "ampere+":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif options.compatibility == "same-capability":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.refit or (options.strip_weights and has.library == "tensorrt_rtx"):
        config.set_flag(trt.BuilderFlag.REFIT)
    elif options.strip_weights:
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if options.dla is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if options.capabilities:
        rtx, known = cast(Any, config), cast(Any, trt).ComputeCapability
        rtx.num_compute_capabilities = len(options.capabilities)
        for index, name in enumerate(options.capabilities):
            rtx.set_compute_capability(getattr(known, f"SM{name.replace('.', '')}"), index)


def activation_bytes(engine: stubs.ICudaEngine) -> int:
    """Return the device memory that an execution context needs, in all of its profiles; `_v2` came with 10.1."""
    size = getattr(engine, "device_memory_size_v2", None)
    return int(engine.device_memory_size if size is None else size)


def new_context(trt: Library, engine: stubs.ICudaEngine, memory: int, size: int) -> stubs.IExecutionContext | None:
    """Return an execution context with its activations in the caller's memory, None when the library fails.

    `set_device_memory` came with 10.1; 10.0 has an attribute for it, without a size.
    """
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is not None and hasattr(context, "set_device_memory"):
        context.set_device_memory(memory, size)
    elif context is not None:
        cast(Any, context).device_memory = memory
    return context
