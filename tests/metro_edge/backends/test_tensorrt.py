"""Plans: real builds with TensorRT-RTX, which needs no GPU for them, of small graphs in each precision."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metro_edge.backends import tensorrt, tensorrt_log
from metro_edge.backends.tensorrt import PlanInfo, build_plan, load_library
from metro_edge.errors import MissingExtraError, UserError

onnx = pytest.importorskip("onnx")
rtx = pytest.importorskip("tensorrt_rtx")

SIZE = 8
GraphMaker = Callable[..., Path]


@pytest.fixture
def graph(tmp_path: Path) -> GraphMaker:
    """Write convolution and ReLU in a precision, and return the path."""

    def make(precision: str = "fp32", *, batch: int | str = "batch", height: int | str = SIZE) -> Path:
        helper, types_ = onnx.helper, onnx.TensorProto
        half = precision == "fp16"
        weight = np.linspace(-1, 1, 12).reshape(4, 3, 1, 1).astype(np.float16 if half else np.float32)
        constants = [onnx.numpy_helper.from_array(weight, "weight")]
        nodes = []
        data, kernel = "images", "weight"
        if half:
            nodes.append(helper.make_node("Cast", [data], ["half"], to=types_.FLOAT16, name="to_half"))
            data = "half"
        if precision == "int8":
            constants += [
                onnx.numpy_helper.from_array(np.float32(1 / 64), "scale"),
                onnx.numpy_helper.from_array(np.int8(0), "zero"),
            ]
            for tensor in (data, kernel):
                nodes += [
                    helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{tensor}_q"], name=f"q_{tensor}"),
                    helper.make_node(
                        "DequantizeLinear",
                        [f"{tensor}_q", "scale", "zero"],
                        [f"{tensor}_dq"],
                        name=f"dq_{tensor}",
                    ),
                ]
            data, kernel = "images_dq", "weight_dq"
        nodes.append(helper.make_node("Conv", [data, kernel], ["features"], name="conv"))
        nodes.append(helper.make_node("Relu", ["features"], ["relu" if half else "camera"], name="relu"))
        if half:
            nodes.append(helper.make_node("Cast", ["relu"], ["camera"], to=types_.FLOAT, name="to_float"))
        inputs = [helper.make_tensor_value_info("images", types_.FLOAT, [batch, 3, height, SIZE])]
        outputs = [helper.make_tensor_value_info("camera", types_.FLOAT, [batch, 4, height, SIZE])]
        return save(tmp_path / f"model.{precision}.onnx", nodes, inputs, outputs, constants)

    return make


def save(path: Path, nodes: list, inputs: list, outputs: list, constants: list) -> Path:
    body = onnx.helper.make_graph(nodes, "test", inputs, outputs, constants)
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, path)
    return path


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_builds_each_precision(graph: GraphMaker, tmp_path: Path, precision: str) -> None:
    onnx_path, plan_path = graph(precision), tmp_path / "model.plan"
    info = build_plan(onnx_path, plan_path, precision=precision, library="tensorrt_rtx", workspace_mb=64)

    plan = plan_path.read_bytes()
    assert len(plan) == info.plan_bytes > 1000
    assert info.plan_sha256 == hashlib.sha256(plan).hexdigest()
    assert info.onnx_sha256 == hashlib.sha256(onnx_path.read_bytes()).hexdigest()
    assert (info.onnx_name, info.precision) == (onnx_path.name, precision)
    assert (info.library, info.library_version) == ("tensorrt_rtx", rtx.__version__)
    assert (info.max_batch, info.optimal_batch, info.workspace_mb) == (8, 1, 64)
    assert (info.gpu, info.compute_capabilities) == (None, ("8.0+",))
    assert PlanInfo.load(plan_path) == info
    assert left_in(tmp_path) == {onnx_path.name, "model.plan", "model.plan.json"}


@pytest.mark.parametrize(("is_", "asked"), [("fp32", "fp16"), ("fp16", "int8"), ("int8", "fp16"), ("fp16", "fp32")])
def test_refuses_a_graph_of_another_precision(graph: GraphMaker, tmp_path: Path, is_: str, asked: str) -> None:
    onnx_path = graph(is_)
    with pytest.raises(UserError, match=f"is an {is_} graph, {asked} was asked for"):
        build_plan(onnx_path, tmp_path / "model.plan", precision=asked, library="tensorrt_rtx")
    assert left_in(tmp_path) == {onnx_path.name}


def test_builds_for_other_gpus(graph: GraphMaker, tmp_path: Path) -> None:
    onnx_path = graph()
    wanted = ("7.5", "8.6")
    info = build_plan(onnx_path, tmp_path / "a.plan", precision="fp32", compute_capabilities=wanted)
    assert info.compute_capabilities == wanted
    with pytest.raises(UserError, match=r"unknown compute capability 6\.1; known: .*8\.6"):
        build_plan(onnx_path, tmp_path / "b.plan", precision="fp32", compute_capabilities=("6.1",))


def test_batch_range_is_in_the_plan(graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = tensorrt._set_batch_profile

    def spy(builder, network, config, *rest):
        original(builder, network, config, *rest)
        seen.append(config.num_optimization_profiles)
        assert not config.get_flag(rtx.BuilderFlag.TF32)

    monkeypatch.setattr(tensorrt, "_set_batch_profile", spy)
    info = build_plan(graph(), tmp_path / "a.plan", precision="fp32", max_batch=4, optimal_batch=2)
    assert (info.max_batch, info.optimal_batch, seen) == (4, 2, [1])
    build_plan(graph(batch=3), tmp_path / "b.plan", precision="fp32", max_batch=3)
    assert seen == [1, 0]  # a fixed batch needs no profile


def test_fixed_batch_must_be_the_largest(graph: GraphMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fixed batch of 3, the largest batch is 8"):
        build_plan(graph(batch=3), tmp_path / "a.plan", precision="fp32")


def test_only_the_batch_may_be_dynamic(graph: GraphMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only the batch may be dynamic"):
        build_plan(graph(height="height"), tmp_path / "a.plan", precision="fp32")


def test_parser_errors_name_the_node(tmp_path: Path) -> None:
    helper, float_ = onnx.helper, onnx.TensorProto.FLOAT
    value = [helper.make_tensor_value_info("images", float_, ["batch", 3])]
    result = [helper.make_tensor_value_info("camera", float_, ["batch", 3])]
    node = helper.make_node("NoSuchOperator", ["images"], ["camera"], name="head.strange")
    onnx_path = save(tmp_path / "bad.onnx", [node], value, result, [])
    with pytest.raises(UserError, match=r"cannot read .*bad\.onnx: node 'head\.strange' \(NoSuchOperator\): .+"):
        build_plan(onnx_path, tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx")
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
    monkeypatch.setattr(tensorrt, "_set_batch_profile", lambda *_: None)
    old = tmp_path / "a.plan"
    old.write_bytes(b"the plan of before")
    with pytest.raises(UserError, match="could not build .*optimization profile"):
        build_plan(graph(), old, precision="fp32", library="tensorrt_rtx")
    assert old.read_bytes() == b"the plan of before"
    assert left_in(tmp_path) == {"a.plan", "model.fp32.onnx"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"optimal_batch": 9}, "optimal batch 9 must be between 1 and the largest batch, 8"),
        ({"max_batch": 0, "optimal_batch": 0}, "must be between 1"),
        ({"workspace_mb": 0}, "positive number"),
        ({"library": "tensorflow"}, "unknown library 'tensorflow'"),
    ],
)
def test_bad_settings(graph: GraphMaker, tmp_path: Path, settings: dict, message: str) -> None:
    onnx_path = graph()
    with pytest.raises(UserError, match=message):
        build_plan(onnx_path, tmp_path / "a.plan", **{"precision": "fp32", **settings})
    assert left_in(tmp_path) == {onnx_path.name}


def test_bad_paths(graph: GraphMaker, tmp_path: Path) -> None:
    onnx_path = graph()
    with pytest.raises(UserError, match="does not exist or is not a file"):
        build_plan(tmp_path / "none.onnx", tmp_path / "a.plan", precision="fp32")
    with pytest.raises(UserError, match="cannot write .*: No such file or directory"):
        build_plan(onnx_path, tmp_path / "none" / "a.plan", precision="fp32")
    with pytest.raises(UserError, match="is a folder"):
        build_plan(onnx_path, tmp_path, precision="fp32")


def test_interrupt_stops_the_build_and_leaves_nothing(
    graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: object, phase: str, step: int) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_log.Progress, "step_complete", interrupted)
    onnx_path = graph()
    with pytest.raises(KeyboardInterrupt):
        build_plan(onnx_path, tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx")
    assert left_in(tmp_path) == {onnx_path.name}


def test_progress_is_shown(graph: GraphMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build_plan(graph(), tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx", progress=False)
    assert capfd.readouterr() == ("", "")
    build_plan(graph(), tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx")
    assert "fp32 plan 100%" in capfd.readouterr().err


def test_progress_counts_nested_phases() -> None:
    progress = tensorrt_log.Progress("test", show=False)
    shown = []
    progress.bar.update = shown.append
    progress.phase_start("build", None, 2)
    progress.phase_start("optimise", "build", 4)
    assert progress.step_complete("optimise", 0)
    progress.phase_finish("optimise")
    progress.step_complete("build", 0)
    progress.step_complete("never started", 0)
    progress.phase_finish("build")
    assert shown == [12, 50, 50, 100]


class TestPlanInfo:
    @pytest.fixture
    def plan_path(self, graph: GraphMaker, tmp_path: Path) -> Path:
        build_plan(graph(), tmp_path / "a.plan", precision="fp32", library="tensorrt_rtx", progress=False)
        return tmp_path / "a.plan"

    def test_refuses_an_altered_plan(self, plan_path: Path) -> None:
        with plan_path.open("ab") as file:
            file.write(b"\0")
        with pytest.raises(UserError, match=r"a\.plan is not the plan that a\.plan\.json describes"):
            PlanInfo.load(plan_path)

    def test_refuses_a_missing_sidecar(self, plan_path: Path) -> None:
        PlanInfo.path_of(plan_path).unlink()
        with pytest.raises(UserError, match=r"a\.plan\.json does not exist; build"):
            PlanInfo.load(plan_path)

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 1, "gpu": null}', b"\xff\xfe"]
    )
    def test_refuses_other_json(self, plan_path: Path, text: str | bytes) -> None:
        PlanInfo.path_of(plan_path).write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(UserError, match="is not the description of a plan"):
            PlanInfo.load(plan_path)

    def test_refuses_unknown_fields(self, plan_path: Path) -> None:
        sidecar = PlanInfo.path_of(plan_path)
        sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "extra": 1}))
        with pytest.raises(UserError, match="other fields"):
            PlanInfo.load(plan_path)


class TestLoadLibrary:
    """Stand-in modules: which one is taken depends on what is installed."""

    @pytest.fixture
    def install(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        def install(**modules: types.ModuleType | None) -> None:
            for name in ("tensorrt", "tensorrt_rtx"):
                monkeypatch.setitem(sys.modules, name, modules.get(name))

        return install

    @staticmethod
    def module(name: str, version: str = "10.3.0", *, builder: bool = True) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__version__ = version
        if builder:
            module.Builder = object
        return module

    def test_prefers_tensorrt(self, install: Callable[..., None]) -> None:
        install(tensorrt=self.module("tensorrt"), tensorrt_rtx=self.module("tensorrt_rtx", "1.7"))
        assert load_library().__name__ == "tensorrt"
        assert load_library("tensorrt_rtx").__name__ == "tensorrt_rtx"

    def test_passes_over_an_empty_namespace(self, install: Callable[..., None]) -> None:
        install(tensorrt=self.module("tensorrt", builder=False), tensorrt_rtx=self.module("tensorrt_rtx", "1.7"))
        assert load_library().__name__ == "tensorrt_rtx"
        with pytest.raises(MissingExtraError, match=r"metro-edge\[tensorrt\]"):
            load_library("tensorrt")

    def test_none_installed(self, install: Callable[..., None]) -> None:
        install()
        with pytest.raises(MissingExtraError, match=r"metro-edge\[tensorrt\]"):
            load_library()
        with pytest.raises(MissingExtraError, match=r"metro-edge\[rtx\]"):
            load_library("tensorrt_rtx")

    def test_too_old(self, install: Callable[..., None]) -> None:
        install(tensorrt=self.module("tensorrt", "8.6.1"))
        with pytest.raises(UserError, match=r"tensorrt 8\.6\.1 is too old: 10\.0 or newer"):
            load_library()

    def test_installed_but_broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        with pytest.raises(UserError, match=r"tensorrt is installed but does not load: libnvinfer\.so\.10"):
            load_library("tensorrt")


def test_tensorrt_builds_for_its_own_gpu_alone() -> None:
    with pytest.raises(UserError, match="tensorrt builds for this device's GPU alone, not for 8.6"):
        tensorrt._set_target(types.ModuleType("tensorrt"), None, ("8.6",))
