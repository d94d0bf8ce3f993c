"""A TensorRT plan on the GPU: its buffers allocated once, run on a stream, captured into graphs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from metro_edge.cuda.arrays import DeviceArray, DeviceBuffer
from metro_edge.errors import DeviceError, PredictionError, UserError
from metro_edge.files import reason
from metro_edge.plans.info import PlanInfo
from metro_edge.plans.log import logger_of
from metro_edge.plans.options import BatchProfile
from metro_edge.plans.versions import Library, activation_bytes, new_context
from metro_edge.spec import INPUT_NAME, ModelSpec

if TYPE_CHECKING:
    import tensorrt as stubs


class DeviceNetwork:
    """A plan that is loaded, and checked to be of the network that a spec describes.

    Attributes:
        spec: of the network.
        profiles: batches that the plan takes.
        library: the module `tensorrt` or `tensorrt_rtx`.

    Args:
        path: of the plan, which metro_edge.plans has checked.
        spec: of the network.
        library: see metro_edge.plans.versions.load_library.
        graph: gives the ONNX graph that the plan was built from, whose weights a plan without weights gets.

    The CUDA context must be current, here and in all methods.

    Raises:
        UserError: a plan that TensorRT refuses, with its reason, that has other tensors than the spec says, or whose
            weights cannot be filled in.
    """

    def __init__(self, path: Path, spec: ModelSpec, library: Library, graph: Callable[[], bytes] | None = None) -> None:
        self.spec, self.library = spec, library
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from None
        self._logger = logger_of(library)
        self._logger.start()
        settings = _settings(path)
        runtime = library.Runtime(self._logger)
        if settings.get("version_compatible"):
            runtime.engine_host_code_allowed = True  # such a plan brings the runtime of the version that built it
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise UserError(f"{library.__name__} refuses plan {path}: {self._logger.reason()}")
        if settings.get("strip_weights"):
            self._fill_in(engine, path, graph)
        self.profiles = self._checked(engine, path)
        self._runtime: stubs.Runtime | None = runtime
        self.engine: stubs.ICudaEngine | None = engine

    @property
    def max_batch(self) -> int:
        """The largest batch that the plan takes."""
        return max(profile.largest for profile in self.profiles)

    @property
    def activation_bytes(self) -> int:
        """Scratch memory that one run needs."""
        return activation_bytes(self._engine)

    @property
    def _engine(self) -> stubs.ICudaEngine:
        if self.engine is None:
            raise UserError("this network is closed")
        return self.engine

    def output_sizes(self) -> dict[str, tuple[int, ...]]:
        """Return all outputs of the plan -> their shape for one person."""
        engine = self._engine
        names = (engine.get_tensor_name(i) for i in range(engine.num_io_tensors))
        return {name: _shape(engine, name)[1:] for name in names if name != INPUT_NAME}

    def new_context(self, memory: int) -> Any:
        """Return an execution context that keeps its activations at `memory`; raises DeviceError when there is none."""
        self._logger.start()
        context = new_context(self.library, self._engine, memory, self.activation_bytes)
        if context is None:
            raise DeviceError(f"{self.library.__name__} makes no execution context: {self._logger.reason()}")
        return context

    def why(self) -> str:
        """Return the first error that TensorRT logged since the last `start`."""
        return str(self._logger.reason())

    def profile_of(self, count: int) -> int:
        """Return the number of the profile for a batch: the one chosen for the nearest batch among those that take it.

        Raises UserError where none takes it.
        """
        fitting = [i for i, profile in enumerate(self.profiles) if profile.smallest <= count <= profile.largest]
        if not fitting:
            taken = ", ".join(f"{p.smallest} to {p.largest}" for p in self.profiles)
            raise UserError(f"the plan takes batches of {taken}, not of {count}: build one with --batch that does")
        return min(fitting, key=lambda i: abs(self.profiles[i].best - count))

    def close(self) -> None:
        """Free engine and runtime, after all execution contexts; twice is fine."""
        self.engine = self._runtime = None

    def _fill_in(self, engine: stubs.ICudaEngine, path: Path, graph: Callable[[], bytes] | None) -> None:
        """Give a plan without weights those of the graph; without them it would run, and compute nonsense."""
        if graph is None:
            raise UserError(f"plan {path} has no weights, and no graph to take them from was given")
        content = graph()  # TensorRT reads it until the plan has its weights
        trt = cast(Any, self.library)
        refitter: stubs.Refitter = trt.Refitter(engine, self._logger)
        parser: stubs.OnnxParserRefitter = trt.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_bytes(content) or refitter.get_missing_weights() or not refitter.refit_cuda_engine():
            raise UserError(
                f"plan {path} has no weights, and {self.library.__name__} cannot take them from the bundle's graph: "
                f"{self._logger.reason()}; build it again without --strip-weights"
            )

    def _checked(self, engine: stubs.ICudaEngine, path: Path) -> tuple[BatchProfile, ...]:
        trt, size = self.library, self.spec.image_size
        found = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            shape = _shape(engine, name)
            found[name] = (engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT, shape[1:])
            if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
                raise UserError(f"plan {path}: tensor {name} is {engine.get_tensor_dtype(name)}, float32 was expected")
        wanted: dict[str, tuple[bool, tuple[int, ...]]] = {INPUT_NAME: (True, (3, size, size))}
        wanted |= {name: (False, shape) for name, shape in output_sizes(self.spec).items()}
        for name, (is_input, shape) in wanted.items():
            if name not in found or found[name][0] != is_input or found[name][1] != shape:
                has = ", ".join(f"{n} {s}" for n, (_, s) in found.items())
                raise UserError(f"plan {path} is of another network: {name} (N, {shape}) was expected, it has {has}")
        profiles = []
        for i in range(engine.num_optimization_profiles):
            smallest, best, largest = (int(dims[0]) for dims in engine.get_tensor_profile_shape(INPUT_NAME, i))
            profiles.append(BatchProfile(smallest, best, largest))
        return tuple(profiles)


def output_sizes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the outputs that become bodies -> their shape for one person; other outputs of a plan are not read."""
    joints = len(spec.joints)
    mesh = {"vertices": (spec.vertex_count, 3)} if "vertices" in spec.outputs else {"mesh_joints": (joints, 3)}
    return {"camera": (3,), "joints": (joints, 3), **mesh}


