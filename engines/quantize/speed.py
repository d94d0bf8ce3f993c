"""What precisions cost in time: measured on a backend of this machine, or predicted for a device of the table.

Both give the costs of units, by which mixes are proposed; times of whole mixes are what counts. Measured ones are of
whole graphs, in turns with FP32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from engines.quantize.clock import check_timed, part_call, quantised_inputs, time_calls, time_graphs, twin
from engines.quantize.costs import PLAIN, QUANTISED, Costs
from engines.quantize.predict import ASSUMPTIONS, predicted_costs
from engines.quantize.store import Store, key_of
from engines.quantize.subgraph import part, typed
from engines.quantize.units import Plan, Unit
from metro_edge.bundle import Bundle
from metro_edge.devices import Device
from metro_edge.machine import describe_machine
from metro_edge.spec import INPUT_NAME

Make = Callable[[onnx.ModelProto, Mapping[str, str]], onnx.ModelProto]
Times = Callable[[Mapping[str, str]], onnx.ModelProto]
PART_ROUNDS, PART_BLOCK_S = 5, 0.02
CONFIRMED = 25  # rounds


class Speed(ABC):
    """Where times come from.

    Attributes:
        label: in words, for reports.
        predicted: whether nothing is measured.
        about: more for the report.
    """

    label: str
    predicted: bool
    about: dict[str, Any]

    @abstractmethod
    def costs(self, model: onnx.ModelProto, plan: Plan, precisions: Sequence[str], make: Make) -> Costs:
        """Return the costs of a graph's units.

        Args:
            model: FP32 graph.
            plan: of it.
            precisions: that layers may have; fp32 is always there.
            make: graph or part of it, choice of some layers (others FP32) -> graph to run.
        """

    @abstractmethod
    def times_ms(self, costs: Costs, choices: Sequence[Mapping[str, str]], make: Times) -> list[float]:
        """Return the times of whole mixes, which compare with each other and with those of other calls.

        Args:
            costs: of `costs`.
            choices: precision per layer.
            make: choice -> whole graph.
        """

    @abstractmethod
    def confirmed_ms(self, costs: Costs, choice: Mapping[str, str], make: Times) -> tuple[float, float]:
        """Return the times of FP32 and of one mix, as certain as they can be had."""


class PredictedSpeed(Speed):
    """A cost model of a device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.label = f"predicted for {device.title}"
        self.predicted = True
        self.about = {"device": device.name, "assumptions": ASSUMPTIONS, "peaks": dict(device.peaks)}

    def costs(self, model: onnx.ModelProto, plan: Plan, precisions: Sequence[str], make: Make) -> Costs:
        """See Speed; raises UserError for a precision that the device does not have."""
        return predicted_costs(model, plan, self.device, precisions)

    def times_ms(self, costs: Costs, choices: Sequence[Mapping[str, str]], make: Times) -> list[float]:
        """See Speed."""
        return [costs.ms(choice) for choice in choices]

    def confirmed_ms(self, costs: Costs, choice: Mapping[str, str], make: Times) -> tuple[float, float]:
        """See Speed."""
        return costs.ms(dict.fromkeys(choice, "fp32")), costs.ms(choice)


