"""Times of graphs on this machine: whole ones on a backend as a user runs them, small parts on its library."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.quantize.loss import quantises
from metro_edge.backends import open_session
from metro_edge.backends.cpu_twin import cpu_twin
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError

BLOCK_S = 0.15  # of calls in a row; the first third is not counted, as threads of another session still spin then
LEAST, MOST = 3, 200  # calls in a row
ROUNDS = 9
TIMED = ("onnxruntime", "openvino")  # backends whose library runs parts of graphs, see part_call


@dataclass(frozen=True)
class Candidate(Bundle):
    """A bundle one of whose networks is a graph that was not written.

    Attributes:
        graph: the ONNX graph, whatever precision is asked for.
    """

    graph: bytes = field(default=b"", repr=False)

    def onnx_bytes(self, precision: str) -> bytes:
        """Return the graph."""
        return self.graph


def candidate(bundle: Bundle, graph: onnx.ModelProto) -> tuple[Candidate, str]:
    """Return a bundle with a graph in it, and the precision under which backends take it as it should be."""
    precision = "int8" if quantises(graph) else "fp32"
    made = Candidate(bundle.path, bundle.spec, bundle.template, bundle.passport, graph.SerializeToString())
    return made, precision


def time_graphs(
    bundle: Bundle,
    graphs: Sequence[onnx.ModelProto],
    image: NDArray[np.float32],
    backend: str,
    *,
    rounds: int = ROUNDS,
    **options: Any,
) -> list[float]:
    """Return the latency of graphs for one image in ms, the first graph being what the others are compared with.

    Rounds of a few calls of each graph in turn; per round the ratio to the first graph, then the medians: what slows
    the machine for a while slows all alike.

    Args:
        bundle: that the graphs are variants of.
        graphs: the first is the reference.
        image: (1, 3, S, S) float32.
        backend: see open_session.
        rounds: how often.
        options: of the backend's session.

    Raises UserError when the backend cannot run a graph.
    """
    with ExitStack() as stack:
        calls = []
        for graph in graphs:
            made, precision = candidate(bundle, graph)
            opened = stack.enter_context(open_session(made, precision, backend, **options))
            calls.append(lambda opened=opened: opened.infer(image))
        return time_calls(calls, rounds)


def time_calls(calls: Sequence[Callable[[], object]], rounds: int = ROUNDS, block_s: float = BLOCK_S) -> list[float]:
    """Return the duration of calls in ms, by rounds and ratios, see time_graphs; a block takes about `block_s`."""
    blocks = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        seconds = max(time.perf_counter() - start, 1e-7)
        blocks.append(int(np.clip(np.ceil(block_s / seconds), LEAST, MOST)))
    medians = np.array(
        [[_block_ms(call, block) for call, block in zip(calls, blocks, strict=True)] for _ in range(rounds)]
    )
    reference = float(np.median(medians[:, 0]))
    return [float(value) * reference for value in np.median(medians / medians[:, :1], axis=0)]


def _block_ms(call: Callable[[], object], block: int) -> float:
    durations = []
    for _ in range(block):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return float(np.median(durations[(block + 2) // 3 :])) * 1000.0


def part_call(
    graph: onnx.ModelProto, feeds: Mapping[str, NDArray], backend: str, threads: int | None
) -> Callable[[], object]:
    """Return a call that runs a part of a graph on a backend's library, without the checks of a session.

    Args:
        graph: the part; its quantised inputs are graph inputs, see quantised_inputs.
        feeds: float values of its inputs; those of quantised inputs are made up.
        backend: one of TIMED.
        threads: None leaves them to the backend.

    Raises UserError for another backend.
    """
    check_timed(backend)
    values = {v.name: _value(v, feeds) for v in graph.graph.input}
    return (_onnxruntime_call if backend == "onnxruntime" else _openvino_call)(graph, values, threads)


def check_timed(backend: str) -> None:
    """Raise UserError for a backend on which layers are not timed."""
    if backend not in TIMED:
        raise UserError(
            f"no times of layers are known on backend {backend!r}: take {' or '.join(TIMED)}, or predict a GPU's by "
            "--device"
        )


def twin(graph: onnx.ModelProto, backend: str) -> onnx.ModelProto:
    """Return the form in which a backend runs a part of a graph."""
    if backend != "onnxruntime" or not quantises(graph):
        return graph
    result = onnx.load_from_string(cpu_twin(graph.SerializeToString()))
    for value in result.graph.output:  # the twin's levels are uint8
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT8:
            value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    return result


def quantised_inputs(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a part whose inputs, where they are quantised at once, are inputs in that type."""
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    types = {tensor.name: tensor.data_type for tensor in result.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in result.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for value in list(result.graph.input):
        users = readers.get(value.name, [])
        if len(users) == 1 and users[0].op_type == "QuantizeLinear":
            made = onnx.helper.make_tensor_value_info(users[0].output[0], types[users[0].input[2]], None)
            made.type.tensor_type.shape.CopyFrom(value.type.tensor_type.shape)
            made.doc_string = value.name
            result.graph.node.remove(users[0])
            value.CopyFrom(made)
    return result


def _value(value: onnx.ValueInfoProto, feeds: Mapping[str, NDArray]) -> NDArray:
    """Return what an input is given: its values, or for a quantised one levels of the same shape."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if not value.doc_string:
        return feeds[value.name]
    shape = feeds[value.doc_string].shape
    levels = np.random.default_rng(0).integers(0, 100, shape)
    return levels.astype(kind)


def _onnxruntime_call(
    graph: onnx.ModelProto, values: Mapping[str, NDArray], threads: int | None
) -> Callable[[], object]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, values)


def _openvino_call(graph: onnx.ModelProto, values: Mapping[str, NDArray], threads: int | None) -> Callable[[], object]:
    import openvino as ov

    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    core = ov.Core()
    model = core.read_model(io.BytesIO(graph.SerializeToString()))
    model.reshape({name: list(array.shape) for name, array in values.items()})
    request = core.compile_model(model, "CPU", properties).create_infer_request()
    inputs = [values[port.get_any_name()] for port in model.inputs]
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)