def _settings(path: Path) -> dict[str, Any]:
    """Return what the sidecar, which was checked before, says of how a plan was built."""
    sidecar = PlanInfo.path_of(path)
    if not sidecar.is_file():
        return {}
    try:
        settings: dict[str, Any] = json.loads(sidecar.read_bytes())["settings"]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {sidecar}: {error}") from None
    return settings


def _shape(engine: stubs.ICudaEngine, name: str) -> tuple[int, ...]:
    return tuple(int(n) for n in cast(Iterable[int], engine.get_tensor_shape(name)))


class NetworkRunner:
    """Buffers of one network for one stream, and an execution context for each batch size.

    A captured graph holds on to the state of its context, so every batch has its own; they share the memory for
    activations, for on one stream they never run at once. See "Capturing dynamic shapes" in TensorRT's guide.

    Attributes:
        images: (max_batch, 3, S, S) float32, the input.

    Args:
        network: that it runs.
        outputs: name -> shape for one person, of the outputs that are read.

    Raises:
        UserError: when the device memory is not there.
    """

    def __init__(self, network: DeviceNetwork, outputs: dict[str, tuple[int, ...]] | None = None) -> None:
        size, most = network.spec.image_size, network.max_batch
        self._network = network
        self.images = DeviceBuffer((most, 3, size, size), np.float32)
        self._outputs = {
            name: DeviceBuffer((most, *shape), np.float32)
            for name, shape in (outputs or output_sizes(network.spec)).items()
        }
        self._unread = {
            name: DeviceBuffer((most, *shape), np.float32)
            for name, shape in network.output_sizes().items()
            if name not in self._outputs
        }
        self._activations = DeviceBuffer((max(network.activation_bytes, 1),), np.uint8)
        self._contexts: dict[int, Any] = {}

    def outputs(self, count: int) -> dict[str, DeviceArray]:
        """Return the outputs of the last batch of `count`, in the network's own memory."""
        return {name: buffer.rows(0, count) for name, buffer in self._outputs.items()}

    def prepare(self, count: int, stream: Any) -> None:
        """Make the execution context of a batch, if it is not there; not to be called while the stream captures.

        Raises:
            UserError: a batch that the plan does not take.
            DeviceError: no execution context, or one that refuses its shapes or addresses.
        """
        if count in self._contexts:
            return
        profile = self._network.profile_of(count)
        context = self._network.new_context(self._activations.pointer)
        size = self._network.spec.image_size
        done = context.set_optimization_profile_async(profile, stream.handle)
        done = done and context.set_input_shape(INPUT_NAME, (count, 3, size, size))
        buffers = {INPUT_NAME: self.images, **self._outputs, **self._unread}
        done = done and all(context.set_tensor_address(name, buffer.pointer) for name, buffer in buffers.items())
        if not done:
            raise DeviceError(f"TensorRT refuses a batch of {count}: {self._network.why()}")
        self._contexts[count] = context

    def run(self, count: int, stream: Any) -> None:
        """Give the network for a batch that was prepared to a stream.

        Raises:
            PredictionError: TensorRT refuses, with its reason.
        """
        if not self._contexts[count].execute_async_v3(stream.handle):
            raise PredictionError(f"TensorRT fails to run a batch of {count}: {self._network.why()}")

    def close(self) -> None:
        """Free the contexts, before the network is closed."""
        self._contexts.clear()
