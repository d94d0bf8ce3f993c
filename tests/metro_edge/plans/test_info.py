"""Sidecars: read back, refused when they do not fit, and plans of something else refused with the reason."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform as system
from pathlib import Path

import pytest

from metro_edge.backends.gpu import Gpu
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from metro_edge.files import sha256_of
from metro_edge.plans import BatchProfile, BuildOptions, PlanInfo, PlanMismatchError
from metro_edge.plans.info import check_runs_here, difference, identity_of, origin_of, platform_name
from metro_edge.plans.versions import features_of

CONTENT = b"what a plan is made of"
ORIN = Gpu("Orin", "8.7")
JETSON = features_of("tensorrt", "10.3.0")
RTX = features_of("tensorrt_rtx", "1.7.1")


def info_of(has=JETSON, options=None, gpu=ORIN, precision="fp16") -> PlanInfo:
    identity = identity_of(has, "a" * 64, precision, options or BuildOptions(), gpu, power_mode="MAXN")
    return PlanInfo(
        **vars(identity),
        plan_sha256=sha256_of(CONTENT),
        plan_bytes=len(CONTENT),
        onnx_name="model.fp16.onnx",
    )


@pytest.fixture
def plan_path(tmp_path: Path) -> Path:
    path = tmp_path / "a.plan"
    path.write_bytes(CONTENT)
    PlanInfo.path_of(path).write_bytes(info_of().to_bytes())
    return path


def test_reads_back_what_was_written(plan_path: Path) -> None:
    info = PlanInfo.load(plan_path)
    assert info.profiles == (BatchProfile(1, 1, 8),) and isinstance(info.profiles[0], BatchProfile)
    assert (info.gpu, info.compute_capabilities, info.max_batch) == ("Orin", ("8.7",), 8)
    assert info.key == info_of().key


def test_refuses_an_altered_plan(plan_path: Path) -> None:
    with plan_path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(PlanMismatchError, match=r"a\.plan is not the plan that a\.plan\.json describes"):
        PlanInfo.load(plan_path)


@pytest.mark.parametrize("missing", ["a.plan", "a.plan.json"])
def test_refuses_a_missing_part(plan_path: Path, missing: str) -> None:
    (plan_path.parent / missing).unlink()
    with pytest.raises(UserError, match=rf"{missing} does not exist; build"):
        PlanInfo.load(plan_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema_version": 2}',
        '{"schema_version": 3, "gpu": null}',
        b"\xff\xfe",
        "[" * 100_000,
        "9" * 5000,
    ],
)
def test_refuses_other_json(plan_path: Path, text: str | bytes) -> None:
    PlanInfo.path_of(plan_path).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(PlanMismatchError, match="is not the description of a plan"):
        PlanInfo.load(plan_path)


def test_refuses_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.plan").mkdir()
    with pytest.raises(PlanMismatchError, match=r"a\.plan is a folder, no file; build"):
        PlanInfo.load(tmp_path / "a.plan")


@pytest.mark.parametrize("depth", [100, 500, 900, 5000])
def test_values_in_values_are_refused_or_usable(plan_path: Path, depth: int) -> None:
    """JSON's reader takes some that functions in Python, walking through them, do not."""
    sidecar = PlanInfo.path_of(plan_path)
    deep = '{"in": ' * depth + "0" + "}" * depth
    sidecar.write_text(sidecar.read_text().replace('"settings": {}', f'"settings": {deep}'))
    assert '"in"' in sidecar.read_text()
    with contextlib.suppress(PlanMismatchError):
        dataclasses.asdict(info := PlanInfo.load(plan_path))
        assert info.key != info_of().key and depth < 5000


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"profiles": [[1, 2]]},
        {"profiles": 3},
        {"settings": []},
        {"origin": "here"},
        {"compute_capabilities": None},
        {"profiles": []},
        {"profiles": [[1, 1, 10**9]]},
        {"profiles": [[1, 1, float("inf")]]},
        {"library_version": 10},
        {"power_mode": 3},
        {"machine": {"cpu": float("nan")}},
    ],
)
def test_refuses_other_fields(plan_path: Path, change: dict) -> None:
    sidecar = PlanInfo.path_of(plan_path)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **change}))
    with pytest.raises(PlanMismatchError, match="is not the description of a plan"):
        PlanInfo.load(plan_path)


