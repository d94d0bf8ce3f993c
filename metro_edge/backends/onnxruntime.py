"""ONNX Runtime: runs every precision of a bundle, on any CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from metro_edge.backends import FloatArray, Outputs, Session
from metro_edge.errors import BundleError, UserError
from metro_edge.spec import INPUT_NAME, OUTPUT_NAMES, ModelSpec

if TYPE_CHECKING:
    from metro_edge.bundle import Bundle

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_ERRORS_ONLY = 3


class OnnxRuntimeSession(Session):
    """A bundle's network on ONNX Runtime.

    Args:
        bundle: a loaded bundle.
        precision: fp32, fp16 or int8.
        threads: CPU threads of one inference; None leaves it to ONNX Runtime, which takes all physical cores.
        provider: the execution provider, such as CPUExecutionProvider. There is no fallback to another one.

    Raises:
        UserError: unknown precision or provider, a provider that does not start, or fewer than one thread.
        BundleError: the file is missing or altered, not an ONNX graph, or not the spec's network.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str = "fp32",
        *,
        threads: int | None = None,
        provider: str = "CPUExecutionProvider",
    ) -> None:
        import onnxruntime as ort

        if threads is not None and threads < 1:
            raise UserError(f"the number of threads must be at least 1, got {threads}")
        if provider not in ort.get_available_providers():
            known = ", ".join(ort.get_available_providers())
            raise UserError(f"this ONNX Runtime has no provider {provider!r}; it has {known}")
        graph = bundle.onnx_bytes(precision)
        if precision == "int8" and provider == "CPUExecutionProvider":
            from metro_edge.backends.int8_twin import cpu_twin

            graph = cpu_twin(graph)  # the same numbers, in the form that the fast CPU kernels take
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        options.use_deterministic_compute = True
        try:
            session = ort.InferenceSession(graph, options, providers=[provider])
        except Exception as error:  # its exceptions have no common base but Exception
            reason = str(error).strip().splitlines()[0]
            raise BundleError(f"ONNX Runtime cannot load the {precision} network of {bundle.path}: {reason}") from None
        session.disable_fallback()
        # A provider that cannot start is replaced by the CPU with a warning only.
        if session.get_providers()[0] != provider:
            raise UserError(f"provider {provider} did not start; ONNX Runtime offered {session.get_providers()[0]}")
        self.spec = bundle.spec
        self.precision = precision
        self.device = f"onnxruntime {ort.__version__} {provider}"
        self._session: Any = session
        self._input_dtype = _input_dtype(session, bundle.spec, f"{precision} network of {bundle.path}")

    def _infer(self, images: FloatArray) -> Outputs:
        if self._session is None:
            raise UserError("this session is closed; open another one")
        feeds = {INPUT_NAME: images.astype(self._input_dtype, copy=False)}
        results = self._session.run(list(OUTPUT_NAMES), feeds)
        return Outputs(*(np.asarray(values).astype(np.float32, copy=False) for values in results))

    def close(self) -> None:
        """Free the engine; doing it twice is fine."""
        self._session = None


def _input_dtype(session: Any, spec: ModelSpec, name: str) -> type[np.floating[Any]]:
    """Check the graph's inputs and outputs against the spec and return the type of its input."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [i.name for i in inputs] != [INPUT_NAME] or {o.name for o in outputs} != set(OUTPUT_NAMES):
        raise BundleError(
            f"the {name} has inputs {[i.name for i in inputs]} and outputs {[o.name for o in outputs]}; "
            f"expected {INPUT_NAME} and {', '.join(OUTPUT_NAMES)}"
        )
    unknown = {tensor.type for tensor in (*inputs, *outputs)} - _DTYPES.keys()
    if unknown:
        raise BundleError(f"the {name} has tensors of type {', '.join(sorted(unknown))}; expected float or float16")
    shape = list(inputs[0].shape)
    if shape[1:] != [3, spec.image_size, spec.image_size] or isinstance(shape[0], int):
        raise BundleError(f"the {name} takes images {shape}; expected (any, 3, {spec.image_size}, {spec.image_size})")
    dtype: type[np.floating[Any]] = _DTYPES[inputs[0].type]
    return dtype