class MeasuredSpeed(Speed):
    """A backend on this machine.

    Args:
        bundle: whose graphs are timed.
        image: (1, 3, S, S) float32, what they are timed on.
        backend: one of engines.quantize.clock.TIMED.
        threads: of one inference; None leaves it to the backend.
        store: of results, which are those of this machine and its library versions alone.
        about: whatever makes graphs of the same choice differ: hashes of the FP32 graph and of the thresholds.

    Raises UserError for another backend.
    """

    def __init__(
        self,
        bundle: Bundle,
        image: NDArray[np.float32],
        backend: str,
        threads: int | None,
        store: Store,
        about: str,
    ) -> None:
        check_timed(backend)
        machine = describe_machine([backend])
        self.bundle, self.image, self.backend, self.threads, self.store = bundle, image, backend, threads, store
        self.key = key_of(about, backend, threads, machine["cpu"], machine["cores"], machine["versions"])
        version = machine["versions"][backend]
        count = "threads: its choice" if threads is None else f"{threads} thread{'s' * (threads > 1)}"
        self.label = f"measured with {backend} {version}, {count}, {machine['cpu']}"
        self.predicted = False
        self.about = {"backend": backend, "threads": threads, "machine": machine}

    def costs(self, model: onnx.ModelProto, plan: Plan, precisions: Sequence[str], make: Make) -> Costs:
        """See Speed; shows progress."""
        known = typed(model)
        inner = {name for unit in plan.units for name in (*unit.inputs, unit.output)} - {INPUT_NAME}
        run = part_call(part(known, [INPUT_NAME], sorted(inner)), {INPUT_NAME: self.image}, "onnxruntime", None)
        values: dict[str, NDArray] = {INPUT_NAME: self.image}
        values |= dict(zip(sorted(inner), run(), strict=True))  # type: ignore[call-overload]
        parts = _Parts(self, known, values, make)
        wanted = dict.fromkeys((*precisions, "fp32"))
        units = {
            unit.layer: parts.unit_ms(unit, [p for p in wanted if p != "fp8"])
            for unit in tqdm(plan.units, desc=f"times of layers on {self.backend}", leave=False)
        }
        fixed, slope = parts.quantise_ms()
        tensors = {*plan.readers, *(unit.output for unit in plan.units)}
        quantise = {name: dict.fromkeys(QUANTISED, fixed + slope * values[name].size) for name in tensors}
        alone = Costs(plan, units, quantise, {}, 0.0)
        lowest = next((p for p in precisions if p in QUANTISED), None)
        choices: list[dict[str, str]] = [{}, *([dict.fromkeys(units, lowest)] if lowest else [])]
        times = self.times_ms_of(choices, lambda choice: make(model, choice) if choice else model)
        return fitted(alone, dict(zip(("fp32", lowest), times, strict=False)))

    def times_ms(self, costs: Costs, choices: Sequence[Mapping[str, str]], make: Times) -> list[float]:
        """See Speed: ratios to FP32, which is timed beside them, times the FP32 time of the first call."""
        return self.times_ms_of(choices, make)

    def confirmed_ms(self, costs: Costs, choice: Mapping[str, str], make: Times) -> tuple[float, float]:
        """See Speed: both alone in turns, more often than in comparisons."""

        def measure() -> list[float]:
            options = {} if self.threads is None else {"threads": self.threads}
            graphs = [make({}), make(choice)]
            return time_graphs(self.bundle, graphs, self.image, self.backend, rounds=CONFIRMED, **options)

        fp32, ms = self.store.remember(key_of(self.key, "confirmed", sorted(choice.items())), measure)
        return float(fp32), float(ms)

    def times_ms_of(self, choices: Sequence[Mapping[str, str]], make: Times) -> list[float]:
        """Return the times of whole mixes; layers left out are FP32."""
        choices = [{layer: p for layer, p in choice.items() if p != "fp32"} for choice in choices]
        keys = [key_of(self.key, "ratio", sorted(choice.items())) for choice in choices]
        missing = [index for index, key in enumerate(keys) if choices[index] and key not in self.store]
        first = key_of(self.key, "fp32 ms")
        if missing or first not in self.store:
            graphs = [make({}), *(make(choices[index]) for index in missing)]
            options = {} if self.threads is None else {"threads": self.threads}
            reference, *times = time_graphs(self.bundle, graphs, self.image, self.backend, **options)
            if first not in self.store:
                self.store.put(first, reference)
            for index, ms in zip(missing, times, strict=True):
                self.store.put(keys[index], ms / reference)
        fp32 = float(self.store.get(first))
        return [
            fp32 * float(self.store.get(key)) if choice else fp32 for key, choice in zip(keys, choices, strict=True)
        ]


def fitted(costs: Costs, whole: Mapping[str | None, float]) -> Costs:
    """Return costs that add up to the times of whole graphs in one precision each.

    Alone and over and over, a unit finds its weights and values in the cache: together they take longer, in about the
    same proportion. So the times of units are multiplied by one factor, and the rest is what FP32 takes beside them.

    Args:
        costs: of units by themselves; their rest is not used.
        whole: precision -> ms; fp32 is always there.
    """
    uniform = {
        precision: costs.ms(dict.fromkeys(costs.units, precision)) - costs.base for precision in whole if precision
    }
    factor = 1.0
    for precision, ms in whole.items():
        expected = uniform["fp32"] - uniform[precision] if precision else 0.0
        if precision != "fp32" and expected * (whole["fp32"] - ms) > 0:
            factor = min(max((whole["fp32"] - ms) / expected, 0.25), 4.0)
    units = {layer: {k: factor * ms for k, ms in times.items()} for layer, times in costs.units.items()}
    quantise = {name: {k: factor * ms for k, ms in times.items()} for name, times in costs.quantise.items()}
    return replace(costs, units=units, quantise=quantise, base=whole["fp32"] - factor * uniform["fp32"])


