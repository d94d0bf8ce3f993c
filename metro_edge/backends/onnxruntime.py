"""ONNX Runtime: runs every precision of a bundle, on any CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from metro_edge.backends import FloatArray, Outputs, Session
from metro_edge.backends.cores import check_cores, running_on
from metro_edge.backends.cpu_twin import FLOAT_REWRITINGS, cpu_twin, rewrite
from metro_edge.backends.saturation import saturates
from metro_edge.errors import BundleError, PredictionError, UserError
from metro_edge.spec import INPUT_NAME, ModelSpec

if TYPE_CHECKING:
    from metro_edge.bundle import Bundle

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_QUIET = 4  # what fails is raised, with its reason
CPU = "CPUExecutionProvider"
# Weights as uint8 too, whose products are summed in 32 bits everywhere: right, and a quarter slower.
_EXACT_PRODUCTS = "session.x64quantprecision"
# Residual sum and normalisation as one operator take four times as long on the CPU as they do apart.
_SLOWER_OPTIMIZERS = ("SkipLayerNormFusion",)
# Clip and the quantisation behind it as one: knows int8 and uint8 alone, and fails over fp8 (seen with 1.32).
_NO_FP8_OPTIMIZERS = ("ClipQuantRewrite",)


def left_out(fp8: bool, floats: bool = True) -> list[str]:
    """Return the names of ONNX Runtime's rewritings that a session does without.

    Args:
        fp8: the graph quantises to FP8.
        floats: leave out what makes floats slower too.
    """
    return [*(_SLOWER_OPTIMIZERS if floats else ()), *(_NO_FP8_OPTIMIZERS if fp8 else ())]


class OnnxRuntimeSession(Session):
    """A bundle's network on ONNX Runtime.

    On the CPU it runs the graph's twin, see metro_edge.backends.cpu_twin: the same numbers, faster.

    Args:
        bundle: a loaded bundle.
        precision: fp32, fp16, int8 or fp8.
        threads: CPU threads of one inference; None leaves it to ONNX Runtime, which takes all physical cores.
        affinity: numbers of the cores that the threads run on, one for each; None leaves it to the system. The
            thread that calls `infer` is the first of them and is kept on its core during the call.
        provider: the execution provider, such as CPUExecutionProvider. There is no fallback to another one.

    Raises:
        UserError: unknown precision or provider, a provider that does not start, fewer than one thread, or cores that
            cannot be used.
        BundleError: the file is missing or altered, not an ONNX graph, or not the spec's network.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str = "fp32",
        *,
        threads: int | None = None,
        affinity: Sequence[int] | None = None,
        provider: str = CPU,
    ) -> None:
        import onnxruntime as ort

        threads, cores = check_cores(threads, affinity)
        if provider not in ort.get_available_providers():
            known = ", ".join(ort.get_available_providers())
            raise UserError(f"this ONNX Runtime has no provider {provider!r}; it has {known}")
        name = f"{precision} network of {bundle.path}"
        graph = bundle.onnx_bytes(precision)
        if provider == CPU:
            graph = cpu_twin(graph) if precision == "int8" else rewrite(graph, FLOAT_REWRITINGS, f"the {name}")
        options = _options(threads, cores, exact_products=precision == "int8" and provider == CPU)
        try:
            without = left_out(fp8=precision == "fp8")
            session = ort.InferenceSession(graph, options, providers=[provider], disabled_optimizers=without)
        except Exception as error:  # its exceptions have no common base but Exception
            raise BundleError(f"ONNX Runtime cannot load the {name}: {_reason(error)}") from None
        session.disable_fallback()
        # A provider that cannot start is replaced by the CPU with a warning only.
        if session.get_providers()[0] != provider:
            raise UserError(f"provider {provider} did not start; ONNX Runtime offered {session.get_providers()[0]}")
        self.spec = bundle.spec
        self.precision = precision
        self.device = f"onnxruntime {ort.__version__} {provider}"
        if precision == "fp8" and provider == CPU:
            self.device += ", fp8 computed in float32"
        self._name = name
        self._session: Any = session
        self._caller = None if cores is None else cores[:1]
        self.concurrent = provider == CPU and cores is None
        self._input_dtype = _input_dtype(session, bundle.spec, name)

    def _infer(self, images: FloatArray) -> Outputs:
        if self._session is None:
            raise UserError("this session is closed; open another one")
        feeds = {INPUT_NAME: images.astype(self._input_dtype, copy=False)}
        names = self.spec.outputs
        with running_on(self._caller):
            try:
                results = self._session.run(list(names), feeds)
            except Exception as error:  # see above
                raise PredictionError(f"the {self._name} failed on ONNX Runtime: {_reason(error)}") from None
        arrays = (np.asarray(values).astype(np.float32, copy=False) for values in results)
        return Outputs(**dict(zip(names, arrays, strict=True)))

    def close(self) -> None:
        """Free the engine; doing it twice is fine."""
        self._session = None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _options(threads: int | None, cores: Sequence[int] | None, *, exact_products: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    options.use_deterministic_compute = True
    if cores is not None and len(cores) > 1:
        # ONNX Runtime counts cores from 1; the first thread is the caller's own.
        groups = ";".join(str(core + 1) for core in cores[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", groups)
    if exact_products and products_saturate():
        options.add_session_config_entry(_EXACT_PRODUCTS, "1")
    return options


@lru_cache(maxsize=1)
def products_saturate() -> bool:
    """Whether this CPU's fast integer products clip large sums, see metro_edge.backends.saturation."""
    import onnxruntime as ort

    def run(graph: bytes, x: FloatArray) -> FloatArray:
        options = _options(1, None, exact_products=False)
        session = ort.InferenceSession(graph, options, providers=[CPU])
        return np.asarray(session.run(None, {"x": x})[0])

    return saturates(run, unsigned=True)


def _input_dtype(session: Any, spec: ModelSpec, name: str) -> type[np.floating[Any]]:
    """Check the graph's inputs and outputs against the spec and return the type of its input."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [i.name for i in inputs] != [INPUT_NAME] or {o.name for o in outputs} != set(spec.outputs):
        raise BundleError(
            f"the {name} has inputs {[i.name for i in inputs]} and outputs {[o.name for o in outputs]}; "
            f"expected {INPUT_NAME} and {', '.join(spec.outputs)}"
        )
    unknown = {tensor.type for tensor in (*inputs, *outputs)} - _DTYPES.keys()
    if unknown:
        raise BundleError(f"the {name} has tensors of type {', '.join(sorted(unknown))}; expected float or float16")
    shape = list(inputs[0].shape)
    if shape[1:] != [3, spec.image_size, spec.image_size] or isinstance(shape[0], int):
        raise BundleError(f"the {name} takes images {shape}; expected (any, 3, {spec.image_size}, {spec.image_size})")
    dtype: type[np.floating[Any]] = _DTYPES[inputs[0].type]
    return dtype
