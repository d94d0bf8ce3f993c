"""The engines that `against` compares, each opened on the same network and called alike: images in, arrays out."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.networks import Subject
from metro_edge.backends import open_session
from metro_edge.backends.gpu import first_gpu
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.spec import INPUT_NAME

FloatArray = NDArray[np.float32]
Arrays = dict[str, FloatArray]
REFERENCE = "pytorch-eager"
PROCESSORS = ("cpu", "gpu")
_CPU_BACKENDS = ("onnxruntime", "openvino")


class UnavailableError(Exception):
    """An engine that this machine cannot run; its words say why."""


@dataclass(frozen=True)
class Running:
    """An open engine.

    Attributes:
        device: what runs it, in words.
        infer: images (1, 3, S, S) float32 on the host -> outputs on the host; returns when they are there.
    """

    device: str
    infer: Callable[[FloatArray], Arrays]


@dataclass(frozen=True)
class Engine:
    """What is compared.

    Attributes:
        name: key of the result.
        title: for a reader.
        ours: whether it is metro-edge's own.
        precision: of the graph.
        start: opens it; what has to be closed goes onto the stack. Raises UnavailableError, or UserError.
    """

    name: str
    title: str
    ours: bool
    precision: str
    start: Callable[[ExitStack], Running]


def engines(subject: Subject, processor: str, threads: int) -> list[Engine]:
    """Return what is compared on a processor, the reference first."""
    device = "cuda" if processor == "gpu" else "cpu"
    eager = partial(_pytorch, subject, device, compiled=False)
    compiled = partial(_pytorch, subject, device, compiled=True)
    found = [
        Engine(REFERENCE, "PyTorch, eager", False, "fp32", eager),
        Engine("pytorch-compile", "PyTorch, torch.compile (inductor)", False, "fp32", compiled),
    ]
    backends: Sequence[str] = ("tensorrt",)
    if processor == "cpu":
        plain = partial(_plain_openvino, subject, threads)
        title = "plain ONNX export on OpenVINO"
        found += [
            Engine("onnxruntime-plain", "plain ONNX export on ONNX Runtime", False, "fp32",
                   partial(_plain_onnxruntime, subject, threads)),
            Engine("openvino-plain", f"{title}, FP32", False, "fp32", partial(plain, default=False)),
            Engine("openvino-plain-default", f"{title}, at its own precision", False, "default",
                   partial(plain, default=True)),
        ]  # fmt: skip
        backends = _CPU_BACKENDS
    options = {"threads": threads} if processor == "cpu" else {}
    found += [
        Engine(f"{backend}-{precision}", f"metro-edge {precision} on {backend}", True, precision,
               partial(_ours, subject, backend, precision, options))
        for backend in backends for precision in subject.bundle.precisions
    ]  # fmt: skip
    return found


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let PyTorch use so many threads under `with`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpp_compiler() -> str | None:
    """Return the C++ compiler that torch.compile would take for the CPU; None when there is none."""
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    return shutil.which(os.environ.get("CXX") or usual)


def _pytorch(subject: Subject, device: str, stack: ExitStack, *, compiled: bool) -> Running:
    if device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("this PyTorch sees no CUDA GPU")
    if compiled and device == "cpu" and cpp_compiler() is None:
        raise UnavailableError("torch.compile needs a C++ compiler for the CPU, and none is found (g++, or CXX)")
    model: Any = subject.model.to(device)
    stack.callback(subject.model.to, "cpu")
    if compiled:
        model = torch.compile(model, backend="inductor")
        stack.callback(torch.compiler.reset)

    def infer(images: FloatArray) -> Arrays:
        with torch.inference_mode():
            found = model(torch.from_numpy(images).to(device))
            named = {"camera": found.camera, "joints": found.joints, "vertices": found.vertices[-1]}
            return {name: value.cpu().numpy() for name, value in named.items()}

    if compiled:
        size = subject.bundle.spec.image_size
        try:
            infer(np.zeros((1, 3, size, size), np.float32))
        except Exception as error:  # of the compiler's many parts, without a common base
            raise UnavailableError(f"torch.compile failed: {_first_line(error)}") from None
    where = "CPU" if device == "cpu" else torch.cuda.get_device_name()
    return Running(f"torch {torch.__version__} {where}", infer)


def _plain_onnxruntime(subject: Subject, threads: int, stack: ExitStack) -> Running:
    """ONNX Runtime as it comes, but for the threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(subject.plain), options, providers=["CPUExecutionProvider"])
    names = list(subject.bundle.spec.outputs)

    def infer(images: FloatArray) -> Arrays:
        return dict(zip(names, session.run(names, {INPUT_NAME: images}), strict=True))

    return Running(f"onnxruntime {ort.__version__} CPUExecutionProvider", infer)


