"""TensorRT and TensorRT-RTX, over PyCUDA: a bundle's network for images on the host.

For frames in, bodies out, without leaving the GPU between, see metro_edge.cuda.estimator.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import Any

import numpy as np

from metro_edge.backends import FloatArray, Outputs, Session
from metro_edge.backends.gpu import first_gpu
from metro_edge.bundle import Bundle
from metro_edge.cuda.context import DeviceContext, device_errors
from metro_edge.cuda.network import DeviceNetwork, NetworkRunner
from metro_edge.errors import UserError
from metro_edge.plans.cache import named_or_cached
from metro_edge.plans.versions import load_library


class TensorRTSession(Session):
    """A network on an NVIDIA GPU.

    Args:
        bundle, precision: see open_session.
        plan: use this plan instead of the cache's, where it is built first if there is none.
        library: `tensorrt`, `tensorrt_rtx` or `auto`.
        ordinal: number of the GPU.

    Raises:
        UserError: no GPU, or a plan or memory that is not usable; else as metro_edge.plans.plan_for.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        plan: str | os.PathLike[str] | None = None,
        library: str = "auto",
        ordinal: int = 0,
    ) -> None:
        trt = load_library(library)
        if first_gpu() is None:
            raise UserError("TensorRT runs on NVIDIA GPUs, and there is none here: use the backend onnxruntime")
        self.spec, self.precision = bundle.spec, precision
        self._lock = threading.Lock()
        self._context = DeviceContext(ordinal)
        self._driver = self._context.driver
        self._network: DeviceNetwork | None = None
        self._runner: NetworkRunner | None = None
        self._stream: Any = None
        try:
            path = named_or_cached(bundle, precision, trt, self._context.gpu, plan)
            with self._context, device_errors(self._driver, f"a session for {path}"):
                self._network = DeviceNetwork(path, bundle.spec, trt, partial(bundle.onnx_bytes, precision))
                given = self._network.output_sizes()
                wanted = {name: given[name] for name in bundle.spec.outputs if name in given}
                self._runner = NetworkRunner(self._network, wanted)
                self._stream = self._driver.Stream(1)
        except BaseException:
            self._context.close(self._free)
            raise
        self.device = f"{trt.__name__} {trt.__version__} on {self._context.name}"

    def _infer(self, images: FloatArray) -> Outputs:
        with self._lock:
            if self._runner is None or self._network is None:
                raise UserError("the session is closed")
            most = self._network.max_batch
            with self._context, device_errors(self._driver, f"a batch of {len(images)}"):
                parts = [self._batch(self._runner, images[i : i + most]) for i in range(0, len(images), most)]
        return Outputs.joined(parts)

    def _batch(self, runner: NetworkRunner, images: FloatArray) -> Outputs:
        count, stream = len(images), self._stream
        runner.prepare(count, stream)
        self._driver.memcpy_htod_async(runner.images.pointer, np.ascontiguousarray(images), stream)
        runner.run(count, stream)
        host: dict[str, Any] = {}
        for name, array in runner.outputs(count).items():
            host[name] = np.empty(array.shape, array.dtype)
            self._driver.memcpy_dtoh_async(host[name], array.pointer, stream)
        stream.synchronize()
        return Outputs(**host)

    def close(self) -> None:
        """Free the plan and its memory; doing it twice is fine."""
        with self._lock:
            self._context.close(self._free)

    def _free(self) -> None:
        if self._runner is not None:
            self._runner.close()
        if self._network is not None:
            self._network.close()
        self._runner = self._network = self._stream = None
