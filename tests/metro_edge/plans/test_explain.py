"""What `--explain` says, against what a build does."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from metro_edge.bundle import Bundle
from metro_edge.devices import DEVICES, device
from metro_edge.errors import UserError
from metro_edge.plans import BatchProfile, BuildOptions, explain, plan_for
from metro_edge.plans.explain import calls_of, text_of
from metro_edge.plans.versions import features_of
from tests.metro_edge.plans.recorded import RecordedTensorRT

NOTHING = BuildOptions()


def builds_for(name: str, bundle: Bundle, precisions=("fp32", "fp16"), options=NOTHING) -> dict[str, explain.Build]:
    return {build.software: build for build in explain.explain(device(name), bundle, precisions, options)}


@pytest.fixture
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_is_explained_without_tensorrt(name: str, bundle: Bundle, without_tensorrt: None) -> None:
    builds = builds_for(name, bundle)
    assert list(builds) == [*DEVICES[name].tensorrt, "TensorRT-RTX"]
    text = text_of(device(name), bundle, list(builds.values()))
    assert all(software in text for software in builds) and "None" not in text
    possible = [build for build in builds.values() if build.refused is None]
    assert bool(possible) == (name != "xavier-nx")  # whose JetPack ends with TensorRT 8.5
    for build in possible:
        assert [plan.plan for plan in build.precisions if plan.refused is None]
        assert not build.exact


def test_orin_nano(bundle: Bundle) -> None:
    builds = builds_for("orin-nano", bundle, ("fp32", "fp8", "int8"))
    assert "tensorrt 8.5.0 is too old: 10.0" in builds["JetPack 5.1"].refused
    jetpack = builds["JetPack 6.1 and 6.2"]
    assert (jetpack.version, jetpack.where) == ("10.3.0", "on the device itself")
    assert jetpack.calls[0] == "builder.create_network(1 << STRONGLY_TYPED)"
    assert "config.clear_flag(BuilderFlag.TF32)" in jetpack.calls
    fp32, fp8, int8 = jetpack.precisions
    assert fp32.refused is None and (fp32.plan, fp32.key) == ("tiny.fp32.*.plan", None)  # the power mode is in it
    assert "8.7 has no FP8 tensor cores" in fp8.refused and fp8.plan is None
    assert "has no int8 network; it has fp32, fp16" in int8.refused
    rtx = next(build for build in builds.values() if build.library == "tensorrt_rtx")
    assert "does not build for compute capability 8.7" in rtx.refused


def test_dla(bundle: Bundle) -> None:
    options = BuildOptions(profiles=(BatchProfile(1, 1, 1),), dla=0)
    builds = builds_for("agx-orin", bundle, ("fp32", "fp16"), options)
    fp32, fp16 = builds["JetPack 6.1 and 6.2"].precisions
    assert "a DLA computes in fp16 and int8, not in fp32" in fp32.refused and fp16.refused is None
    calls = builds["JetPack 7.2.2"].calls
    assert {"config.default_device_type = DeviceType.DLA", "config.DLA_core = 0"} < set(calls)
    assert "config.set_flag(BuilderFlag.GPU_FALLBACK)" in calls
    with_core_2 = builds_for("agx-orin", bundle, options=dataclasses.replace(options, dla=2))
    assert "has 2 DLA cores, numbered from 0; core 2 was asked for" in with_core_2["JetPack 7.2.2"].refused
    assert "has no DLA cores" in builds_for("orin-nano", bundle, options=options)["JetPack 6.1 and 6.2"].refused
    assert "has no DLA" in builds_for("thor", bundle, options=options)["JetPack 7.0 and 7.1"].refused


def test_one_library_alone(bundle: Bundle) -> None:
    for library, expected in (("tensorrt", {"tensorrt"}), ("tensorrt_rtx", {"tensorrt_rtx"})):
        builds = explain.explain(device("l4"), bundle, ("fp32",), NOTHING, library)
        assert {build.library for build in builds} == expected
    with pytest.raises(UserError, match="unknown library 'onnx'"):
        explain.explain(device("l4"), bundle, ("fp32",), NOTHING, "onnx")


def test_where_nothing_builds_the_cpu_is_named(bundle: Bundle) -> None:
    for name, said in (("xavier-nx", True), ("orin-nano", False)):
        text = text_of(device(name), bundle, list(builds_for(name, bundle).values()))
        assert ("On its CPU the bundle runs without one" in text) == said


def test_turing_ahead_of_time(bundle: Bundle) -> None:
    rtx = next(build for build in builds_for("t4", bundle).values() if build.library == "tensorrt_rtx")
    assert "no FP32 matrix products on Turing" in rtx.refused


def test_the_key_ahead_of_time_is_the_caches(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = BuildOptions(level=3, profiles=(BatchProfile(1, 1, 1), BatchProfile(2, 2, 4)))
    rtx = builds_for("rtx-4090", bundle, ("fp16",), options)["TensorRT-RTX, installed here"]
    assert rtx.exact and "config.set_compute_capability(ComputeCapability.SM89, 0)" in rtx.calls
    ahead = BuildOptions(level=3, profiles=options.profiles, capabilities=("8.9",))
    plan = plan_for(bundle, "fp16", ahead, library="tensorrt_rtx", progress=False, folder=tmp_path)
    assert (plan.path.name, plan.info.key) == (rtx.precisions[0].plan, rtx.precisions[0].key)


@pytest.mark.parametrize(("recorded", "version"), [("10.0", "10.3.0"), ("10.13", "10.13.3"), ("11.2", "11.2.1")])
def test_what_is_said_is_what_is_called(recorded: str, version: str) -> None:
    """Every name in the calls is one that the version's own configuration has."""
    pytest.importorskip("tensorrt_rtx")
    from metro_edge.plans.build import logger_of

    module = RecordedTensorRT(recorded, version, dla_cores=1)
    config = module.Builder(logger_of(module)).create_builder_config()
    options = BuildOptions(
        profiles=(BatchProfile(1, 1, 1),),
        workspace_mb=1,
        level=2,
        timing_cache=Path("times"),
        compatibility="ampere+",
        version_compatible=True,
        strip_weights=True,
        dla=0 if version == "10.3.0" else None,
    )
    calls = calls_of(features_of("tensorrt", version), options)
    assert calls[-1] == "config.add_optimization_profile(batch 1)"
    for call in calls[1:-1]:
        name = call.removeprefix("config.").replace("(", " ").split()[0]
        assert getattr(config, name) is not None
        if (value := call.rstrip(")").replace("(", " ").replace(",", " ").split()[-1]).count("."):
            kind, member = value.split(".")
            assert getattr(getattr(module, kind), member) is not None
    assert {"config.set_flag(BuilderFlag.STRIP_PLAN)", "config.set_timing_cache(times)"} <= set(calls)
    assert "config.set_memory_pool_limit(MemoryPoolType.WORKSPACE, 1048576)" in calls
