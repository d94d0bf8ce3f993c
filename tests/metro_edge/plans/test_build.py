"""Real builds with TensorRT-RTX, which needs no GPU for them, of small graphs in each precision."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from metro_edge.backends.gpu import Gpu
from metro_edge.errors import UserError
from metro_edge.plans import BatchProfile, BuildOptions, PlanInfo, build, build_plan, layers, log
from metro_edge.plans.build import build_plan_from_bytes
from tests.metro_edge.plans.conftest import GraphMaker, left_in, save

onnx = pytest.importorskip("onnx")
rtx = pytest.importorskip("tensorrt_rtx")


@pytest.fixture(autouse=True)
def only_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU takes part, also where there is one: what is tested is the build ahead of time."""
    monkeypatch.setattr(build, "first_gpu", lambda: None)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
def test_builds_each_precision(graph: GraphMaker, tmp_path: Path, precision: str) -> None:
    onnx_path, plan_path = graph(precision), tmp_path / "model.plan"
    options = BuildOptions(workspace_mb=64, level=1)
    info = build_plan(onnx_path, plan_path, precision=precision, options=options, library="tensorrt_rtx")

    plan = plan_path.read_bytes()
    assert len(plan) == info.plan_bytes > 1000
    assert info.plan_sha256 == hashlib.sha256(plan).hexdigest()
    assert info.onnx_sha256 == hashlib.sha256(onnx_path.read_bytes()).hexdigest()
    assert (info.onnx_name, info.precision) == (onnx_path.name, precision)
    assert (info.library, info.library_version) == ("tensorrt_rtx", rtx.__version__)
    assert (info.profiles, info.max_batch) == ((BatchProfile(1, 1, 8),), 8)
    assert info.settings == {"level": 1, "workspace_mb": 64}
    assert (info.gpu, info.compute_capabilities) == (
        None,
        ("8.9", "12.0+") if precision == "fp8" else ("8.0", "8.6", "8.9", "12.0+"),
    )
    assert info.machine["python"] and info.machine["metro_edge"] and info.power_mode is None
    assert (info.platform.split("-")[0], info.origin) == ("any", {})
    assert PlanInfo.load(plan_path) == info
    assert left_in(tmp_path) == {onnx_path.name, "model.plan", "model.plan.json", "model.plan.layers.json"}


def test_layers_are_written(graph: GraphMaker, tmp_path: Path) -> None:
    build_plan(graph("int8"), tmp_path / "a.plan", precision="int8", progress=False)
    content = json.loads(layers.layers_path(tmp_path / "a.plan").read_text())
    assert content["engine"] is None and "no NVIDIA driver" in content["engine_missing"]
    found = {layer["name"]: layer for layer in content["layers"]}
    assert found["conv"]["type"] == "convolution"
    assert found["conv"]["inputs"][0] == {"name": "data_dq", "precision": "fp32", "shape": [-1, 3, 8, 8]}
    assert found["conv"]["outputs"] == [{"name": "features", "precision": "fp32", "shape": [-1, 4, 8, 8]}]
    assert found["q_data"]["precision"] == "int8"


@pytest.mark.parametrize(("is_", "asked"), [("fp32", "fp16"), ("fp16", "int8"), ("int8", "fp16"), ("fp16", "fp32")])
def test_refuses_a_graph_of_another_precision(graph: GraphMaker, tmp_path: Path, is_: str, asked: str) -> None:
    onnx_path = graph(is_)
    with pytest.raises(UserError, match=f"is an {is_} graph, {asked} was asked for"):
        build_plan(onnx_path, tmp_path / "model.plan", precision=asked, library="tensorrt_rtx")
    assert left_in(tmp_path) == {onnx_path.name}


