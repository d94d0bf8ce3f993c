"""Engines that run a bundle's network, behind one small interface; each lives in its own module."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import PredictionError, UserError
from metro_edge.spec import GRAPHS, ModelSpec, check_precision

if TYPE_CHECKING:
    from typing_extensions import Self

    from metro_edge.bundle import Bundle

BACKENDS = ("onnxruntime", "openvino", "tensorrt")
FloatArray = NDArray[np.float32]


class Outputs(NamedTuple):
    """What a network returns for N images, all float32; None for what it does not give (`ModelSpec.outputs`).

    Attributes:
        camera: (N, 3) (s, tx, ty).
        joints: (N, J, 3) metres, camera frame.
        vertices: (N, V, 3) metres, camera frame: the full mesh.
        mesh_joints: (N, J, 3) metres: the joints regressed from the full mesh.
        coarse: (N, C, 3) metres: the mesh's coarse level.
        joints_px: (N, J, 2) px of the crop: mesh_joints as the camera sees them.
    """

    camera: FloatArray
    joints: FloatArray
    vertices: FloatArray | None = None
    mesh_joints: FloatArray | None = None
    coarse: FloatArray | None = None
    joints_px: FloatArray | None = None

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        """Return the outputs of several batches of one network, at least one, as one batch."""
        columns = zip(*parts, strict=True)
        return cls(*(None if values[0] is None else np.concatenate(values) for values in columns))  # type: ignore[arg-type]

    def row(self, number: int) -> Outputs:
        """Return the outputs of one image of the batch, (1, ...)."""
        columns = (None if values is None else values[number : number + 1] for values in self)
        return Outputs(*columns)  # type: ignore[arg-type]

    @property
    def given(self) -> dict[str, FloatArray]:
        """The outputs that there are, by name."""
        return {name: values for name, values in self._asdict().items() if values is not None}

    @property
    def mesh(self) -> FloatArray:
        """The full mesh (N, V, 3); raises UserError of a network that gives joints alone."""
        if self.vertices is None:
            raise UserError("this network gives joints alone: the full mesh needs one with the output `vertices`")
        return self.vertices


class Session(ABC):
    """A network ready to run on one engine. Use it under `with`, or call `close`.

    Attributes:
        spec: of the network.
        precision: fp32, fp16, int8 or fp8.
        device: what runs it, in words, such as `onnxruntime 1.23.0 CPUExecutionProvider`.
        concurrent: whether several threads may call `infer` at once, each with a core of its own.
    """

    spec: ModelSpec
    precision: str
    device: str
    concurrent: bool = False

    def infer(self, images: FloatArray) -> Outputs:
        """Run images (N, 3, S, S) float32, normalised RGB; N may be any number, also 0.

        Raises:
            UserError: images of another shape or type, or a session that is closed.
            PredictionError: the network failed, or returned other shapes than its spec says.
        """
        size = self.spec.image_size
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise UserError(f"images must be (N, 3, {size}, {size}) float32, got {images.shape} {images.dtype}")
        count = len(images)
        shapes = output_shapes(self.spec, count)
        if not count:
            empty = {name: np.zeros([size or 0 for size in shape], np.float32) for name, shape in shapes.items()}
            return Outputs(**empty)
        outputs = self._infer(images)
        for name, shape in shapes.items():
            values = getattr(outputs, name)
            found = () if values is None else values.shape
            if len(found) != len(shape) or any(size not in (None, got) for got, size in zip(found, shape, strict=True)):
                raise PredictionError(f"the network's {name} are {found or None}, its spec says {shape}")
        return outputs

    @abstractmethod
    def _infer(self, images: FloatArray) -> Outputs:
        """Run at least one image that `infer` has checked."""

    @abstractmethod
    def close(self) -> None:
        """Free the engine; doing it twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def output_shapes(spec: ModelSpec, count: int) -> dict[str, tuple[int | None, ...]]:
    """Return output -> shape for `count` images, in the order of `spec.outputs`; None where the spec does not say."""
    joints = len(spec.joints)
    known: dict[str, tuple[int | None, ...]] = {
        "camera": (count, 3),
        "joints": (count, joints, 3),
        "vertices": (count, spec.vertex_count, 3),
        "mesh_joints": (count, joints, 3),
        "coarse": (count, None, 3),
        "joints_px": (count, joints, 2),
    }
    return {name: known[name] for name in spec.outputs}


def open_session(bundle: Bundle, precision: str = "fp32", backend: str = "onnxruntime", **options: Any) -> Session:
    """Open a bundle's network on a backend.

    Args:
        bundle: a loaded bundle.
        precision: fp32, fp16, int8 or fp8, which no CPU computes in: it is run with floats, as Q and DQ are defined.
        backend: one of BACKENDS.
        options: of the backend's session class, such as `threads` and `affinity`, or `plan` of tensorrt.

    Raises:
        UserError: unknown precision, backend or option, or an option that is not usable.
        MissingExtraError: the backend's library is not installed.
        BundleError: the bundle lacks that precision, or its file is altered or not the spec's network.
    """
    check_precision(precision, GRAPHS)
    open_it: Callable[..., Session]
    if backend == "onnxruntime":
        from metro_edge.backends.onnxruntime import OnnxRuntimeSession

        open_it = OnnxRuntimeSession
    elif backend == "openvino":
        from metro_edge.backends.openvino import OpenVinoSession

        open_it = OpenVinoSession
    elif backend == "tensorrt":
        from metro_edge.backends.tensorrt import TensorRTSession

        open_it = TensorRTSession
    else:
        raise UserError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    known = list(inspect.signature(open_it).parameters)[2:]
    if unknown := options.keys() - set(known):
        raise UserError(f"{backend} has no option {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    return open_it(bundle, precision, **options)
