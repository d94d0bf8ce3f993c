"""OpenVINO: runs every precision of a bundle on x86 and Arm CPUs."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.backends import FloatArray, Outputs, Session
from metro_edge.backends.cores import check_cores, running_on
from metro_edge.backends.cpu_twin import OPENVINO_REWRITINGS, rewrite
from metro_edge.backends.saturation import saturates
from metro_edge.errors import BundleError, MissingExtraError, PredictionError, UserError
from metro_edge.spec import INPUT_NAME, ModelSpec

if TYPE_CHECKING:
    from metro_edge.bundle import Bundle

_FLOATS = ("float32", "float16")
_LONGEST_REASON = 300  # characters
MOST_STREAMS = 16
MOST_SINGLES = 2  # images that take no less time together than one after the other
# Computes quantised layers with floats, as Q and DQ are defined.
_NO_INTEGERS = {"LP_TRANSFORMS_MODE": "NO"}


class OpenVinoSession(Session):
    """A bundle's network on OpenVINO's CPU plugin, compiled for latency.

    Float arithmetic is float32 in every precision: by itself OpenVINO takes bfloat16 on CPUs that have it. Single
    images have a network of their own, compiled at once, whose shapes are fixed, which is faster; so have two images,
    one after the other. All other sizes share one, compiled when it is first needed, which takes a second or so.

    Args:
        bundle: a loaded bundle.
        precision: fp32, fp16, int8 or fp8.
        threads: CPU threads of one inference; None leaves it to OpenVINO, which takes all physical cores.
        affinity: numbers of the cores that the threads run on, one for each; None leaves it to OpenVINO. The thread
            that calls `infer` is one of them and is kept on these cores during the call.
        streams: inferences that run at once when as many threads call `infer`; they share `threads`, one each at least.

    Raises:
        MissingExtraError: openvino is not installed.
        UserError: fewer than one thread or stream, or cores that cannot be used.
        BundleError: the file is missing or altered, not an ONNX graph, or not the spec's network.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str = "fp32",
        *,
        threads: int | None = None,
        affinity: Sequence[int] | None = None,
        streams: int = 1,
    ) -> None:
        ov = _openvino()
        threads, self._cores = check_cores(threads, affinity)
        if not 1 <= streams <= MOST_STREAMS or (streams > 1 and self._cores is not None):
            raise UserError(
                f"1 to {MOST_STREAMS} streams, and one where cores are given, got {streams}"
                f"{'' if self._cores is None else ' with affinity'}"
            )
        name = f"{precision} network of {bundle.path}"
        graph = rewrite(bundle.onnx_bytes(precision), OPENVINO_REWRITINGS, f"the {name}")
        self._properties = _properties(threads, pinned=self._cores is not None, streams=streams)
        self.concurrent = streams > 1
        self.device = f"openvino {ov.__version__.split('-')[0]} CPU"
        if precision == "int8" and products_saturate():
            self._properties |= _NO_INTEGERS
            self.device += ", int8 computed in float32: this CPU's integer products saturate"
        elif precision == "fp8":
            self.device += ", fp8 computed in float32"
        self._name = name
        self.spec = bundle.spec
        self.precision = precision
        # Of single images and of batches: the compiled network, and its requests that nobody uses just now.
        self._compiled: dict[bool, tuple[Any, list[Any]]] = {}
        self._lock = threading.Lock()
        try:
            self._model: Any = ov.Core().read_model(io.BytesIO(graph))
        except Exception as error:  # a RuntimeError of its own, or of its ONNX reader
            raise BundleError(f"OpenVINO cannot load the {name}: {_reason(error)}") from None
        _check_network(self._model, bundle.spec, name)
        try:
            with self._request(single=True):
                pass
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot compile the {name}: {_reason(error)}") from None

    @contextlib.contextmanager
    def _request(self, single: bool) -> Iterator[Any]:
        """Lend a request of single images, or of batches of any size; the network is compiled on first use."""
        with self._lock:
            if single not in self._compiled:
                self._compiled[single] = self._compile(single), []
            compiled, free = self._compiled[single]
            request = free.pop() if free else compiled.create_infer_request()
        try:
            yield request
        finally:
            with self._lock:
                free.append(request)

    def _compile(self, single: bool) -> Any:
        model = self._model.clone()
        if single:
            model.reshape([1, 3, self.spec.image_size, self.spec.image_size])
        with running_on(self._cores):  # OpenVINO takes its threads from the cores that it may use here
            return _openvino().Core().compile_model(model, "CPU", self._properties)

    def _infer(self, images: FloatArray) -> Outputs:
        if self._model is None:
            raise UserError("this session is closed; open another one")
        inputs = np.ascontiguousarray(images, self._input_dtype)
        if len(inputs) <= MOST_SINGLES:
            return Outputs.joined([self._run(inputs[number : number + 1]) for number in range(len(inputs))])
        return self._run(inputs)

    def _run(self, inputs: NDArray[Any]) -> Outputs:
        try:
            with self._request(single=len(inputs) == 1) as request, running_on(self._cores):
                results = request.infer([inputs], share_inputs=True)
        except RuntimeError as error:
            raise PredictionError(f"the {self._name} failed on OpenVINO: {_reason(error)}") from None
        arrays = {name: np.asarray(results[name]).astype(np.float32, copy=False) for name in self.spec.outputs}
        return Outputs(**arrays)

    @property
    def _input_dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self._model.input(0).element_type.to_dtype()
        return dtype

    def close(self) -> None:
        """Free the engine; doing it twice is fine."""
        self._model = None
        self._compiled = {}


