"""Graphs that cannot be searched are refused by name."""

from __future__ import annotations

import dataclasses

import onnx
import pytest
from onnx import TensorProto, helper

from engines.quantize.clock import Candidate
from engines.quantize.source import fp32_graph
from metro_edge.bundle import write_bundle
from metro_edge.errors import BundleError, UserError


def altered(network, change) -> Candidate:
    """The bundle with its graph changed."""
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    change(model)
    bundle = network.bundle
    return Candidate(bundle.path, bundle.spec, bundle.template, bundle.passport, model.SerializeToString())


def test_a_graph_of_ours(network):
    model, layers = fp32_graph(network.bundle)
    assert model == network.model and layers == network.layers


def rename_input(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = "picture" if name == "images" else name
    model.graph.input[0].name = "picture"


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[3].op_type = "Swirl"


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[3].domain = "com.acme"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))


def quantised(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "QuantizeLinear"


def no_name(model: onnx.ModelProto) -> None:
    model.graph.node[3].name = ""


def dangling(model: onnx.ModelProto) -> None:
    model.graph.node[3].input[0] = "nowhere"


def nothing_to_quantise(model: onnx.ModelProto) -> None:
    outputs = [helper.make_node("Relu", ["images"], [value.name], value.name) for value in model.graph.output]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(outputs)
    for value in model.graph.output:
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["n", 3, 64, 64]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_input, "has inputs picture and outputs .*; expected images and camera, joints, vertices"),
        (lambda model: model.graph.output.pop(), "and outputs .*; expected images and camera, joints, vertices"),
        (unknown_operator, r"node '.+' of the fp32 network of .* is a Swirl, which is no operator of ONNX opset 20"),
        (foreign_operator, r"node '.+' .* is a com\.acme\..*, which is no operator of ONNX opset"),
        (quantised, "is a QuantizeLinear: the graph is quantised already"),
        (no_name, "without a name"),
        (dangling, "is no valid graph"),
        (nothing_to_quantise, "has no convolution and no product that could be quantised"),
    ],
)
def test_not_ours(network, change, message):
    with pytest.raises(UserError, match=message):
        fp32_graph(altered(network, change))


def test_not_a_graph(network):
    bundle = network.bundle
    broken = Candidate(bundle.path, bundle.spec, bundle.template, bundle.passport, b"\x08\x0f\xff\xff")
    with pytest.raises(BundleError, match="is not an ONNX graph"):
        fp32_graph(broken)


def test_no_fp32_in_the_bundle(network, tmp_path):
    bundle = network.bundle
    passport = {k: v for k, v in bundle.passport.items() if k != "accuracy"}
    spec = dataclasses.replace(bundle.spec, name="without")
    made = write_bundle(tmp_path / "b", spec, bundle.template, {"int8": bundle.onnx_path("int8")}, passport)
    with pytest.raises(BundleError, match="has no fp32 network"):
        fp32_graph(made)
