"""`metro-edge build` and `metro-edge plans` on a small real bundle, with the real builder of TensorRT-RTX."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from metro_edge.bundle import Bundle, write_bundle
from metro_edge.cli import main
from metro_edge.plans import PlanInfo
from tests.metro_edge.plans.conftest import write_tiny_bundle

pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tetrahedron with fp32 and fp16 graphs."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METRO_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plans"


def run(*arguments: object) -> int:
    return main(["build", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error line of a command that must end with exit code 2."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ")
    return err


def test_writes_the_plan_and_says_so(bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_path = tmp_path / "model.plan"
    options = ("--batch", "1", "--batch", "1,2,4", "--level", 1, "--workspace-mb", 32, "--library", "tensorrt_rtx")
    assert run(bundle_path, "--precision", "fp32", *options, "-o", plan_path) == 0
    info = PlanInfo.load(plan_path)
    assert (info.precision, info.profiles, info.settings) == (
        "fp32",
        ((1, 1, 1), (1, 2, 4)),
        {"level": 1, "workspace_mb": 32},
    )
    assert info.onnx_sha256 == Bundle.load(bundle_path).onnx_sha256("fp32")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{plan_path}: fp32, batch 1 and batch 1 to 4, ")
    assert second == f"runs on compute capability 8.0, 8.6, 8.9, 12.0+; described in {plan_path}.json"


def test_without_a_name_it_goes_into_the_cache(
    bundle_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (bundle_path, "--precision", "fp16", "--library", "tensorrt_rtx")
    assert run(*command) == 0
    built = capsys.readouterr().out.splitlines()[0]
    path = Path(built.split(":")[0])
    assert path.parent == cache and PlanInfo.load(path).precision == "fp16"
    assert run(*command) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(", from the cache")

    assert main(["plans"]) == 0
    line, total = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path.name}: tensorrt_rtx ") and "8.0, 8.6, 8.9, 12.0+, batch 1,1,8, " in line
    assert total.startswith(f"1 plan in {cache}, ")
    path.write_bytes(b"no plan")
    assert main(["plans", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["info"] is None and "is not the plan that" in entry["problem"]
    assert main(["plans"]) == 0 and "; not usable: " in capsys.readouterr().out
    assert main(["plans", "--prune"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"1 plan removed from {cache}, ")
    assert main(["plans", "--prune", "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_says_what_the_precision_loses(bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a zipped bundle, whose networks have no path of their own."""
    bundle = Bundle.load(bundle_path)
    losses = {"mpjpe_mm": 1, "pa_mpjpe_mm": 1, "mpvpe_mm": 1, "moved_mm": 2.5, "mpjpe_lost_mm": -0.125}
    accuracy = {"data": "people\x1b[31m", "samples": 64, "precisions": {"fp16": losses}}
    passport = {**bundle.passport, "accuracy": accuracy}
    files = {precision: bundle.onnx_path(precision) for precision in bundle.precisions}
    zipped = write_bundle(tmp_path / "b.zip", bundle.spec, bundle.template, files, passport).path
    for precision, lines in (("fp16", 3), ("fp32", 2)):
        assert run(zipped, "--precision", precision, "-o", tmp_path / "a.plan", "--library", "tensorrt_rtx") == 0
        said = capsys.readouterr().out.splitlines()
        assert len(said) == lines
        if precision == "fp16":
            expected = "MPJPE -0.125 mm, vertices moved 2.500 mm (64 samples, people?[31m)"
            assert said[2] == f"loses, says the bundle: {expected}"
    assert PlanInfo.load(tmp_path / "a.plan").origin["measured"] == {"data": "people\x1b[31m", "samples": 64}