@lru_cache(maxsize=1)
def products_saturate() -> bool:
    """Whether this CPU's integer products clip large sums, see metro_edge.backends.saturation."""
    ov = _openvino()

    def run(graph: bytes, x: FloatArray) -> FloatArray:
        core = ov.Core()
        compiled = core.compile_model(core.read_model(io.BytesIO(graph)), "CPU", _properties(1, pinned=False))
        return np.asarray(compiled([x])[0])

    return saturates(run, unsigned=False)


def _openvino() -> Any:
    try:
        import openvino
    except ModuleNotFoundError:
        raise MissingExtraError("openvino", "openvino", "run a bundle on OpenVINO") from None
    return openvino


def _properties(threads: int | None, *, pinned: bool, streams: int = 1) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": streams,
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
    }
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = max(threads, streams)
    if pinned:
        properties["ENABLE_CPU_PINNING"] = True
    return properties


def _check_network(model: Any, spec: ModelSpec, name: str) -> None:
    """Raise BundleError unless the graph's inputs and outputs are the spec's."""
    inputs = [value.get_any_name() for value in model.inputs]
    outputs = [value.get_any_name() for value in model.outputs]
    if inputs != [INPUT_NAME] or set(outputs) != set(spec.outputs):
        raise BundleError(
            f"the {name} has inputs {inputs} and outputs {outputs}; expected {INPUT_NAME} and {', '.join(spec.outputs)}"
        )
    types = {str(value.element_type.to_dtype()) for value in (*model.inputs, *model.outputs)}
    if unknown := types.difference(_FLOATS):
        raise BundleError(f"the {name} has tensors of type {', '.join(sorted(unknown))}; expected float32 or float16")
    batch, *rest = model.input(0).partial_shape
    sizes = [size.get_length() if size.is_static else None for size in rest]
    if batch.is_static or sizes != [3, spec.image_size, spec.image_size]:
        shape = model.input(0).partial_shape.to_string()
        raise BundleError(f"the {name} takes images {shape}; expected (any, 3, {spec.image_size}, {spec.image_size})")


def _reason(error: Exception) -> str:
    """Return OpenVINO's message in one line, without the lines that name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '", "FrontEnd API failed"))]
    return " ".join(telling or lines or [type(error).__name__])[:_LONGEST_REASON]
