"""TensorRT and TensorRT-RTX: plans built from ONNX.

Both libraries have one API and are used through it, whichever is installed. Networks are strongly typed: the
precision is the ONNX graph's own (typed FP16, Q/DQ INT8), so one graph serves TensorRT 10, TensorRT 11 and
TensorRT-RTX. TensorRT builds for the GPU it runs on; TensorRT-RTX builds on the CPU, for every GPU from
compute capability 8.0 on.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from metro_edge.backends.gpu import first_gpu
from metro_edge.backends.tensorrt_log import attach_progress, logger_of
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.files import json_bytes, replacing, sha256_of
from metro_edge.spec import check_precision

PLAN_SCHEMA_VERSION = 1
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}  # module: the extra that installs it
OLDEST_TENSORRT = 10  # the first with strongly typed networks that parse Q/DQ and FP16 alike
RTX_DEFAULT_CAPABILITIES = ("8.0+",)


@dataclass(frozen=True)
class PlanInfo:
    """What a plan was built from, with and for: the text of `<plan>.json`.

    Attributes:
        plan_sha256, plan_bytes: of the plan file.
        onnx_name, onnx_sha256: file name and hash of the ONNX graph.
        precision: fp32, fp16 or int8, as found in the graph.
        library, library_version: `tensorrt` or `tensorrt_rtx`, and its version.
        platform: operating system and processor, such as `linux-x86_64`.
        gpu: name of the GPU that the plan was built on, None where none took part.
        compute_capabilities: where it runs: `8.7` is that one, `8.0+` that one and every newer one.
        max_batch, optimal_batch: largest batch, and the one that the kernels are chosen for.
        workspace_mb: limit of scratch memory while building; None is the library's own.
        schema_version: of this file.
    """

    plan_sha256: str
    plan_bytes: int
    onnx_name: str
    onnx_sha256: str
    precision: str
    library: str
    library_version: str
    platform: str
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    max_batch: int
    optimal_batch: int
    workspace_mb: int | None
    schema_version: int = PLAN_SCHEMA_VERSION

    @staticmethod
    def path_of(plan_path: Path) -> Path:
        """Return the path of the sidecar of a plan: `model.plan` has `model.plan.json`."""
        return plan_path.with_name(plan_path.name + ".json")

    @classmethod
    def load(cls, plan_path: str | os.PathLike[str]) -> PlanInfo:
        """Read the sidecar of a plan and check the plan against it.

        Raises:
            UserError: plan or sidecar is missing or of another version, or they do not belong together.
        """
        plan_path = Path(plan_path)
        sidecar = cls.path_of(plan_path)
        for path in (plan_path, sidecar):
            if not path.is_file():
                raise UserError(f"{path} does not exist; build the plan with `metro-edge build`")
        try:
            values = json.loads(sidecar.read_text(encoding="utf-8"))
            if values.get("schema_version") != PLAN_SCHEMA_VERSION:
                raise ValueError(f"schema version {values.get('schema_version')!r}, not {PLAN_SCHEMA_VERSION}")
            if values.keys() != {field.name for field in fields(cls)}:
                raise ValueError("other fields than a plan's description has")
            info = cls(**{**values, "compute_capabilities": tuple(values["compute_capabilities"])})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{sidecar} is not the description of a plan ({error}); build the plan again") from None
        if sha256_of(plan_path.read_bytes()) != info.plan_sha256:
            raise UserError(f"{plan_path} is not the plan that {sidecar.name} describes; build the plan again")
        return info


def load_library(library: str = "auto") -> Any:
    """Import and return `tensorrt` or `tensorrt_rtx`; `auto` takes the first of the two that works.

    A module without a Builder does not count: an empty namespace package lets `import tensorrt` succeed.

    Raises:
        MissingExtraError: not installed.
        UserError: unknown name, a library that fails to load, or a TensorRT older than 10.
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
        if name == "tensorrt" and int(module.__version__.split(".")[0]) < OLDEST_TENSORRT:
            broken.append(f"tensorrt {module.__version__} is too old: {OLDEST_TENSORRT}.0 or newer is needed")
            continue
        return module
    if broken:
        raise UserError("; ".join(broken))
    if library == "auto":
        raise MissingExtraError("tensorrt (or tensorrt_rtx: the extra rtx)", "tensorrt", "build a plan")
    raise MissingExtraError(library, LIBRARIES[library], "build a plan")


