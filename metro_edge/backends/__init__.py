"""Engines that run a bundle's network, behind one small interface; each lives in its own module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import PredictionError, UserError
from metro_edge.spec import ModelSpec, check_precision

if TYPE_CHECKING:
    from typing_extensions import Self

    from metro_edge.bundle import Bundle

BACKENDS = ("onnxruntime",)
FloatArray = NDArray[np.float32]


class Outputs(NamedTuple):
    """What a network returns for N images, all float32.

    Attributes:
        camera: (N, 3) (s, tx, ty).
        joints: (N, J, 3) metres, camera frame.
        vertices: (N, V, 3) metres, camera frame.
    """

    camera: FloatArray
    joints: FloatArray
    vertices: FloatArray


class Session(ABC):
    """A network ready to run on one engine. Use it under `with`, or call `close`.

    Attributes:
        spec: of the network.
        precision: fp32, fp16 or int8.
        device: what runs it, in words, such as `onnxruntime 1.23.0 CPUExecutionProvider`.
    """

    spec: ModelSpec
    precision: str
    device: str

    def infer(self, images: FloatArray) -> Outputs:
        """Run images (N, 3, S, S) float32, normalised RGB; N may be any number, also 0.

        Raises:
            UserError: images of another shape or type, or a session that is closed.
            PredictionError: the network returned other shapes than its spec says.
        """
        size = self.spec.image_size
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise UserError(f"images must be (N, 3, {size}, {size}) float32, got {images.shape} {images.dtype}")
        count = len(images)
        shapes = ((count, 3), (count, len(self.spec.joints), 3), (count, self.spec.vertex_count, 3))
        if not count:
            return Outputs(*(np.zeros(shape, np.float32) for shape in shapes))
        outputs = self._infer(images)
        for name, values, shape in zip(Outputs._fields, outputs, shapes, strict=True):
            if values.shape != shape:
                raise PredictionError(f"the network's {name} are {values.shape}, its spec says {shape}")
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


def open_session(bundle: Bundle, precision: str = "fp32", backend: str = "onnxruntime", **options: Any) -> Session:
    """Open a bundle's network on a backend.

    Args:
        bundle: a loaded bundle.
        precision: fp32, fp16 or int8.
        backend: one of BACKENDS.
        options: of the backend's session class, such as `threads` for onnxruntime.

    Raises:
        UserError: unknown precision or backend, or an option that is not usable.
        BundleError: the bundle lacks that precision, or its file is altered or not the spec's network.
    """
    check_precision(precision)
    if backend == "onnxruntime":
        from metro_edge.backends.onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(bundle, precision, **options)
    raise UserError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
