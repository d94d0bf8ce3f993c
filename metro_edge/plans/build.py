"""Building a plan from an ONNX graph, with TensorRT or TensorRT-RTX, whichever is installed.

Networks are strongly typed: the precision is the ONNX graph's own (typed FP16, Q/DQ INT8 or FP8), so one graph serves
TensorRT 10, TensorRT 11 and TensorRT-RTX. TensorRT builds for the GPU it runs on; TensorRT-RTX builds on the CPU, for
the GPUs that it knows from compute capability 8.0 on (not 8.7 and 9.0) unless told otherwise.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from metro_edge.backends.gpu import first_gpu
from metro_edge.bundle import Bundle, onnx_file
from metro_edge.errors import UserError
from metro_edge.files import json_bytes, reason, replacing, sha256_of
from metro_edge.machine import power_mode
from metro_edge.plans.info import PlanInfo, describe_builder, identity_of, origin_of
from metro_edge.plans.layers import layer_information, layers_path, network_layers, shape_of
from metro_edge.plans.log import attach_progress, logger_of
from metro_edge.plans.options import BatchProfile, BuildOptions
from metro_edge.plans.timing import timing_cache
from metro_edge.plans.versions import (
    Library,
    check_fp8,
    check_options,
    configure,
    features,
    load_library,
    network_flags,
)
from metro_edge.spec import GRAPHS, INPUT_NAME, check_precision

if TYPE_CHECKING:
    import tensorrt as stubs

SHOWN_ERRORS = 3


def build_plan(
    onnx_path: str | os.PathLike[str],
    plan_path: str | os.PathLike[str],
    *,
    precision: str,
    options: BuildOptions | None = None,
    library: str = "auto",
    progress: bool = True,
) -> PlanInfo:
    """Build a plan, and write it, its sidecar `<plan>.json` and its layers, `<plan>.layers.json`.

    Nothing is left behind when the build fails or is interrupted. TF32 is off: fp32 means IEEE float32.

    Args:
        onnx_path: graph of ours, whose first dimension may be dynamic, the batch, and no other.
        plan_path: where the plan goes; its folder must exist.
        precision: fp32, fp16, int8 or fp8; what the graph is, which is checked, not a wish.
        options: how; the default takes batches of 1 to 8 and chooses kernels for 1.
        library: `tensorrt`, `tensorrt_rtx` or `auto`.
        progress: show a progress bar on stderr.

    Returns:
        What was written to the sidecar.

    Raises:
        UserError: a setting or path that is not usable, or a graph that the library refuses, with the nodes.
        MissingExtraError: the library is not installed.
    """
    check_precision(precision, GRAPHS)
    onnx_path = Path(onnx_path)
    return build_plan_from_bytes(
        _read(onnx_path), onnx_path, plan_path, precision=precision, options=options, library=library, progress=progress
    )


def build_plan_of(
    bundle: Bundle,
    precision: str,
    plan_path: str | os.PathLike[str],
    *,
    options: BuildOptions | None = None,
    library: str = "auto",
    progress: bool = True,
) -> PlanInfo:
    """Build a plan of a bundle, also a zipped one, as `build_plan` does; the sidecar says what its passport says.

    Raises:
        BundleError: the bundle lacks the precision, or the file is altered or refused; else as `build_plan`.
    """
    return build_plan_from_bytes(
        bundle.onnx_bytes(precision),
        bundle.path / onnx_file(precision),
        plan_path,
        precision=precision,
        options=options,
        library=library,
        progress=progress,
        origin=origin_of(bundle, precision),
    )


def build_plan_from_bytes(
    graph: bytes,
    onnx_path: Path,
    plan_path: str | os.PathLike[str],
    *,
    precision: str,
    options: BuildOptions | None = None,
    library: str = "auto",
    progress: bool = True,
    origin: dict[str, Any] | None = None,
) -> PlanInfo:
    """Build a plan as `build_plan` does, from the content of an ONNX file.

    `onnx_path` is only named in messages; `origin` is what PlanInfo says of it.
    """
    options, plan_path = options or BuildOptions(), Path(plan_path)
    if plan_path.is_dir():
        raise UserError(f"{plan_path} is a folder; the path of a file was expected")
    trt = load_library(library)
    has, gpu = features(trt), first_gpu()
    check_options(has, options, precision, gpu=gpu is not None)
    identity = identity_of(has, sha256_of(graph), precision, options, gpu, power_mode=power_mode())
    if precision == "fp8" and gpu is not None and not has.capabilities:
        check_fp8((gpu.compute_capability,))
    with (
        replacing(plan_path) as plan_file,
        replacing(layers_path(plan_path)) as layers_file,
        replacing(PlanInfo.path_of(plan_path)) as info_file,
    ):
        builder = _builder(trt)
        _check_dla_core(trt, builder, options)
        # The parser must live as long as the network, whose weights it holds.
        network, _parser = _network_from_onnx(trt, builder, graph, onnx_path, network_flags(trt, has))
        _check_is_ours(network, onnx_path)
        _check_network_precision(network, onnx_path, precision)
        config = builder.create_builder_config()
        configure(trt, config, has, options)
        _set_batch_profiles(builder, network, config, onnx_path, options.profiles)
        layers = network_layers(network)
        with timing_cache(config, options.timing_cache):
            with attach_progress(trt, config, f"{precision} plan", show=progress):
                built = cast(Any, builder.build_serialized_network(network, config))
            if built is None:
                raise UserError(f"{has.name} could not build {onnx_path}: {logger_of(trt).reason()}")
        plan = memoryview(built)  # not copied: a plan can be hundreds of megabytes
        info = PlanInfo(
            **vars(identity),
            plan_sha256=hashlib.sha256(plan).hexdigest(),
            plan_bytes=plan.nbytes,
            onnx_name=onnx_path.name,
            machine=describe_builder(),
            origin=origin or {},
        )
        plan_file.write_bytes(plan)
        layers_file.write_bytes(json_bytes(layer_information(trt, layers, plan, gpu)))
        info_file.write_bytes(info.to_bytes())
    return info


def _read(onnx_path: Path) -> bytes:
    if not onnx_path.is_file():
        raise UserError(f"{onnx_path} does not exist or is not a file; an ONNX graph was expected")
    try:
        return onnx_path.read_bytes()
    except OSError as error:
        raise UserError(f"{onnx_path} cannot be read: {reason(error)}") from None


def _builder(trt: Library) -> stubs.Builder:
    log = logger_of(trt)
    log.start()
    try:
        return trt.Builder(log)
    except TypeError:  # what the binding raises when the library returns no builder
        raise UserError(f"{trt.__name__} cannot build on this machine: {log.reason()}") from None


def _check_dla_core(trt: Library, builder: stubs.Builder, options: BuildOptions) -> None:
    if options.dla is not None and options.dla >= builder.num_DLA_cores:
        count = builder.num_DLA_cores
        have = f"has {count}, numbered from 0" if count else "has none"
        raise UserError(f"DLA core {options.dla} was asked for, this device {have} ({trt.__name__} {trt.__version__})")


def _network_from_onnx(
    trt: Library, builder: stubs.Builder, graph: bytes, onnx_path: Path, flags: int
) -> tuple[stubs.INetworkDefinition, stubs.OnnxParser]:
    """Parse a graph; return its network and the parser. Errors become one UserError, with the nodes."""
    log = logger_of(trt)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join(_describe(error) for error in errors[:SHOWN_ERRORS]) or log.reason()
        more = f" (and {len(errors) - SHOWN_ERRORS} more)" if len(errors) > SHOWN_ERRORS else ""
        raise UserError(f"{trt.__name__} {trt.__version__} cannot read {onnx_path}: {reasons}{more}")
    return network, parser


def _describe(error: stubs.ParserError) -> str:
    words = " ".join(error.desc().split())
    if not (error.node_name() or error.node_operator()):
        return words
    operator = error.node_operator() or "unknown operator"
    return f"node {error.node_name() or error.node()!r} ({operator}): {words}"


def _check_is_ours(network: stubs.INetworkDefinition, onnx_path: Path) -> None:
    """Raise UserError unless the graph takes images and returns what a METRO network returns."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = {network.get_output(index).name for index in range(network.num_outputs)}
    names = [tensor.name for tensor in tensors]
    if names != [INPUT_NAME] or "camera" not in outputs:
        raise UserError(
            f"{onnx_path} is not a network of this project: it takes {', '.join(names)} and returns "
            f"{', '.join(sorted(outputs))}; `{INPUT_NAME}` alone and at least `camera` were expected. Convert a "
            "checkpoint with `python -m engines convert`"
        )