def test_an_fp8_graph_is_no_int8_graph(graph: GraphMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an fp8 graph, int8 was asked for"):
        build_plan(graph("fp8"), tmp_path / "model.plan", precision="int8")


def test_builds_for_other_gpus(graph: GraphMaker, tmp_path: Path) -> None:
    options = BuildOptions(capabilities=("7.5", "8.6"))
    info = build_plan(graph(), tmp_path / "a.plan", precision="fp32", options=options)
    assert info.compute_capabilities == ("7.5", "8.6")


def test_what_cannot_run_on_a_gpu_is_named(tmp_path: Path) -> None:
    """Turing has no FP32 matrix product in TensorRT-RTX: the library's own words name the layer."""
    helper, types = onnx.helper, onnx.TensorProto
    weight = onnx.numpy_helper.from_array(np.ones((64, 3), np.float32), "weight")
    onnx_path = save(
        tmp_path / "matmul.onnx",
        [helper.make_node("MatMul", ["images", "weight"], ["camera"], name="head.product")],
        [helper.make_tensor_value_info("images", types.FLOAT, ["batch", 8, 64])],
        [helper.make_tensor_value_info("camera", types.FLOAT, ["batch", 8, 3])],
        [weight],
    )
    with pytest.raises(
        UserError, match=r"could not build .*matmul\.onnx: .*'head\.product'.*FP32 GEMM is not supported"
    ):
        build_plan(
            onnx_path,
            tmp_path / "a.plan",
            precision="fp32",
            options=BuildOptions(capabilities=("7.5",)),
            progress=False,
        )
    assert left_in(tmp_path) == {"matmul.onnx"}


def test_several_profiles_are_in_the_plan(graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = build._set_batch_profiles

    def spy(builder, network, config, *rest):
        original(builder, network, config, *rest)
        seen.append(config.num_optimization_profiles)
        assert not config.get_flag(rtx.BuilderFlag.TF32)

    monkeypatch.setattr(build, "_set_batch_profiles", spy)
    profiles = (BatchProfile(1, 1, 1), BatchProfile(1, 4, 16))
    several = build_plan(graph(), tmp_path / "a.plan", precision="fp32", options=BuildOptions(profiles=profiles))
    one = build_plan(graph(), tmp_path / "b.plan", precision="fp32", options=BuildOptions(profiles=profiles[:1]))
    fixed = BuildOptions(profiles=(BatchProfile(3, 3, 3),))
    build_plan(graph(batch=3), tmp_path / "c.plan", precision="fp32", options=fixed)
    assert seen == [2, 1, 0]  # a fixed batch needs no profile
    assert several.profiles == profiles and several.max_batch == 16
    assert several.plan_bytes > one.plan_bytes


def test_fixed_batch_must_be_the_one_that_is_asked_for(graph: GraphMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fixed batch of 3, 1,1,8 was asked for; .* or ask for 3"):
        build_plan(graph(batch=3), tmp_path / "a.plan", precision="fp32")


def test_only_the_batch_may_be_dynamic(graph: GraphMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only the batch may be dynamic"):
        build_plan(graph(height="height"), tmp_path / "a.plan", precision="fp32")


@pytest.mark.parametrize("names", [("input", "camera"), ("images", "logits")])
def test_a_graph_that_is_not_ours(graph: GraphMaker, tmp_path: Path, names: tuple[str, str]) -> None:
    onnx_path = graph(names=names)
    with pytest.raises(
        UserError, match=rf"is not a network of this project: it takes {names[0]} and returns {names[1]}"
    ):
        build_plan(onnx_path, tmp_path / "a.plan", precision="fp32")
    assert left_in(tmp_path) == {onnx_path.name}


@pytest.mark.parametrize(
    ("operator", "inputs", "expected"),
    [
        ("NoSuchOperator", 1, r"node 'head\.strange' \(NoSuchOperator\): .+"),
        ("BitwiseNot", 1, r"node 'head\.strange' \(BitwiseNot\): .+"),  # known to ONNX, not to TensorRT
    ],
)
def test_an_unsupported_operator_is_named_with_its_node(
    tmp_path: Path, operator: str, inputs: int, expected: str
) -> None:
    helper, float_ = onnx.helper, onnx.TensorProto.FLOAT
    value = [helper.make_tensor_value_info("images", float_, ["batch", 3])]
    result = [helper.make_tensor_value_info("camera", float_, ["batch", 3])]
    node = helper.make_node(operator, ["images"] * inputs, ["camera"], name="head.strange")
    save(tmp_path / "bad.onnx", [node], value, result, [])
    with pytest.raises(UserError, match=rf"cannot read .*bad\.onnx: {expected}"):
        build_plan(tmp_path / "bad.onnx", tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx")
    assert left_in(tmp_path) == {"bad.onnx"}


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    onnx_path = tmp_path / "text.onnx"
    onnx_path.write_text("not a graph")
    with pytest.raises(UserError, match=r"cannot read .*text\.onnx: .+"):
        build_plan(onnx_path, tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx")
    assert left_in(tmp_path) == {"text.onnx"}


def test_a_failing_build_gives_the_librarys_reason(
    graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile is left out, which the real builder refuses."""
    monkeypatch.setattr(build, "_set_batch_profiles", lambda *_: None)
    old = tmp_path / "a.plan"
    old.write_bytes(b"the plan of before")
    with pytest.raises(UserError, match="could not build .*optimization profile"):
        build_plan(graph(), old, precision="fp32", library="tensorrt_rtx")
    assert old.read_bytes() == b"the plan of before"
    assert left_in(tmp_path) == {"a.plan", "model.fp32.onnx"}


@pytest.mark.parametrize("options", [BuildOptions(refit=True), BuildOptions(strip_weights=True)])
def test_refittable_plans_really_need_a_gpu(
    graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: BuildOptions
) -> None:
    """Where this fails the library has learnt it, and Features.refits_without_gpu must say so."""
    onnx_path = graph()
    with pytest.raises(UserError, match="there is no NVIDIA driver here"):
        build_plan(onnx_path, tmp_path / "a.plan", precision="fp32", options=options)
    monkeypatch.setattr(build, "check_options", lambda *_, **__: None)
    with pytest.raises(UserError, match="could not build"):
        build_plan(onnx_path, tmp_path / "a.plan", precision="fp32", options=options, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"precision": "fp64"}, "unknown precision 'fp64'"), ({"library": "tensorflow"}, "unknown library 'tensorflow'")],
)
def test_bad_settings(graph: GraphMaker, tmp_path: Path, settings: dict, message: str) -> None:
    onnx_path = graph()
    with pytest.raises(UserError, match=message):
        build_plan(onnx_path, tmp_path / "a.plan", **{"precision": "fp32", **settings})
    assert left_in(tmp_path) == {onnx_path.name}


def test_bad_paths(graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_path = graph()
    with pytest.raises(UserError, match="does not exist or is not a file"):
        build_plan(tmp_path / "none.onnx", tmp_path / "a.plan", precision="fp32")
    with pytest.raises(UserError, match="cannot write .*: No such file or directory"):
        build_plan(onnx_path, tmp_path / "none" / "a.plan", precision="fp32")
    with pytest.raises(UserError, match="is a folder"):
        build_plan(onnx_path, tmp_path, precision="fp32")

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UserError, match=r"model\.fp32\.onnx cannot be read: Permission denied"):
        build_plan(onnx_path, tmp_path / "a.plan", precision="fp32")


def test_a_library_without_a_builder(graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the binding raises when the library returns none, as TensorRT does without a driver."""

    def no_builder(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(rtx, "Builder", no_builder)
    with pytest.raises(UserError, match="tensorrt_rtx cannot build on this machine: the library gave no reason"):
        build_plan(graph(), tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx")


def test_interrupt_stops_the_build_and_leaves_nothing(
    graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: object, phase: str, step: int) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(log.Progress, "step_complete", interrupted)
    onnx_path = graph()
    with pytest.raises(KeyboardInterrupt):
        build_plan(onnx_path, tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx")
    assert left_in(tmp_path) == {onnx_path.name}


def test_progress_is_shown(graph: GraphMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build_plan(graph(), tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx", progress=False)
    assert capfd.readouterr() == ("", "")
    build_plan(graph(), tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx")
    assert "fp32 plan 100%" in capfd.readouterr().err


def test_a_layer_without_outputs(tmp_path: Path) -> None:
    """A loop has some: they are listed like any other, whatever becomes of the build."""
    helper, types = onnx.helper, onnx.TensorProto
    scalars = {name: helper.make_tensor_value_info(name, types.FLOAT, []) for name in ("v", "w")}
    flags = {name: helper.make_tensor_value_info(name, types.BOOL, []) for name in ("going", "goes_on")}
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes_on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [helper.make_tensor_value_info("turn", types.INT64, []), flags["going"], scalars["v"]],
        [flags["goes_on"], scalars["w"]],
    )
    constants = {"turns": np.array(3), "true": np.array(True), "start": np.float32(1)}
    nodes = [
        helper.make_node("Loop", ["turns", "true", "start"], ["end"], body=body, name="loop"),
        helper.make_node("Mul", ["images", "end"], ["camera"]),
    ]
    values = [helper.make_tensor_value_info(name, types.FLOAT, ["batch", 3]) for name in ("images", "camera")]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    path = save(tmp_path / "loop.onnx", nodes, values[:1], values[1:], tensors)
    builder = build._builder(rtx)
    network, _parser = build._network_from_onnx(rtx, builder, path.read_bytes(), path, 0)
    found = layers.network_layers(network)
    assert [layer for layer in found if not layer["outputs"] and layer["precision"] is None]
    assert [layer for layer in found if layer["outputs"] and layer["precision"] == "fp32"]


def test_a_plan_from_memory_is_the_same(graph: GraphMaker, tmp_path: Path) -> None:
    onnx_path = graph()
    one = build_plan(onnx_path, tmp_path / "a.plan", precision="fp32", progress=False)
    two = build_plan_from_bytes(
        onnx_path.read_bytes(), onnx_path, tmp_path / "b.plan", precision="fp32", progress=False
    )
    assert one.key == two.key and one.plan_bytes == two.plan_bytes  # builds are not deterministic


def test_inspector_where_there_is_a_gpu(graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver the real runtime refuses the plan: that is a reason in the file, and no error."""
    monkeypatch.setattr(build, "first_gpu", lambda: Gpu("NVIDIA Test", "8.6"))
    build_plan(graph(), tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx", progress=False)
    content = json.loads((tmp_path / "a.plan.layers.json").read_text())
    if content["engine"] is None:
        assert content["engine_missing"].startswith("the plan does not load here: ")
    else:
        assert content["engine_missing"] is None
