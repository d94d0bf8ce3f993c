"""A stand-in for TensorRT's runtime: contexts that run the ONNX graph of a "plan" on the CPU, as work of a CUDA stream.

It is the only part of the session that CI replaces. Buffers, shapes, types, profiles, addresses, streams, lifetimes are
held to TensorRT's rules: what TensorRT would refuse fails here, too. On a stand-in GPU, whose memory is the host's, the
network reads and writes the session's own device memory; on a real GPU it goes through page-locked copies.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from metro_edge.bundle import Bundle
from metro_edge.plans.info import PlanIdentity, PlanInfo, platform_name
from metro_edge.plans.options import BatchProfile
from tests.virtual_gpu.device import on_stand_in

MAGIC = b"a plan of the stand-in\n"
VERSION = "10.13.3"
ACTIVATION_BYTES = 4096
PAGE_LOCKED_BYTES = 1 << 26
HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def __init__(self) -> None: ...


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class DataType(Enum):
    FLOAT, HALF, INT8, INT32 = range(4)


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


def write_plan(
    folder: Path, bundle: Bundle, precision: str, capability: str, profiles: tuple[BatchProfile, ...], **changes: Any
) -> Path:
    """Write a plan of the stand-in and its sidecar; returns its path. `changes` go to the sidecar."""
    graph = bundle.onnx_bytes(precision)
    settings = changes.get("settings", {})
    header = json.dumps({"profiles": [(p.smallest, p.best, p.largest) for p in profiles], **settings}).encode()
    content = MAGIC + header + b"\n" + graph
    identity = PlanIdentity(
        onnx_sha256=hashlib.sha256(graph).hexdigest(),
        precision=precision,
        library="tensorrt",
        library_version=VERSION,
        platform=platform_name(),
        gpu=None,
        power_mode=None,
        compute_capabilities=(capability,),
        profiles=profiles,
        settings={},
    )
    values = {**vars(identity), "plan_sha256": hashlib.sha256(content).hexdigest(), "plan_bytes": len(content)}
    info = PlanInfo(**{**values, "onnx_name": "model.onnx", **changes})
    path = folder / f"{bundle.spec.name}.{precision}.plan"
    path.write_bytes(content)
    PlanInfo.path_of(path).write_bytes(info.to_bytes())
    return path


def _page_locked(nbytes: int) -> np.ndarray:
    import pycuda.driver

    return pycuda.driver.pagelocked_empty(nbytes // 4, np.float32)


class StandIn:
    """In place of the module `tensorrt`.

    Attributes:
        contexts: that were made and are alive.
        runs: batch sizes, in the order in which they ran.
        fail: what a call is to fail at: `enqueue`, `capture`, `context`, `shape`, `refit`.
    """

    __name__ = "tensorrt"
    __version__ = VERSION
    Builder = object
    ILogger, TensorIOMode, DataType = ILogger, TensorIOMode, DataType
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self) -> None:
        # Page-locked memory of all networks: allocating it later would wait for a host function that waits for Python.
        self.memory = None if on_stand_in() else _page_locked(PAGE_LOCKED_BYTES)
        self.used = 0
        self.contexts = 0
        self.runs: list[int] = []
        self.fail = ""
        self.dtype = DataType.FLOAT

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        runtime = SimpleNamespace(engine_host_code_allowed=False)
        runtime.deserialize_cuda_engine = lambda content: self._deserialise(content, logger, runtime)
        return runtime

    def Refitter(self, engine: Engine, logger: Any) -> Any:  # noqa: N802
        missing = [] if engine.has_weights else ["a weight"]
        return SimpleNamespace(
            engine=engine,
            get_missing_weights=missing.copy,
            given=missing.clear,
            refit_cuda_engine=lambda: engine.refit(not missing),
        )

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:  # noqa: N802
        def refit_from_bytes(graph: bytes) -> bool:
            if self.fail == "refit" or graph != refitter.engine.graph:
                logger.log(Severity.ERROR, "Failed to refit the weights.")
                return False
            refitter.given()
            return True

        return SimpleNamespace(refit_from_bytes=refit_from_bytes)

    def _deserialise(self, content: bytes, logger: Any, runtime: Any) -> Engine | None:
        if not content.startswith(MAGIC):
            logger.log(Severity.ERROR, "Serialization assertion magicTagRead == kPLAN_MAGIC_TAG failed.")
            return None
        header, graph = content[len(MAGIC) :].split(b"\n", 1)
        about = json.loads(header)
        if about.get("version_compatible") and not runtime.engine_host_code_allowed:
            logger.log(Severity.ERROR, "Cannot deserialize engine with lean runtime: host code is not allowed.")
            return None
        return Engine(self, graph, about["profiles"], logger, not about.get("strip_weights"))


class Engine:
    """ICudaEngine."""

    device_memory_size_v2 = ACTIVATION_BYTES

    def __init__(
        self, library: StandIn, graph: bytes, profiles: list[list[int]], logger: Any, has_weights: bool
    ) -> None:
        self.graph, self.has_weights = graph, has_weights
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.library, self.profiles, self.logger = library, profiles, logger
        self.inputs = {value.name: value.shape for value in self.session.get_inputs()}
        self.outputs = {value.name: value.shape for value in self.session.get_outputs()}
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(profiles)

    def refit(self, complete: bool) -> bool:
        self.has_weights = complete
        return complete

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = {**self.inputs, **self.outputs}[name]
        return tuple(n if isinstance(n, int) else -1 for n in shape)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.library.dtype

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(batch, *self.get_tensor_shape(name)[1:]) for batch in self.profiles[index]]

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> Context | None:
        if self.library.fail == "context":
            self.logger.log(Severity.ERROR, "Requested amount of GPU memory could not be allocated.")
            return None
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)


class Context:
    """IExecutionContext."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses, self.shape = engine, {}, None
        self.profile: int | None = None
        self.memory = 0
        self.alive: list[Any] = []  # callbacks that streams and graphs may still use
        self.arrays: dict[str, np.ndarray] = {}
        engine.library.contexts += 1

    def __del__(self) -> None:
        self.engine.library.contexts -= 1

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= ACTIVATION_BYTES and memory % 256 == 0
        self.memory = memory

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.engine.profiles[self.profile]
        if self.engine.library.fail == "shape" or not smallest <= shape[0] <= largest:
            return self._error(f"setInputShape: {shape} is not in the profile {smallest} to {largest}")
        self.shape = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self.engine.names and address % 256 == 0
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        from metro_edge.cuda import driver

        assert self.engine.has_weights, "TensorRT would run it, with whatever is in memory"
        if self.engine.library.fail == "enqueue":
            return self._error("Cask convolution execution")
        missing = [name for name in self.engine.names if name not in self.addresses]
        if missing or not self.memory or self.shape is None:
            return self._error(f"enqueueV3: neither address nor shape may be missing: {missing}")
        status = ctypes.c_int()
        driver.call("cuStreamIsCapturing", ctypes.c_void_p(stream), ctypes.byref(status))
        if status.value and self.engine.library.fail == "capture":
            return self._error("operation not permitted when stream is capturing")
        self._give(stream)
        return True

    def _give(self, stream: int) -> None:
        """Give the network's run to a stream."""
        from metro_edge.cuda import driver

        count = self.shape[0]
        shapes = {name: (count, *self.engine.get_tensor_shape(name)[1:]) for name in self.engine.names}
        if not self.arrays:  # in the first run, which is not captured
            self.arrays = {name: self._host(name, shape) for name, shape in shapes.items()}
        arrays = self.arrays

        @HostFunction
        def run(_: int) -> None:
            self.engine.library.runs.append(count)
            results = self.engine.session.run(
                list(self.engine.outputs), {name: arrays[name] for name in self.engine.inputs}
            )
            for name, values in zip(self.engine.outputs, results, strict=True):
                arrays[name][...] = values

        self.alive.append(run)
        copies = {} if on_stand_in() else {name: (arrays[name].ctypes.data, arrays[name].nbytes) for name in shapes}
        for name, (host, nbytes) in copies.items():
            if name in self.engine.inputs:
                driver.call(
                    "cuMemcpyDtoHAsync_v2", ctypes.c_void_p(host), ctypes.c_uint64(self.addresses[name]),
                    ctypes.c_size_t(nbytes), ctypes.c_void_p(stream),
                )  # fmt: skip
        driver.call("cuLaunchHostFunc", ctypes.c_void_p(stream), run, None)
        for name, (host, nbytes) in copies.items():
            if name in self.engine.outputs:
                driver.call(
                    "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(self.addresses[name]), ctypes.c_void_p(host),
                    ctypes.c_size_t(nbytes), ctypes.c_void_p(stream),
                )  # fmt: skip

    def _host(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if not on_stand_in():
            library, values = self.engine.library, int(np.prod(shape))
            library.used += values
            return library.memory[library.used - values : library.used].reshape(shape)
        memory = (ctypes.c_float * int(np.prod(shape))).from_address(self.addresses[name])
        return np.frombuffer(memory, np.float32).reshape(shape)

    def _error(self, message: str) -> bool:
        self.engine.logger.log(Severity.ERROR, message)
        return False