def test_refuses_what_cannot_be_read(plan_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(PlanMismatchError, match=r"a\.plan cannot be read: Permission denied"):
        PlanInfo.load(plan_path)


class TestIdentity:
    def test_a_tensorrt_plan_is_of_its_gpu(self) -> None:
        info = info_of()
        assert (info.gpu, info.compute_capabilities) == ("Orin", ("8.7",))
        assert info_of(options=BuildOptions(compatibility="ampere+")).compute_capabilities == ("8.0+",)

    def test_an_rtx_plan_is_of_no_gpu(self) -> None:
        assert (info_of(RTX).gpu, info_of(RTX).compute_capabilities) == (None, ("8.0", "8.6", "8.9", "12.0+"))
        assert info_of(RTX, precision="fp8").compute_capabilities == ("8.9", "12.0+")
        assert info_of(RTX, BuildOptions(capabilities=("8.6",))).compute_capabilities == ("8.6",)
        assert info_of(RTX).power_mode is None and info_of().power_mode == "MAXN"

    def test_an_rtx_plan_is_of_no_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It runs on Linux and Windows alike, which call one processor by two names."""
        places = {}
        for name, processor in (("Linux", "x86_64"), ("Windows", "AMD64"), ("Linux", "aarch64")):
            monkeypatch.setattr(system, "system", lambda name=name: name)
            monkeypatch.setattr(system, "machine", lambda processor=processor: processor)
            places[name, processor] = (info_of().platform, info_of(RTX).platform)
        assert list(places.values()) == [
            ("linux-x86_64", "any-x86_64"), ("windows-x86_64", "any-x86_64"), ("linux-aarch64", "any-aarch64")
        ]  # fmt: skip

    def test_every_part_changes_the_key(self) -> None:
        """Graph, precision, library, version, platform, GPU, capability, profiles and flags."""
        base = info_of()
        values = {
            "onnx_sha256": "b" * 64,
            "precision": "int8",
            "library": "tensorrt_rtx",
            "library_version": "10.3.1",
            "platform": "windows-amd64",
            "gpu": "NVIDIA L4",
            "power_mode": "MODE_15W",
            "compute_capabilities": ("8.9",),
            "profiles": (BatchProfile(1, 1, 9),),
            "settings": {"level": 5},
        }
        keys = {dataclasses.replace(base, **{name: value}).key for name, value in values.items()}
        assert len(keys | {base.key}) == len(values) + 1
        assert dataclasses.replace(base, plan_bytes=1, machine={"cpu": "another"}).key == base.key
        for name, value in values.items():
            assert difference(base, dataclasses.replace(base, **{name: value})) is not None, name
        assert difference(base, base) is None

    def test_differences_in_words(self) -> None:
        base = info_of()
        assert difference(base, dataclasses.replace(base, gpu="NVIDIA L4")) == "GPU NVIDIA L4, not Orin"
        other = dataclasses.replace(base, library_version="10.2.0")
        assert difference(base, other) == "tensorrt version 10.2.0, not 10.3.0"
        other = dataclasses.replace(base, settings={"level": 5}, onnx_sha256=base.onnx_sha256)
        assert difference(base, other) == "settings level=5, not none"
        other = dataclasses.replace(base, profiles=(BatchProfile(1, 1, 1), BatchProfile(1, 4, 16)))
        assert difference(base, other) == "batches 1 1,4,16, not 1,1,8"
        other = dataclasses.replace(base, onnx_sha256="b" * 64)
        assert difference(base, other) == f"ONNX graph with SHA-256 {'b' * 64}, not {'a' * 64}"


class TestRunsHere:
    def check(self, info: PlanInfo, **changes: object) -> None:
        here = {"onnx_sha256": "a" * 64, "library": info.library, "library_version": info.library_version, "gpu": ORIN,
                "power_mode": "MAXN"}  # fmt: skip
        check_runs_here(Path("a.plan"), info, **{**here, **changes})

    def test_here(self) -> None:
        self.check(info_of())
        self.check(info_of(), onnx_sha256=None)
        self.check(info_of(RTX), gpu=Gpu("NVIDIA L4", "8.9"))
        self.check(info_of(RTX), gpu=Gpu("NVIDIA GeForce RTX 5090", "12.0"), power_mode="15W")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"onnx_sha256": "b" * 64}, r"another ONNX graph \(SHA-256 aaaaaaaaaaaa, not bbbbbbbbbbbb\)"),
            ({"library": "tensorrt_rtx"}, "it is of tensorrt, tensorrt_rtx is loaded"),
            ({"library_version": "10.13.3"}, r"built with tensorrt 10\.3\.0, 10\.13\.3 is loaded"),
            ({"gpu": Gpu("NVIDIA L4", "8.9")}, r"runs on compute capability 8\.7, NVIDIA L4 has 8\.9"),
            ({"gpu": Gpu("Other", "8.7")}, "built on Orin, this is Other"),
            ({"power_mode": "15W"}, "its kernels were chosen in power mode MAXN, this is 15W"),
            ({"power_mode": None}, "its kernels were chosen in power mode MAXN, this is unknown"),
        ],
    )
    def test_elsewhere(self, changes: dict, message: str) -> None:
        with pytest.raises(PlanMismatchError, match=rf"plan a\.plan cannot be used: .*{message}.*; build it again"):
            self.check(info_of(), **changes)

    def test_another_platform(self) -> None:
        info = dataclasses.replace(info_of(), platform="windows-amd64")
        with pytest.raises(PlanMismatchError, match=f"built for windows-amd64, this is {platform_name()}"):
            self.check(info)

    def test_compatible_plans(self) -> None:
        ampere = info_of(options=BuildOptions(compatibility="ampere+"))
        self.check(ampere, gpu=Gpu("NVIDIA L4", "8.9"))
        with pytest.raises(PlanMismatchError, match=r"compute capability 8\.0\+, Tesla T4 has 7\.5"):
            self.check(ampere, gpu=Gpu("Tesla T4", "7.5"))
        same = info_of(options=BuildOptions(compatibility="same-capability"))
        self.check(same, gpu=Gpu("Other", "8.7"))

    def test_version_compatible_plans(self) -> None:
        info = info_of(options=BuildOptions(version_compatible=True))
        self.check(info, library_version="10.13.3")
        self.check(info, library_version="11.2.1")
        for version in ("10.2.0", "12.0.0"):  # no older one, and two majors alone go together
            with pytest.raises(PlanMismatchError, match=rf"built with tensorrt 10\.3\.0, {version} is loaded"):
                self.check(info, library_version=version)
        with pytest.raises(PlanMismatchError, match="12.0.0 is loaded"):
            self.check(dataclasses.replace(info, library_version="11.2.1"), library_version="12.0.0")

    def test_capabilities_compare_as_numbers(self) -> None:
        """12.0 is newer than 8.9, and 10.0 than 8.9, though not as text."""
        self.check(info_of(RTX, precision="fp8"), gpu=Gpu("NVIDIA GeForce RTX 5090", "12.0"))
        with pytest.raises(PlanMismatchError, match=r"8\.9 12\.0\+, Orin has 8\.7"):
            self.check(info_of(RTX, precision="fp8"))

    def test_generations_that_rtx_leaves_out(self) -> None:
        """As seen on an H200: newer than 8.0, and refused all the same."""
        self.check(info_of(RTX), gpu=Gpu("newer than all that it knows", "13.0"))
        for gpu in (Gpu("NVIDIA H200", "9.0"), ORIN, Gpu("NVIDIA B200", "10.0")):
            with pytest.raises(PlanMismatchError, match=rf"8\.0 8\.6 8\.9 12\.0\+, {gpu.name} has"):
                self.check(info_of(RTX), gpu=gpu)


def test_origin_is_what_the_passport_says(bundle: Bundle) -> None:
    passport = {
        **bundle.passport,
        "calibration": {"images_sha256": "c" * 64},
        "accuracy": {"data": "people", "samples": 3, "precisions": {"int8": {"mpjpe_lost_mm": 0.5}}},
    }
    made = dataclasses.replace(bundle, passport=passport)
    about = {"data": "people", "samples": 3}
    assert origin_of(made, "int8") == {
        "bundle": "tiny",
        "checkpoint": {"name": "tiny", "sha256": "0" * 64},
        "calibration": {"images_sha256": "c" * 64},
        "measured": {**about, "mpjpe_lost_mm": 0.5},
    }
    fp32 = origin_of(made, "fp32")
    assert fp32["calibration"] is None and fp32["measured"] == about
    assert origin_of(bundle, "fp16")["measured"] == {}