def _plain_openvino(subject: Subject, threads: int, stack: ExitStack, *, default: bool) -> Running:
    """OpenVINO for latency on a batch of one; `default` leaves it the precision that it takes by itself."""
    try:
        import openvino as ov
    except ModuleNotFoundError:
        raise UnavailableError(str(MissingExtraError("openvino", "openvino", "run on OpenVINO"))) from None
    core = ov.Core()
    if default and core.get_property("CPU", "INFERENCE_PRECISION_HINT") == ov.Type.f32:
        raise UnavailableError("OpenVINO's own precision is FP32 on this CPU, see openvino-plain")
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if not default:
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    model = core.read_model(str(subject.plain))
    size = subject.bundle.spec.image_size
    model.reshape([1, 3, size, size])
    compiled = core.compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()
    names = list(subject.bundle.spec.outputs)

    def infer(images: FloatArray) -> Arrays:
        results = request.infer([images], share_inputs=True)
        return {name: np.asarray(results[name], np.float32) for name in names}

    taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return Running(f"openvino {ov.__version__.split('-')[0]} CPU, {taken}", infer)


def _ours(subject: Subject, backend: str, precision: str, options: Mapping[str, int], stack: ExitStack) -> Running:
    if backend == "tensorrt" and first_gpu() is None:
        raise UnavailableError("no NVIDIA GPU with a driver is here")
    try:
        session = stack.enter_context(open_session(subject.bundle, precision, backend, **options))
    except MissingExtraError as error:
        raise UnavailableError(str(error)) from None
    return Running(session.device, lambda images: session.infer(images).given)


def difference(found: Mapping[str, FloatArray], reference: Mapping[str, FloatArray], trained: bool) -> dict[str, Any]:
    """Return how far outputs are from PyTorch's in FP32.

    Args:
        found, reference: output -> array of the same images; outputs that only one has are left out.
        trained: whether distances in mm mean something.

    Returns:
        `relative`: the largest change of a number over all outputs, as a share of the largest number of its output;
        `outputs`: the same for each; `mean_mm`, `worst_mm`: distances of the vertices, or of the joints where there
        are no vertices, None for weights that were not trained.

    Raises:
        UserError: no output in common, other shapes, or numbers that are not finite.
    """
    shared = [name for name in reference if name in found]
    if not shared:
        raise UserError(f"no output in common: {', '.join(found)} against {', '.join(reference)}")
    outputs = {}
    for name in shared:
        a, b = np.asarray(found[name], np.float64), np.asarray(reference[name], np.float64)
        if a.shape != b.shape or not np.isfinite(a).all():
            raise UserError(f"{name} is {a.shape}, expected finite numbers of {b.shape}")
        outputs[name] = float(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(np.float32).tiny))
    result: dict[str, Any] = {"relative": max(outputs.values()), "outputs": outputs, "mean_mm": None, "worst_mm": None}
    points = next((name for name in ("vertices", "joints") if name in shared), None)
    if trained and points is not None:
        moved = np.linalg.norm(np.asarray(found[points], np.float64) - reference[points], axis=-1) * 1000.0
        result |= {"mean_mm": float(moved.mean()), "worst_mm": float(moved.max())}
    return result


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
