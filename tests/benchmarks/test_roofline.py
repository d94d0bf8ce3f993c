"""Rooflines: counts against sums by hand, what no graph may break, files that are written, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from benchmarks import __main__ as cli
from benchmarks.roofline import ASSUMPTIONS, PRECISIONS, Layer, Network, least_time, network_layers, roofline_report
from benchmarks.roofline_report import roofline_markdown
from engines.cost import total_macs
from metro_edge.bundle import Bundle, shipped_bundle_path
from metro_edge.devices import DEVICES, device
from metro_edge.errors import UserError

F = np.float32
# 1 TFLOPS and TOPS in all precisions, 1 GB/s: a million operations take 1 us, a thousand bytes too.
ROUND = replace(
    device("orin-nano"), peaks={"fp32": 1.0, "fp16": 1.0, "int8": 1.0, "fp8": None}, bandwidth_gbs=1.0, source="a test"
)


def model_of(nodes: list, inputs: dict, outputs: list[str], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, 1, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def small_model(channels: int = 8, side: int = 6, width: int = 5) -> onnx.ModelProto:
    """A convolution with its activation, a view, a product with its bias, a softmax and a selection."""
    constants = {
        "k": np.zeros((channels, 3, 3, 3), F),
        "b": np.zeros(channels, F),
        "s": np.array([0, channels, side * side], np.int64),
        "w": np.zeros((side * side, width), F),
        "o": np.zeros(width, F),
        "i": np.array([1, 0], np.int32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Reshape", ["r", "s"], ["t"], "view"),
        helper.make_node("MatMul", ["t", "w"], ["m"], "product"),
        helper.make_node("Add", ["m", "o"], ["a"], "bias"),
        helper.make_node("Softmax", ["a"], ["p"], "softmax"),
        helper.make_node("Gather", ["p", "i"], ["y"], "select", axis=1),
    ]
    return model_of(nodes, {"x": ["n", 3, side, side]}, ["y"], constants)


def test_counts_of_a_graph_by_hand():
    network = network_layers(small_model())
    assert network.layers == (
        Layer("conv", "stem", 8 * 36 * 27, 8 * 27 + 8, 0, 3 * 36, 8 * 36),  # with its Relu
        Layer("product", "narrow", 8 * 36 * 5, 36 * 5 + 5, 0, 8 * 36, 8 * 5),  # with its bias; the view is free
        Layer("softmax", "Softmax", 0, 0, 0, 40, 40),
        Layer("select", "Gather", 0, 0, 2 * 4, 40, 2 * 5),
    )
    assert network.ends == 3 * 36 + 2 * 5
    conv, _, _, select = network.layers
    assert conv.bytes("fp32") == 4 * (224 + 108 + 288) and conv.bytes("int8", 3) == 224 + 3 * (108 + 288)
    assert conv.intensity("fp16", 2) == 2 * 2 * 7776 / (2 * (224 + 2 * 396))
    assert select.bytes("int8") == 8 + 50  # indices keep their size
    assert network.least_bytes("fp16", 2) == 8 + 2 * (224 + 185 + 2 * 118)


def test_least_time_by_hand():
    layers = (Layer("much", "linear", 1_000_000, 100, 0, 200, 200), Layer("little", "linear", 1000, 400, 0, 0, 600))
    least = least_time(Network(layers, 300), ROUND, "fp32")
    # 2 us against 2 us, then 0.002 us against 4 us.
    assert least.compute_ms == pytest.approx(2.002e-3) and least.memory_ms == pytest.approx(6e-3)
    assert least.layered_ms == pytest.approx(6e-3) and least.ridge == pytest.approx(1000)
    assert (least.memory_layers, least.memory_share) == (1, pytest.approx(4 / 6))
    assert (least.least_ms, least.bound) == (pytest.approx(3.2e-3), "memory")
    small = least_time(Network(layers, 300), ROUND, "int8", batch=4)
    assert (small.least_ms, small.bound) == (pytest.approx(8.008e-3), "compute")


def test_nothing_of_the_shipped_network_is_lost():
    bundle = Bundle.load(None)
    model = onnx.load_from_string(bundle.onnx_bytes("fp32"))
    network = network_layers(model)
    assert sum(layer.macs for layer in network.layers) == total_macs(model)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    weights = sum(layer.weights for layer in network.layers)
    assert weights == pytest.approx(sum(np.prod(t.dims) for t in floats), rel=0.01)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 40),
    side=st.integers(1, 12),
    width=st.integers(2, 200),
    batch=st.integers(1, 64),
    name=st.sampled_from(sorted(DEVICES)),
)
def test_figures_keep_their_order(channels, side, width, batch, name):
    network = network_layers(small_model(channels, side, width))
    for layer in network.layers:
        fp32, fp16, int8 = (layer.bytes(precision, batch) for precision in PRECISIONS)
        assert 0 < int8 <= fp16 <= fp32 and layer.macs >= 0
        assert 0 <= layer.intensity("fp32", batch) <= layer.intensity("fp16", batch) <= layer.intensity("int8", batch)
    least = [least_time(network, device(name), precision, batch) for precision in PRECISIONS]
    for time in least:
        assert 0 < time.least_ms <= time.layered_ms * (1 + 1e-9) <= (time.compute_ms + time.memory_ms) * (1 + 2e-9)
        assert 0 <= time.memory_share <= 1 + 1e-9 and time.memory_layers <= len(network.layers)
    assert least[2].least_ms <= least[1].least_ms <= least[0].least_ms
    assert least_time(network, device(name), "fp32", batch + 1).layered_ms > least[0].layered_ms


def test_files(tmp_path, capsys):
    words = ["roofline", str(shipped_bundle_path()), "--device", "orin-nano", "t4", "--batch", "4", "-o", str(tmp_path)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    report = json.loads(next(tmp_path.glob("roofline-*.json")).read_text())
    assert (report["schema_version"], report["kind"], report["prediction"]) == (1, "metro-edge roofline", True)
    assert report["command"].endswith("--device orin-nano t4 --batch 4") and report["assumptions"] == ASSUMPTIONS
    assert list(report["devices"]) == ["orin-nano", "t4"] and report["devices"]["t4"]["source"].startswith("http")
    total = report["total"]
    assert total["bytes"]["fp32"] == sum(layer["bytes"]["fp32"] for layer in report["layers"])
    for entry in report["devices"].values():
        for precision, time in entry["precisions"].items():
            assert time["least_ms"] > 0 and time["bound"] in ("compute", "memory")
            assert time["compute_ms"] == pytest.approx(8 * total["macs"] / entry["peaks_tops"][precision] / 1e9)
    markdown = next(tmp_path.glob("*.md")).read_text()
    assert (
        roofline_markdown(report) in printed
        and "![" in markdown
        and "No device was timed" in markdown
        and report["devices"]["t4"]["source"] in markdown
    )
    picture = cv2.imread(str(next(tmp_path.glob("*.png"))))
    half = len(picture) // 2
    for part in (picture[:half], picture[half:]):
        assert (np.ptp(part.astype(int), axis=2) > 60).mean() > 0.001  # coloured lines, bars


def test_a_strangers_name_is_a_name(tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(shipped_bundle_path(), path)
    spec = json.loads((path / "spec.json").read_text()) | {"name": "../../evil/" + 300 * "x"}
    (path / "spec.json").write_text(json.dumps(spec))
    passport = json.loads((path / "passport.json").read_text())
    content = (path / "spec.json").read_bytes()
    passport["files"]["spec.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path / "passport.json").write_text(json.dumps(passport))
    assert cli.main(["roofline", str(path), "--device", "t4", "-o", str(tmp_path / "out")]) == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert len(names) == 3 and all(name.startswith("roofline-______evil_xxx") and len(name) < 130 for name in names)


def test_a_precision_that_some_devices_lack(tmp_path):
    report = roofline_report(Bundle.load(None), ["fp8"])
    assert report["devices"]["t4"]["precisions"] == {"fp8": None}
    assert report["devices"]["l4"]["precisions"]["fp8"]["least_ms"] > 0
    row = next(line for line in roofline_markdown(report, "x.png").splitlines() if line.startswith("| T4 | fp8"))
    assert row.count(" - ") == 6


def test_a_device_without_a_source():
    network = network_layers(small_model())
    with pytest.raises(UserError, match="no source"):
        least_time(network, replace(ROUND, source=" "), "fp32")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "t4", "--precision", "fp8"], "T4 does not compute in fp8; it has fp32, fp16, int8"),
        (["--device", "orin"], "unknown device 'orin'"),
        (["--precision", "fp4"], "unknown precision fp4; known: fp32"),
        (["--batch", "0"], "--batch must be 1 to 4096, got 0"),
    ],
)
def test_words_that_are_refused(tmp_path, capsys, words, message):
    assert cli.main(["roofline", str(shipped_bundle_path()), *words, "-o", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_bundle_without_fp32(bundle_answering, template):
    with pytest.raises(UserError, match="has no fp32 network; it has fp16"):
        roofline_report(bundle_answering({"fp16": template.vertices}))


def test_graphs_that_are_refused():
    with pytest.raises(UserError, match="constant .* is FLOAT16: the FP32 graph"):
        network_layers(onnx.load_from_string(Bundle.load(None).onnx_bytes("fp16")))
    unnamed = small_model()
    unnamed.graph.node[0].name = ""
    with pytest.raises(UserError, match="a Conv without a name"):
        network_layers(unnamed)
    shapeless = small_model()
    shapeless.graph.node[1].op_type = "Unheard"
    with pytest.raises(UserError, match="no fixed shape"):
        network_layers(shapeless)