class _Parts:
    """Times units by themselves."""

    def __init__(self, speed: MeasuredSpeed, model: onnx.ModelProto, values: Mapping[str, NDArray], make: Make) -> None:
        self.speed, self.model, self.values, self.make = speed, model, values, make
        self.nodes = {node.name: node for node in model.graph.node}
        self.shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self.shapes |= {name: value.shape for name, value in values.items()}

    @cached_property
    def empty(self) -> float:
        """What a call of a graph that does nothing takes, in ms; not asked for where all times are in the store."""
        return self._ms([_identity()], [{"x": np.zeros(1, np.float32)}])[0]

    def unit_ms(self, unit: Unit, precisions: Sequence[str]) -> dict[tuple[str, str], float]:
        """Return the times of a unit, (precision, type of what it makes) -> ms, without what a call costs."""
        variants = [(p, after) for p in precisions for after in ((PLAIN, p) if p in QUANTISED else (PLAIN,))]
        key = key_of(self.speed.key, "unit", self._signature(unit), variants)

        def measure() -> list[float]:
            graphs = [self._variant(unit, precision, after) for precision, after in variants]
            times = self._ms(graphs, [self.values] * len(graphs))
            return [max(ms - self.empty, 0.0) for ms in times]

        return dict(zip(variants, self.speed.store.remember(key, measure), strict=True))

    def quantise_ms(self) -> tuple[float, float]:
        """Return what quantising an activation takes: fixed ms, and ms per element."""
        sizes = (1_000, 30_000, 300_000)

        def measure() -> list[float]:
            feeds = [{"x": np.linspace(-1, 1, size, dtype=np.float32)} for size in sizes]
            return [ms - self.empty for ms in self._ms([_quantiser(self.speed.backend)] * len(sizes), feeds)]

        times = self.speed.store.remember(key_of(self.speed.key, "quantise", sizes), measure)
        slope, fixed = np.polyfit(sizes, times, 1)
        return max(float(fixed), 0.0), max(float(slope), 0.0)

    def _ms(self, graphs: Sequence[onnx.ModelProto], feeds: Sequence[Mapping[str, NDArray]]) -> list[float]:
        speed = self.speed
        calls = [part_call(g, f, speed.backend, speed.threads) for g, f in zip(graphs, feeds, strict=True)]
        return time_calls(calls, PART_ROUNDS, PART_BLOCK_S)

    def _variant(self, unit: Unit, precision: str, after: str) -> onnx.ModelProto:
        plain = part(self.model, unit.inputs, [unit.output])
        if precision == "fp32":
            return plain
        graph = self.make(plain, {unit.layer: precision})
        if precision in QUANTISED and after == precision:
            _quantise_output(graph, float(np.abs(self.values[unit.output]).max()))
        return quantised_inputs(twin(graph, self.speed.backend)) if precision in QUANTISED else graph

    def _signature(self, unit: Unit) -> list[Any]:
        """Return what tells units apart that take the same time."""
        return [
            [
                self.nodes[name].op_type,
                sorted(a.SerializeToString().hex() for a in self.nodes[name].attribute),
                [list(self.shapes.get(tensor, ())) for tensor in self.nodes[name].input],
            ]
            for name in unit.nodes
        ]


def _quantise_output(graph: onnx.ModelProto, largest: float) -> None:
    """Put a quantiser behind the only output of a part, in place."""
    value = graph.graph.output[0]
    name = value.name
    graph.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.array(max(largest, 1e-6) / 127, np.float32), "part_scale"),
            onnx.numpy_helper.from_array(np.zeros((), np.int8), "part_zero_point"),
        ]
    )
    inputs = [name, "part_scale", "part_zero_point"]
    graph.graph.node.append(onnx.helper.make_node("QuantizeLinear", inputs, ["part_output"], "part_Q"))
    value.CopyFrom(onnx.helper.make_tensor_value_info("part_output", onnx.TensorProto.INT8, None))


def _quantiser(backend: str) -> onnx.ModelProto:
    kind = onnx.TensorProto.UINT8 if backend == "onnxruntime" else onnx.TensorProto.INT8
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    constants = [
        onnx.numpy_helper.from_array(np.float32(0.01), "scale"),
        onnx.numpy_helper.from_array(np.zeros((), dtype), "zero"),
    ]
    node = onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], "Q")
    return _single(node, kind, constants)


def _identity() -> onnx.ModelProto:
    return _single(onnx.helper.make_node("Relu", ["x"], ["y"], "nothing"), onnx.TensorProto.FLOAT, [])


def _single(node: onnx.NodeProto, kind: int, constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])]
    outputs = [onnx.helper.make_tensor_value_info("y", kind, ["n"])]
    graph = onnx.helper.make_graph([node], "part", inputs, outputs, constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