def _check_network_precision(network: stubs.INetworkDefinition, onnx_path: Path, precision: str) -> None:
    """Raise UserError unless the graph is what `precision` says: that of its Q/DQ, else fp16 for any half tensor."""
    found = {tensor["precision"] for layer in network_layers(network) for tensor in layer["outputs"]}
    is_ = next((name for name in ("fp8", "int8", "fp16") if name in found), "fp32")
    if is_ != precision:
        raise UserError(
            f"{onnx_path} is an {is_} graph, {precision} was asked for: precision is in the graph, "
            f"convert the checkpoint with `--precision {precision}`"
        )


def _set_batch_profiles(
    builder: stubs.Builder,
    network: stubs.INetworkDefinition,
    config: stubs.IBuilderConfig,
    onnx_path: Path,
    profiles: tuple[BatchProfile, ...],
) -> None:
    """Add the optimisation profiles of the dynamic batch; a graph of fixed batch must have that of the only one."""
    tensor = network.get_input(0)
    batch, *rest = shape_of(tensor) or (1,)
    if any(size < 0 for size in rest):
        raise UserError(f"{onnx_path}: input {tensor.name} has shape {(batch, *rest)}; only the batch may be dynamic")
    if batch >= 0:
        if profiles != (BatchProfile(batch, batch, batch),):
            raise UserError(
                f"{onnx_path}: input {tensor.name} has a fixed batch of {batch}, {' '.join(map(str, profiles))} was "
                f"asked for; export it with a dynamic batch, or ask for {batch}"
            )
        return
    for wanted in profiles:
        profile = builder.create_optimization_profile()
        # The stubs ask for Dims; any sequence of numbers is taken.
        shapes: list[Any] = [(size, *rest) for size in wanted]
        profile.set_shape(tensor.name, *shapes)
        config.add_optimization_profile(profile)