def build_plan(
    onnx_path: str | os.PathLike[str],
    plan_path: str | os.PathLike[str],
    *,
    precision: str,
    max_batch: int = 8,
    optimal_batch: int = 1,
    workspace_mb: int | None = None,
    compute_capabilities: Sequence[str] = (),
    library: str = "auto",
    progress: bool = True,
) -> PlanInfo:
    """Build a plan from an ONNX graph, and write it and its sidecar `<plan>.json`.

    Nothing is left behind when the build fails or is interrupted. TF32 is off: fp32 means IEEE float32.

    Args:
        onnx_path: graph whose inputs may have a dynamic first dimension, the batch, and no other dynamic one.
        plan_path: where the plan goes; its folder must exist.
        precision: fp32, fp16 or int8; what the graph is, which is checked, not a wish.
        max_batch: largest batch that the plan accepts.
        optimal_batch: the batch that the kernels are chosen for.
        workspace_mb: limit of scratch memory in MiB; None is the library's own.
        compute_capabilities: of the GPUs to build for, such as `("7.5", "8.6")`; TensorRT-RTX alone. Empty:
            the GPU of this device with TensorRT, every GPU from 8.0 on with TensorRT-RTX.
        library: `tensorrt`, `tensorrt_rtx` or `auto`.
        progress: show a progress bar on stderr.

    Returns:
        What was written to the sidecar.

    Raises:
        UserError: a setting or path that is not usable, or a graph that the library refuses, with the nodes.
        MissingExtraError: the library is not installed.
    """
    onnx_path, plan_path = Path(onnx_path), Path(plan_path)
    check_precision(precision)
    if not onnx_path.is_file():
        raise UserError(f"{onnx_path} does not exist or is not a file; an ONNX graph was expected")
    if plan_path.is_dir():
        raise UserError(f"{plan_path} is a folder; the path of a file was expected")
    if not 1 <= optimal_batch <= max_batch:
        raise UserError(f"optimal batch {optimal_batch} must be between 1 and the largest batch, {max_batch}")
    if workspace_mb is not None and workspace_mb < 1:
        raise UserError(f"workspace of {workspace_mb} MB: a positive number was expected")

    trt = load_library(library)
    with replacing(plan_path) as plan_file, replacing(PlanInfo.path_of(plan_path)) as info_file:
        builder, network = _network_from_onnx(trt, onnx_path)
        _check_network_precision(trt, network, onnx_path, precision)
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        if workspace_mb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
        _set_batch_profile(builder, network, config, onnx_path, optimal_batch, max_batch)
        gpu, capabilities = _set_target(trt, config, compute_capabilities)
        with attach_progress(trt, config, f"{precision} plan", show=progress):
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise UserError(f"{trt.__name__} {trt.__version__} could not build {onnx_path}: {logger_of(trt).reason()}")
        info = PlanInfo(
            plan_sha256=sha256_of(plan),
            plan_bytes=plan.nbytes,
            onnx_name=onnx_path.name,
            onnx_sha256=sha256_of(onnx_path.read_bytes()),
            precision=precision,
            library=trt.__name__,
            library_version=trt.__version__,
            platform=f"{platform.system()}-{platform.machine()}".lower(),
            gpu=gpu,
            compute_capabilities=capabilities,
            max_batch=max_batch,
            optimal_batch=optimal_batch,
            workspace_mb=workspace_mb,
        )
        plan_file.write_bytes(plan)
        info_file.write_bytes(json_bytes(asdict(info)))
    return info


def _network_from_onnx(trt: Any, onnx_path: Path) -> tuple[Any, Any]:
    """Parse `onnx_path`; return the builder and its strongly typed network. Errors become one UserError."""
    log = logger_of(trt)
    log.start()
    try:
        builder = trt.Builder(log)
    except TypeError:  # what the binding raises when the library returns no builder
        raise UserError(f"{trt.__name__} cannot build on this machine: {log.reason()}") from None
    flags = trt.NetworkDefinitionCreationFlag
    # Where the flag exists TensorRT 10 needs it; newer libraries know no other networks.
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join(_describe(error) for error in errors[:3]) or log.reason()
        more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
        raise UserError(f"{trt.__name__} {trt.__version__} cannot read {onnx_path}: {reasons}{more}")
    return builder, network


def _describe(error: Any) -> str:
    reason = " ".join(error.desc().split())
    if not (error.node_name() or error.node_operator()):
        return reason
    operator = error.node_operator() or "unknown operator"
    return f"node {error.node_name() or error.node()!r} ({operator}): {reason}"


def _check_network_precision(trt: Any, network: Any, onnx_path: Path, precision: str) -> None:
    """Raise UserError unless the graph is what `precision` says: Q/DQ is int8, any half tensor else fp16."""
    found = "fp32"
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE):
            found = "int8"
            break
        if any(layer.get_output(index).dtype == trt.DataType.HALF for index in range(layer.num_outputs)):
            found = "fp16"
    if found != precision:
        raise UserError(
            f"{onnx_path} is an {found} graph, {precision} was asked for: precision is in the graph, "
            f"convert the checkpoint with `--precision {precision}`"
        )


def _set_batch_profile(
    builder: Any, network: Any, config: Any, onnx_path: Path, optimal_batch: int, max_batch: int
) -> None:
    """Add the optimisation profile of the dynamic batch; a graph of fixed batch must have `max_batch`."""
    profile = builder.create_optimization_profile()
    dynamic = False
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        batch, *rest = tuple(tensor.shape) or (1,)
        if any(size < 0 for size in rest):
            shape = (batch, *rest)
            raise UserError(f"{onnx_path}: input {tensor.name} has shape {shape}; only the batch may be dynamic")
        if batch < 0:
            dynamic = True
            profile.set_shape(tensor.name, (1, *rest), (optimal_batch, *rest), (max_batch, *rest))
        elif batch != max_batch:
            raise UserError(
                f"{onnx_path}: input {tensor.name} has a fixed batch of {batch}, the largest batch is "
                f"{max_batch}; export it with a dynamic batch, or ask for {batch}"
            )
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise UserError(f"{onnx_path}: batches of 1 to {max_batch} were refused by the library")


def _set_target(trt: Any, config: Any, wanted: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Set the GPUs to build for; return the name of the GPU that takes part, and where the plan will run."""
    if trt.__name__ == "tensorrt":
        if wanted:
            raise UserError(f"tensorrt builds for this device's GPU alone, not for {', '.join(wanted)}")
        gpu = first_gpu()
        return (gpu.name, (gpu.compute_capability,)) if gpu else (None, ())
    known = {f"{n[2:-1]}.{n[-1]}": value for n, value in trt.ComputeCapability.__members__.items() if n[:2] == "SM"}
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"unknown compute capability {', '.join(unknown)}; known: {', '.join(known)}")
    if wanted:
        config.num_compute_capabilities = len(wanted)
        for index, name in enumerate(wanted):
            config.set_compute_capability(known[name], index)
    return None, tuple(wanted) or RTX_DEFAULT_CAPABILITIES
