"""Differences between versions: real builds behind the names of each, and refusals of what a version lacks."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from metro_edge.backends.gpu import Gpu
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.plans import BatchProfile, BuildOptions, PlanInfo, build, build_plan, versions
from metro_edge.plans.versions import check_options, features, features_of, load_library, version_of
from tests.metro_edge.plans.conftest import GraphMaker
from tests.metro_edge.plans.recorded import API, RecordedTensorRT

rtx = pytest.importorskip("tensorrt_rtx")
ORIN = Gpu("Orin", "8.7")
# Version -> recorded API that it is checked against: the nearest older one that was read.
VERSIONS = {"10.0.1": "10.0", "10.3.0": "10.0", "10.8.0": "10.8", "10.9.0": "10.9", "10.13.3": "10.13",
            "11.2.1": "11.2", "11.4.1": "11.2"}  # fmt: skip
FIXED = (BatchProfile(1, 1, 1),)
EVERY_OPTION = BuildOptions(
    profiles=(BatchProfile(1, 1, 1), BatchProfile(1, 4, 16)),
    workspace_mb=64,
    level=4,
    compatibility="ampere+",
    version_compatible=False,  # RTX's own builder, which does the work here, cannot
)


@pytest.fixture
def tensorrt_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RecordedTensorRT]:
    """Install a recorded TensorRT, beside a GPU for it."""

    def install(version: str, dla_cores: int = 0) -> RecordedTensorRT:
        module = RecordedTensorRT(VERSIONS[version], version, dla_cores)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(build, "first_gpu", lambda: ORIN)
        return module

    return install


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_with_its_own_names(
    tensorrt_of: Callable[..., RecordedTensorRT], graph: GraphMaker, tmp_path: Path, version: str
) -> None:
    module = tensorrt_of(version)
    plan_path = tmp_path / "a.plan"
    info = build_plan(graph("int8"), plan_path, precision="int8", options=EVERY_OPTION, progress=False)
    assert (info.library, info.library_version, info.gpu) == ("tensorrt", version, "Orin")
    assert PlanInfo.load(plan_path) == info
    assert {"clear_flag", "builder_optimization_level", "hardware_compatibility_level"} <= module.used
    assert ("STRONGLY_TYPED" in module.used) == version.startswith("10.")
    layers = json.loads((tmp_path / "a.plan.layers.json").read_text())
    assert layers["engine"] is None and "does not load here" in layers["engine_missing"]  # no driver behind it


@pytest.mark.parametrize("version", VERSIONS)
def test_timing_cache_is_read_and_written(
    tensorrt_of: Callable[..., RecordedTensorRT], graph: GraphMaker, tmp_path: Path, version: str
) -> None:
    module = tensorrt_of(version)
    cache = tmp_path / "times.cache"
    for _ in range(2):
        options = BuildOptions(timing_cache=cache)
        build_plan(graph(), tmp_path / "a.plan", precision="fp32", options=options, progress=False)
        assert cache.is_file()
    assert {"create_timing_cache", "set_timing_cache", "get_timing_cache", "combine", "serialize"} <= module.used


def test_timing_cache_that_cannot_be_read(
    tensorrt_of: Callable[..., RecordedTensorRT], graph: GraphMaker, tmp_path: Path
) -> None:
    tensorrt_of("10.3.0")
    with pytest.raises(UserError, match=r"timing cache .* cannot be read: Is a directory"):
        build_plan(graph(), tmp_path / "a.plan", precision="fp32", options=BuildOptions(timing_cache=tmp_path))


@pytest.mark.parametrize(("version", "dla"), [("10.3.0", True), ("10.8.0", False), ("11.2.1", False), ("11.4.1", True)])
def test_dla_where_a_version_has_it(
    tensorrt_of: Callable[..., RecordedTensorRT], graph: GraphMaker, tmp_path: Path, version: str, dla: bool
) -> None:
    module = tensorrt_of(version, dla_cores=2)
    onnx_path, plan = graph("fp16"), tmp_path / "a.plan"
    options = BuildOptions(profiles=FIXED, dla=1)
    if not dla:
        with pytest.raises(UserError, match=rf"tensorrt {version} has no DLA: .*up to 10\.7 .* from 11\.4 on"):
            build_plan(onnx_path, plan, precision="fp16", options=options)
        return
    info = build_plan(onnx_path, plan, precision="fp16", options=options, progress=False)
    assert info.settings == {"dla": 1}
    assert {"default_device_type", "DLA_core", "GPU_FALLBACK"} <= module.used
    with pytest.raises(UserError, match="DLA core 2 was asked for, this device has 2, numbered from 0"):
        build_plan(onnx_path, plan, precision="fp16", options=BuildOptions(profiles=FIXED, dla=2))
    with pytest.raises(UserError, match="a DLA computes in fp16 and int8, not in fp32"):
        build_plan(graph(), plan, precision="fp32", options=options)


def test_dla_where_the_device_has_none(
    tensorrt_of: Callable[..., RecordedTensorRT], graph: GraphMaker, tmp_path: Path
) -> None:
    tensorrt_of("10.3.0")
    with pytest.raises(UserError, match=r"DLA core 0 was asked for, this device has none \(tensorrt 10\.3\.0\)"):
        options = BuildOptions(profiles=FIXED, dla=0)
        build_plan(graph("fp16"), tmp_path / "a.plan", precision="fp16", options=options)


def test_fp8_on_a_gpu_without_it(
    tensorrt_of: Callable[..., RecordedTensorRT], graph: GraphMaker, tmp_path: Path
) -> None:
    tensorrt_of("10.3.0")
    with pytest.raises(UserError, match=r"compute capability 8\.7 has no FP8 tensor cores"):
        build_plan(graph("fp8"), tmp_path / "a.plan", precision="fp8")


@pytest.mark.parametrize("strip", [False, True])
def test_refit_flags(tensorrt_of: Callable[..., RecordedTensorRT], strip: bool) -> None:
    """What is set; the real builder behind cannot build such plans without a driver, see test_build.py."""
    module = tensorrt_of("10.3.0")
    config = module.Builder(build.logger_of(module)).create_builder_config()
    options = BuildOptions(refit=not strip, strip_weights=strip)
    versions.configure(module, config, features(module), options)
    set_ = {
        name for name in ("REFIT", "REFIT_IDENTICAL", "STRIP_PLAN") if config.get_flag(getattr(rtx.BuilderFlag, name))
    }
    assert set_ == ({"STRIP_PLAN", "REFIT_IDENTICAL"} if strip else {"REFIT"})
    assert not config.get_flag(rtx.BuilderFlag.TF32)


def test_weights_are_stripped_from_rtx_plans_as_it_documents() -> None:
    config = rtx.Builder(build.logger_of(rtx)).create_builder_config()
    versions.configure(rtx, config, features(rtx), BuildOptions(strip_weights=True))
    flags = rtx.BuilderFlag
    assert config.get_flag(flags.REFIT) and config.get_flag(flags.STRIP_PLAN)
    assert not config.get_flag(flags.REFIT_IDENTICAL)


def test_refittable_plans_that_can_be_wrong_are_refused() -> None:
    check_options(features_of("tensorrt", "11.3.0"), BuildOptions(strip_weights=True), "fp16", gpu=True)
    for version in ("11.2.1", "11.4.1"):
        check_options(features_of("tensorrt", version), BuildOptions(refit=True), "fp16", gpu=True)
    with pytest.raises(UserError, match=r"tensorrt 11\.3\.0 can drop biases of refittable plans"):
        check_options(features_of("tensorrt", "11.3.0"), BuildOptions(refit=True), "fp16", gpu=True)


def test_the_power_mode_is_that_of_the_build(
    tensorrt_of: Callable[..., RecordedTensorRT], graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt_of("10.3.0")
    keys = set()
    for mode in ("MAXN", "MODE_15W"):
        monkeypatch.setattr(build, "power_mode", lambda mode=mode: mode)
        info = build_plan(graph(), tmp_path / "a.plan", precision="fp32", progress=False)
        assert info.power_mode == mode == PlanInfo.load(tmp_path / "a.plan").power_mode
        keys.add(info.key)
    assert len(keys) == 2


def test_the_recording_refuses_what_a_version_lacks() -> None:
    module = RecordedTensorRT("10.8", "10.8.0")
    assert module.HardwareCompatibilityLevel.AMPERE_PLUS == rtx.HardwareCompatibilityLevel.AMPERE_PLUS
    with pytest.raises(AttributeError, match=r"SAME_COMPUTE_CAPABILITY is not in TensorRT 10\.8"):
        _ = module.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    config = module.Builder(build.logger_of(module)).create_builder_config()
    with pytest.raises(AttributeError, match="num_compute_capabilities is not in TensorRT"):
        config.num_compute_capabilities = 1
    assert all(entry["source"] for entry in API.values())


@pytest.mark.parametrize(
    ("library", "version", "options", "message"),
    [
        (
            "tensorrt",
            "10.3",
            {"capabilities": ("8.6",)},
            r"tensorrt 10\.3 builds for this device's GPU alone, not for 8\.6",
        ),
        ("tensorrt", "10.3", {"compatibility": "same-capability"}, "it has none, ampere"),
        ("tensorrt_rtx", "1.7", {"compatibility": "ampere+"}, r"the GPUs it knows from compute capability 8\.0 on"),
        ("tensorrt_rtx", "1.7", {"capabilities": ("8.7",)}, r"cannot build for compute capability 8\.7, it knows 7\.5"),
        ("tensorrt_rtx", "1.7", {"version_compatible": True}, "it has no lean runtime"),
        ("tensorrt_rtx", "1.7", {"timing_cache": Path("a")}, "keeps no timing cache: it chooses kernels on the GPU"),
        ("tensorrt_rtx", "1.7", {"strip_weights": True}, "there is no NVIDIA driver here"),
        ("tensorrt_rtx", "1.7", {"refit": True}, "there is no NVIDIA driver here"),
        ("tensorrt_rtx", "1.7", {"dla": 0, "profiles": FIXED}, "knows no DLA"),
    ],
)
def test_what_a_library_lacks_is_refused(library: str, version: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_options(features_of(library, version), BuildOptions(**options), "fp16", gpu=False)


def test_fp8_needs_its_tensor_cores() -> None:
    has = features_of("tensorrt_rtx", "1.7")
    check_options(has, BuildOptions(capabilities=("8.9", "12.0")), "fp8", gpu=False)
    check_options(has, BuildOptions(capabilities=("8.6",)), "int8", gpu=False)
    with pytest.raises(UserError, match=r"compute capability 8\.6 has no FP8 tensor cores, the first are 8\.9's"):
        check_options(has, BuildOptions(capabilities=("8.6", "8.9")), "fp8", gpu=False)


def test_what_the_installed_rtx_has() -> None:
    has = features(load_library("tensorrt_rtx"))
    assert has.library == "tensorrt_rtx" and has.version == rtx.__version__
    assert {"7.5", "8.6", "8.9", "12.0"} <= set(has.capabilities)
    assert not (has.dla or has.timing_cache or has.asks_for_strong_typing)


@pytest.mark.parametrize(("text", "expected"), [("10.3.0.26", (10, 3)), ("11", (11, 0)), ("1.7.1.116", (1, 7))])
def test_version_of(text: str, expected: tuple[int, int]) -> None:
    assert version_of(text) == expected


@pytest.mark.parametrize("text", ["", "ten", "10x"])
def test_not_a_version(text: str) -> None:
    with pytest.raises(UserError, match="is not a version"):
        version_of(text)


def test_features_of_unknown_and_old_libraries() -> None:
    with pytest.raises(UserError, match="unknown library 'openvino'"):
        features_of("openvino", "2025.0")
    with pytest.raises(UserError, match=r"tensorrt 8\.5\.2 is too old: 10\.0 or newer"):
        features_of("tensorrt", "8.5.2")


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

    def test_a_jetson_has_it_already(
        self, install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install()
        monkeypatch.setattr(versions, "JETSON", tmp_path)
        for library in ("auto", "tensorrt"):
            with pytest.raises(UserError, match="JetPack brings it .*--system-site-packages"):
                load_library(library)
        with pytest.raises(MissingExtraError, match=r"metro-edge\[rtx\]"):
            load_library("tensorrt_rtx")

    def test_too_old(self, install: Callable[..., None]) -> None:
        install(tensorrt=self.module("tensorrt", "8.6.1"))
        with pytest.raises(UserError, match=r"tensorrt 8\.6\.1 is too old: 10\.0 or newer"):
            load_library()

    def test_unknown(self) -> None:
        with pytest.raises(UserError, match="unknown library 'tensorflow'"):
            load_library("tensorflow")

    def test_installed_but_broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        with pytest.raises(UserError, match=r"tensorrt is installed but does not load: libnvinfer\.so\.10"):
            load_library("tensorrt")


def test_importing_loads_no_library() -> None:
    code = "import sys, metro_edge.plans; print({'tensorrt', 'tensorrt_rtx', 'onnx', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
