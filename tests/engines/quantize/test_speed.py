"""Times measured here: of layers on both CPU libraries, and of whole graphs in turns."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from engines.quantize.clock import candidate, part_call, quantised_inputs, time_calls, twin
from engines.quantize.costs import PLAIN
from engines.quantize.speed import MeasuredSpeed, PredictedSpeed, fitted
from engines.quantize.store import Store
from engines.quantize.subgraph import part, typed
from engines.quantize.units import plan
from metro_edge.backends import open_session
from metro_edge.devices import device
from metro_edge.errors import UserError

BACKENDS = ("onnxruntime", "openvino")


def speed_of(network, backend: str, store: Store | None = None) -> MeasuredSpeed:
    return MeasuredSpeed(
        network.bundle, network.images[:1], backend, 1, Store(None) if store is None else store, "about"
    )


def costs_of(network, backend: str, store: Store | None = None):
    if backend == "openvino":
        pytest.importorskip("openvino")
    speed = speed_of(network, backend, store)
    return speed, speed.costs(network.model, plan(network.model, network.layers), ("int8", "fp16"), network.make)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_layer_has_times_and_they_add_up_to_the_whole(network, backend):
    speed, costs = costs_of(network, backend)
    variants = {("int8", PLAIN), ("int8", "int8"), ("fp16", PLAIN), ("fp32", PLAIN)}
    assert all(set(times) == variants and min(times.values()) >= 0 for times in costs.units.values())
    assert sum(times["fp32", PLAIN] for times in costs.units.values()) > 0
    (fp32,) = speed.times_ms(costs, [network.all("fp32")], lambda choice: network.model)
    assert costs.ms(network.all("fp32")) == pytest.approx(fp32, rel=1e-6)
    assert not speed.predicted and backend in speed.label and "1 thread" in speed.label


def test_times_are_taken_from_the_store_by_the_next_run(network, tmp_path):
    store = Store(tmp_path)
    _, first = costs_of(network, "onnxruntime", store)
    lines = len(store.path.read_text().splitlines())
    _, second = costs_of(network, "onnxruntime", Store(tmp_path))
    assert second.units == first.units and second.base == first.base
    assert len(store.path.read_text().splitlines()) == lines


def test_layers_that_are_alike_are_timed_once(network, tmp_path):
    store = Store(tmp_path)
    costs_of(network, "onnxruntime", store)
    others = 3  # quantising, whole graphs in FP32 and INT8
    assert len(store) - others < len(network.layers)


def test_a_part_computes_what_the_graph_does_and_takes_levels(network):
    """What is timed as INT8 is the layer: from levels to levels, the same numbers as in the whole graph."""
    unit = next(u for u in plan(network.model, network.layers).units if u.role == "convolution")
    graph = part(typed(network.model), unit.inputs, [unit.output])
    quantised = network.make(graph, {unit.layer: "int8"})
    bare = quantised_inputs(twin(quantised, "onnxruntime"))
    kinds = [node.op_type for node in bare.graph.node]
    assert "QuantizeLinear" not in kinds and kinds.count("DequantizeLinear") == 2
    assert bare.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    shape = (1, *[dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim][1:])
    for backend in BACKENDS:
        if backend == "openvino":
            pytest.importorskip("openvino")
        made = quantised_inputs(twin(quantised, backend))
        part_call(made, {unit.inputs[0]: np.zeros(shape, np.float32)}, backend, 1)()


def test_ratios_withstand_a_machine_that_slows_down():
    slow = [1.0]

    def call(ms: float):
        def run() -> None:
            slow[0] *= 1.02  # the whole gets slower and slower
            end = time.perf_counter() + ms * slow[0] / 1e3
            while time.perf_counter() < end:
                pass

        return run

    first, second = time_calls([call(0.2), call(0.4)], rounds=9, block_s=0.002)
    assert second / first == pytest.approx(2.0, rel=0.25)


def test_units_are_scaled_so_that_whole_graphs_come_out(network):
    _, costs = costs_of(network, "onnxruntime")
    int8, fp32 = costs.ms(network.all("int8")), costs.ms(network.all("fp32"))
    saved = fp32 - int8
    new = fitted(costs, {"fp32": 50.0, "int8": 50.0 - 2 * saved})
    assert new.ms(network.all("fp32")) == pytest.approx(50.0)
    assert new.ms(network.all("int8")) == pytest.approx(50.0 - 2 * saved)
    # A whole that says the opposite of the units does not turn them round.
    other = fitted(costs, {"fp32": 50.0, "int8": 50.0 + saved})
    assert other.ms(network.all("fp32")) - other.ms(network.all("int8")) == pytest.approx(saved)


def test_candidates_run_as_users_run_them(network):
    graph = network.make(network.model, network.all("int8"))
    made, precision = candidate(network.bundle, graph)
    assert precision == "int8" and candidate(network.bundle, network.model)[1] == "fp32"
    with open_session(made, precision) as opened:
        found = opened.infer(network.images[:2]).mesh
    place = network.judge.outputs.index("vertices")
    assert 0 < np.abs(found - network.judge.reference[0][place][:2]).max() < 1


def test_confirmed_times_are_of_both(network):
    speed, costs = costs_of(network, "onnxruntime")
    choice = network.all("int8")
    graph = network.make(network.model, choice)
    fp32, ms = speed.confirmed_ms(costs, choice, lambda c: graph if c else network.model)
    assert fp32 > 0 and ms > 0 and fp32 != ms


def test_prediction_needs_no_machine(network):
    speed = PredictedSpeed(device("orin-nano"))
    costs = speed.costs(network.model, plan(network.model, network.layers), ("int8", "fp16"), network.make)
    choices = [network.all("fp32"), network.all("int8")]
    assert speed.times_ms(costs, choices, network.make) == [costs.ms(choice) for choice in choices]
    assert speed.confirmed_ms(costs, choices[1], network.make) == (costs.ms(choices[0]), costs.ms(choices[1]))
    assert speed.predicted and speed.label == "predicted for Jetson Orin Nano 8 GB"


def test_unknown_backend(network):
    with pytest.raises(UserError, match="no times of layers are known on backend 'tvm': take onnxruntime or openvino"):
        speed_of(network, "tvm")
    with pytest.raises(UserError, match="no times of layers are known on backend 'tvm'"):
        part_call(network.model, {"images": network.images[:1]}, "tvm", 1)
