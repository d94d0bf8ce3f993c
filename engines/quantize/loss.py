"""What a graph loses, in millimetres, on samples whose FP32 result is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.metrics import mpjpe, mpvpe
from metro_edge.spec import INPUT_NAME, ModelSpec
from metro_edge.template import BodyTemplate

FloatArray = NDArray[np.float32]
METRICS = ("mpjpe", "mpvpe", "moved")
BATCH = 8
MM = 1000.0
NOT_FINITE_MM = 1e9  # stands for the loss of outputs that are not finite; JSON has no infinity


@dataclass(frozen=True)
class Loss:
    """Means over samples, in mm.

    Attributes:
        mpjpe_mm, mpvpe_mm: how much more than FP32 errs against the truth, below 0 where it errs less; None without
            truth, or (MPVPE) without vertices.
        moved_mm: mean distance of the vertices from FP32's, not aligned; of the joints where there are no vertices.
        mpjpe_error_mm, mpvpe_error_mm, moved_error_mm: standard errors of these means.
    """

    mpjpe_mm: float | None
    mpvpe_mm: float | None
    moved_mm: float
    mpjpe_error_mm: float | None
    mpvpe_error_mm: float | None
    moved_error_mm: float

    @classmethod
    def from_dict(cls, values: Mapping[str, float | None]) -> Loss:
        """Return a loss from what `dataclasses.asdict` makes of one; what is left out is not known."""
        moved, error = values["moved_mm"], values["moved_error_mm"]
        assert moved is not None and error is not None  # the distance from FP32 is always known
        return cls(
            mpjpe_mm=values.get("mpjpe_mm"),
            mpvpe_mm=values.get("mpvpe_mm"),
            moved_mm=moved,
            mpjpe_error_mm=values.get("mpjpe_error_mm"),
            mpvpe_error_mm=values.get("mpvpe_error_mm"),
            moved_error_mm=error,
        )

    def of(self, metric: str) -> float:
        """Return the loss by a metric of METRICS; raises UserError where it is not known."""
        return self._value(metric, f"{metric}_mm")

    def error_of(self, metric: str) -> float:
        """Return the standard error of `of`; raises UserError where it is not known."""
        return self._value(metric, f"{metric}_error_mm")

    def _value(self, metric: str, name: str) -> float:
        if metric not in METRICS:
            raise UserError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
        value = getattr(self, name)
        if value is None:
            raise UserError(
                f"{metric} cannot be measured on these samples: they have no true meshes, or the network makes none; "
                "take --metric moved"
            )
        return float(value)


NOTHING = Loss(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Judge:
    """Compares graphs with the FP32 graph on one set of samples.

    Args:
        model: FP32 graph.
        spec, template: of its bundle.
        images: (N, 3, S, S) float32 as the network takes them.
        truth: (N, V, 3) true meshes in metres, or None.

    Attributes:
        batches: the images in parts of BATCH.
        outputs: names of the graph's outputs.
        reference: what the FP32 graph returns, per batch.
        fp32_mm: MPJPE and MPVPE of FP32 against the truth, what of them is known.

    Raises UserError for images or meshes of other shapes, or an FP32 result that is not finite.
    """

    def __init__(
        self, model: onnx.ModelProto, spec: ModelSpec, template: BodyTemplate, images: FloatArray,
        truth: FloatArray | None,
    ) -> None:  # fmt: skip
        size = spec.image_size
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise UserError(f"samples must be (N, 3, {size}, {size}) float32, got {images.shape} {images.dtype}")
        if truth is not None and truth.shape != (len(images), len(template.vertices), 3):
            expected = (len(images), len(template.vertices), 3)
            raise UserError(f"true meshes must be {expected}, got {truth.shape}")
        self.spec, self.template = spec, template
        self.outputs = tuple(value.name for value in model.graph.output)
        self.batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        run = session(model)
        self.reference = [list(run({INPUT_NAME: batch})) for batch in self.batches]
        self._joints, self._vertices = self._of(self.reference)
        if not np.isfinite(self._joints).all():
            raise UserError("the fp32 network's outputs are not finite on these samples: its weights are damaged")
        self._truth: tuple[NDArray, NDArray | None] | None = None
        if truth is not None:
            self._truth = np.asarray(template.joints(spec.joint_set, truth)), truth
        self._before = self._errors(self._joints, self._vertices)
        self.fp32_mm = {name: float(values.mean()) * MM for name, values in self._before.items()}

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(len(batch) for batch in self.batches)

    def knows(self, metric: str) -> bool:
        """Say whether a metric of METRICS can be measured on these samples."""
        return metric == "moved" or metric in self._before

    def loss(self, results: Sequence[Sequence[NDArray]]) -> Loss:
        """Compare what a graph returns, per batch, the outputs in the order of `outputs`.

        Outputs that are not finite count as a loss of NOT_FINITE_MM.
        """
        joints, vertices = self._of(results)
        points, before = (joints, self._joints) if vertices is None else (vertices, self._vertices)
        assert before is not None
        if not np.isfinite(points).all():
            known = [name for name in METRICS if self.knows(name)]
            errors = {f"{name}_error_mm": 0.0 for name in known}
            return Loss.from_dict({f"{name}_mm": NOT_FINITE_MM for name in known} | errors)
        found = {"moved": np.linalg.norm(points - before, axis=-1).mean(-1)}
        for name, values in self._errors(joints, vertices).items():
            found[name] = values - self._before[name]
        means = {f"{name}_mm": float(values.mean()) * MM for name, values in found.items()}
        errors = {f"{name}_error_mm": _standard_error(values) * MM for name, values in found.items()}
        return Loss.from_dict(means | errors)

    def loss_of(self, graph: onnx.ModelProto) -> Loss:
        """Run a whole graph over all samples and compare."""
        run = session(graph)
        return self.loss([run({INPUT_NAME: batch}) for batch in self.batches])

    def _of(self, results: Sequence[Sequence[NDArray]]) -> tuple[NDArray, NDArray | None]:
        """Return joints, regressed from the mesh, and vertices, None where the network makes none."""
        columns = dict(zip(self.outputs, zip(*results, strict=True), strict=True))
        vertices = np.concatenate(columns["vertices"]) if "vertices" in columns else None
        if "mesh_joints" in columns:
            return np.concatenate(columns["mesh_joints"]), vertices
        if vertices is None:
            return np.concatenate(columns["joints"]), None
        return np.asarray(self.template.joints(self.spec.joint_set, vertices)), vertices

    def _errors(self, joints: NDArray, vertices: NDArray | None) -> dict[str, NDArray]:
        """Return errors per sample against the truth in metres, by metric; empty without truth."""
        if self._truth is None:
            return {}
        true_joints, true_vertices = self._truth
        found = {"mpjpe": mpjpe(joints, true_joints, self.spec.joints)}
        if vertices is not None and true_vertices is not None:
            centre, true_centre = (self.spec.joints.root_of(values)[:, None] for values in (joints, true_joints))
            found["mpvpe"] = mpvpe(vertices - centre, true_vertices - true_centre)
        return found


def session(graph: onnx.ModelProto, threads: int | None = None) -> Callable[[Mapping[str, NDArray]], list[NDArray]]:
    """Return a function that runs a graph on ONNX Runtime, an INT8 one as its CPU twin: inputs by name -> outputs.

    Raises UserError when ONNX Runtime cannot load the graph.
    """
    kinds = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}
    kind = next((name for name, number in kinds.items() if quantises(graph, number)), "fp32")
    return started(graph.SerializeToString(), kind, threads)


def started(
    graph: bytes | Path, precision: str, threads: int | None = None, outputs: Sequence[str] | None = None
) -> Callable[[Mapping[str, NDArray]], list[NDArray]]:
    """Return a function that runs an ONNX file, or its content, as `session` does.

    Args:
        graph: file or content.
        precision: whether it quantises: int8, fp8, or any other word.
        threads: None leaves them to ONNX Runtime.
        outputs: names of what is returned, in this order; None takes the graph's.

    Raises UserError when ONNX Runtime cannot load the graph.
    """
    import onnxruntime as ort

    from metro_edge.backends.cpu_twin import cpu_twin
    from metro_edge.backends.onnxruntime import left_out, products_saturate

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.use_deterministic_compute = True
    int8 = precision == "int8"
    if int8 and products_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")  # as the backend does
    data: Any = str(graph) if isinstance(graph, Path) else graph  # a file is not held twice
    if int8:
        data = cpu_twin(graph.read_bytes() if isinstance(graph, Path) else graph)
    try:
        made: Any = ort.InferenceSession(
            data,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=left_out(fp8=precision == "fp8", floats=False),
        )
    except Exception as error:  # its exceptions have no common base but Exception
        raise UserError(f"ONNX Runtime cannot load the graph: {str(error).strip().splitlines()[0]}") from None
    needed = [value.name for value in made.get_inputs()]
    return lambda feeds: made.run(outputs, {name: feeds[name] for name in needed})


def quantises(graph: onnx.ModelProto, kind: int = onnx.TensorProto.INT8) -> bool:
    """Say whether a graph quantises an activation to a type."""
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    return any(n.op_type == "QuantizeLinear" and types.get(n.input[2]) == kind for n in graph.graph.node)


def _standard_error(values: NDArray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