def test_for_names_of_gpus(bundle_path: Path, tmp_path: Path) -> None:
    plan_path = tmp_path / "a.plan"
    command = (bundle_path, "--precision", "fp32", "-o", plan_path, "--library", "tensorrt_rtx")
    assert run(*command, "--for", "sm75,sm86", "--for", "rtx-4090") == 0
    assert PlanInfo.load(plan_path).compute_capabilities == ("7.5", "8.6", "8.9")
    assert run(*command, "--device", "rtx-5090") == 0
    assert PlanInfo.load(plan_path).compute_capabilities == ("12.0",)


def test_explains_without_tensorrt(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run(bundle_path, "--device", "orin-nano", "--explain") == 0
    text = capsys.readouterr().out
    for part in ("Jetson Orin Nano 8 GB: compute capability 8.7", "JetPack 6.1 and 6.2: tensorrt 10.3.0",
                 "config.clear_flag(BuilderFlag.TF32)", "fp32 -> tiny.fp32.*.plan"):  # fmt: skip
        assert part in text
    assert run(bundle_path, "--device", "orin-nano", "--explain", "--json", "--precision", "fp16", "--level", 5) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["device"]["compute_capability"] == "8.7" and answer["device"]["peaks"]["fp8"] is None
    build = next(build for build in answer["builds"] if build["version"] == "10.3.0")
    assert "config.builder_optimization_level = 5" in build["calls"]
    assert [plan["precision"] for plan in build["precisions"]] == ["fp16"]
    assert not cache.exists()


def test_explains_the_shipped_bundle_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--device", "agx-orin", "--explain") == 0
    assert f"bundle {Bundle.load().spec.name}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "fp16", "--batch", "1,2"), "is neither one number nor three"),
        (("--precision", "fp64"), "unknown precision 'fp64'"),
        (("--precision", "int8"), "has no int8 network; it has fp32, fp16"),
        ((), "--precision is missing: one of fp32, fp16"),
        (("--explain",), "--explain needs --device, one of orin-nano"),
        (("--explain", "--device", "orin"), "unknown device 'orin'"),
        (("--explain", "--device", "l4", "--for", "sm89"), "by --device or by --for, not both"),
        (("--explain", "--device", "l4", "--precision", "fp64"), "unknown precision 'fp64'"),
        (("--explain", "--device", "l4", "-o", "a.plan"), "--explain builds nothing: leave --output out"),
        (("--json", "--precision", "fp32"), "--json belongs to --explain"),
        (("--precision", "fp32", "--for", "orin-nano"), "cannot build for compute capability 8.7"),
        (("--precision", "fp32", "--for", "gtx-1"), "'gtx-1' is neither a compute capability"),
        (("--precision", "fp32", "--timing-cache", "a"), "keeps no timing cache"),
        (("--precision", "fp16", "--dla", "0", "--batch", "1"), "knows no DLA"),
        (("--precision", "fp16", "--strip-weights"), "there is no NVIDIA driver here"),
        (("--precision", "fp16", "--compatibility", "ampere+"), "has no hardware compatibility"),
    ],
)
def test_mistakes(
    bundle_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, "build", bundle_path, *arguments, "--library", "tensorrt_rtx")
    assert not cache.exists() or not list(cache.glob("*.plan"))


def test_no_tensorrt_names_the_extra(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'metro-edge[tensorrt]'" in refused(capsys, "build", bundle_path, "--precision", "fp32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--all",), "--all and --older-than belong to --prune"),
        (("--older-than", "3"), "belong to --prune"),
        (("--prune", "--older-than", "-1"), "a number of days from 0 on"),
        (("--prune", "--older-than", "nan"), "a number of days from 0 on"),
    ],
)
def test_mistakes_of_plans(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(capsys, "plans", *arguments)


def test_altered_bundle(bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    altered = shutil.copytree(bundle_path, tmp_path / "altered")
    with (altered / "model.fp32.onnx").open("ab") as file:
        file.write(b"\0")
    said = refused(capsys, "build", altered, "--precision", "fp32", "-o", tmp_path / "model.plan")
    assert "is not the file that passport.json names" in said
    assert not (tmp_path / "model.plan").exists()
