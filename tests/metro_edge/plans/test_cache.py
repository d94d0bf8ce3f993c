"""The cache: built once, taken from there, refused with the reason when something else lies there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metro_edge.backends.gpu import Gpu
from metro_edge.bundle import Bundle
from metro_edge.cli import main
from metro_edge.errors import BundleError, UserError
from metro_edge.plans import BatchProfile, BuildOptions, PlanInfo, PlanMismatchError, cache, checked_plan, plan_for
from metro_edge.plans.cache import cache_folder, entries, prune
from metro_edge.plans.locks import locked
from tests.metro_edge.plans.conftest import left_in, write_tiny_bundle

pytest.importorskip("onnx")
rtx = pytest.importorskip("tensorrt_rtx")
HERE = {"library": "tensorrt_rtx", "library_version": rtx.__version__, "gpu": Gpu("NVIDIA GeForce RTX 4090", "8.9")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METRO_EDGE_CACHE", str(tmp_path))
    return tmp_path / "plans"


def plan(bundle: Bundle, precision: str = "fp32", **options: object) -> cache.Plan:
    return plan_for(bundle, precision, BuildOptions(**options), library="tensorrt_rtx", progress=False)


def test_builds_once(bundle: Bundle, folder: Path) -> None:
    first = plan(bundle)
    second = plan(bundle)
    assert first.built and not second.built
    assert (first.path, first.info) == (second.path, second.info)
    assert first.path.parent == folder and first.path.name.startswith("tiny.fp32.")
    assert first.path.name == f"tiny.fp32.{first.info.key[:16]}.plan"
    assert PlanInfo.load(first.path).onnx_sha256 == bundle.onnx_sha256("fp32")
    assert first.info.origin["checkpoint"] == bundle.passport["checkpoint"]


def test_every_precision_and_option_has_its_own_plan(bundle: Bundle, folder: Path) -> None:
    variants = [
        {},
        {"level": 1},
        {"profiles": (BatchProfile(1, 2, 4),)},
        {"capabilities": ("8.6",)},
        {"workspace_mb": 9},
    ]
    paths = {plan(bundle, **options).path for options in variants} | {plan(bundle, "fp16").path}
    assert len(paths) == len(variants) + 1 == len(entries())


def test_a_strangers_name_does_not_lead_out_of_the_cache(bundle: Bundle, folder: Path) -> None:
    spec = dataclasses.replace(bundle.spec, name="../../\0" + "é" * 300)
    built = plan(dataclasses.replace(bundle, spec=spec))
    assert built.path.parent == folder and built.path.name.startswith(".._.._____")
    assert [entry.problem for entry in entries()] == [None] and left_in(folder.parent) == {"plans"}


def test_a_plan_is_used_though_its_use_cannot_be_noted(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files may be another user's."""
    plan(bundle)

    def denied(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", denied)
    assert not plan(bundle).built


def test_a_zipped_bundle_has_plans_too(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    zipped = Path(shutil.make_archive(str(tmp_path / "tiny"), "zip", bundle.path))
    built = plan(Bundle.load(zipped))
    assert built.built and not plan(bundle).built  # the same graph, so the same plan


@pytest.mark.parametrize("damage", ["flip", "truncate", "no sidecar", "sidecar of another", "no json", "deep json"])
def test_what_is_damaged_is_built_again(
    bundle: Bundle, folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = plan(bundle)
    sidecar = PlanInfo.path_of(first.path)
    if damage == "flip":
        content = bytearray(first.path.read_bytes())
        content[len(content) // 2] ^= 1
        first.path.write_bytes(content)
    elif damage == "truncate":
        first.path.write_bytes(first.path.read_bytes()[:-1])
    elif damage == "no sidecar":
        sidecar.unlink()
    elif damage == "sidecar of another":
        other = plan(bundle, "fp16")
        shutil.copy(other.path, first.path)
        shutil.copy(PlanInfo.path_of(other.path), sidecar)
    else:
        sidecar.write_text("{" if damage == "no json" else "[" * 100_000)
        assert "is not the description of a plan" in entries()[0].problem
    with caplog.at_level(logging.WARNING, "metro_edge.plans"):
        again = plan(bundle)
    assert again.built and again.path == first.path
    assert f"cached plan {first.path.name} is not used and built again: " in caplog.text
    expected = {
        "flip": "is not the plan that",
        "truncate": "is not the plan that",
        "no sidecar": "does not exist",
        "sidecar of another": "ONNX graph with SHA-256",
        "no json": "is not the description of a plan",
        "deep json": "is not the description of a plan",
    }
    assert expected[damage] in caplog.text
    assert PlanInfo.load(again.path) == again.info and not plan(bundle).built


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("gpu", "NVIDIA L4", "GPU NVIDIA L4, not unknown"),
        ("library_version", "1.2.3", "tensorrt_rtx version 1.2.3, not "),
        ("platform", "any-riscv64", "platform any-riscv64, not "),
        ("power_mode", "MAXN", "power mode MAXN, not unknown"),
        ("precision", "int8", "precision int8, not fp32"),
    ],
)
def test_an_entry_of_something_else_is_not_used(
    bundle: Bundle, folder: Path, caplog: pytest.LogCaptureFixture, field: str, value: str, why: str
) -> None:
    """Even where the name and the hash fit: what the sidecar says decides."""
    sidecar = PlanInfo.path_of(plan(bundle).path)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), field: value}))
    with caplog.at_level(logging.WARNING, "metro_edge.plans"):
        assert plan(bundle).built
    assert why in caplog.text


def test_a_failing_build_leaves_nothing(bundle: Bundle, folder: Path) -> None:
    with pytest.raises(UserError, match="has a fixed batch|cannot build for compute capability"):
        plan(bundle, capabilities=("5.0",))
    with pytest.raises(BundleError, match="has no int8 network"):
        plan(bundle, "int8")
    assert entries() == []


def test_two_processes_build_once(bundle: Bundle, folder: Path) -> None:
    code = (
        "import sys; from metro_edge.bundle import Bundle; from metro_edge.plans import plan_for\n"
        "plan = plan_for(Bundle.load(sys.argv[1]), 'fp32', library='tensorrt_rtx', progress=False)\n"
        "print(plan.built, plan.info.plan_sha256)"
    )
    command = [sys.executable, "-c", code, str(bundle.path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=60)[0].split() for process in running]
    assert sorted(answer[0] for answer in answers) == ["False", "False", "True"]
    assert len({answer[1] for answer in answers}) == 1
    assert not [name for name in left_in(folder) if name.endswith(".plan") and name.startswith(".")]


def test_a_lock_waits_for_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from metro_edge.plans.locks import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(0.7)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        start_s, waited = time.perf_counter(), []
        with locked(path, waiting=lambda: waited.append(True)):
            assert time.perf_counter() - start_s > 0.3
    assert waited == [True] and holder.returncode == 0
    with pytest.raises(UserError, match="cannot write .*No such file or directory"), locked(tmp_path / "none" / "lock"):
        pass


class TestFolder:
    def test_order(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in ("METRO_EDGE_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_folder() == tmp_path / "home" / ".cache" / "metro-edge" / "plans"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg" / "metro-edge" / "plans"
        monkeypatch.setenv("METRO_EDGE_CACHE", str(tmp_path / "own"))
        assert cache_folder() == tmp_path / "own" / "plans"

    def test_no_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("METRO_EDGE_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
        with pytest.raises(UserError, match="set METRO_EDGE_CACHE to a folder"):
            cache_folder()

    def test_that_cannot_be_written(self, bundle: Bundle, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write into folder"):
            plan_for(bundle, "fp32", folder=tmp_path / "file")


class TestPrune:
    def test_lists_those_used_last_first(self, bundle: Bundle, folder: Path) -> None:
        old, new = plan(bundle), plan(bundle, "fp16")
        for path in folder.iterdir():
            os.utime(path, (1, 1))
        assert not plan(bundle, "fp16").built  # use counts
        listed = entries()
        assert [entry.path for entry in listed] == [new.path, old.path]
        assert all(entry.problem is None and entry.size_bytes > entry.info.plan_bytes for entry in listed)

    def test_removes_what_is_asked_for(self, bundle: Bundle, folder: Path) -> None:
        kept, damaged, old = plan(bundle), plan(bundle, "fp16"), plan(bundle, level=2)
        damaged.path.write_bytes(b"no plan")
        for path in folder.glob(f"{old.path.name}*"):
            os.utime(path, (1, 1))
        assert [entry.path for entry in prune()] == [damaged.path]
        assert [entry.path for entry in prune(older_than_days=30)] == [old.path]
        assert [entry.path for entry in entries()] == [kept.path]
        assert not list(folder.glob(f"{damaged.path.name}*"))
        assert [entry.path for entry in prune(everything=True)] == [kept.path]
        assert entries() == [] and list(prune(folder / "none")) == []

    def test_what_cannot_go_is_told_and_the_others_go(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A folder with a plan's name keeps its neighbour; a plan in use, as on Windows, keeps its sidecar."""
        (folder / "dir.plan").mkdir(parents=True)
        for name in ("dir.plan.json", "used.plan", "used.plan.json", "a.plan", "a.plan.json"):
            (folder / name).write_text("{}")
        unlink = Path.unlink

        def denied(path: Path, missing_ok: bool = False) -> None:
            if path.name == "used.plan":
                raise PermissionError(13, "Permission denied")
            unlink(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", denied)
        assert main(["plans", "--prune"]) == 2
        printed = capsys.readouterr()
        assert printed.out.startswith("a.plan: ") and "1 plan removed from" in printed.out
        assert printed.err.startswith("error: 2 plans could not be removed from the cache: ")
        assert "dir.plan is a folder, which is not of the cache" in printed.err and printed.err.count("\n") == 1
        assert "cannot remove " in printed.err and "used.plan: Permission denied" in printed.err
        left = {name for name in left_in(folder) if not name.endswith(".lock")}
        assert left == {"dir.plan", "dir.plan.json", "used.plan", "used.plan.json"}

    def test_a_cache_that_cannot_be_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()

        def denied(path: Path, pattern: str) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "glob", denied)
        with pytest.raises(UserError, match=r"cannot read the cache of plans, .*plans: Permission denied"):
            entries()

    def test_what_is_built_meanwhile_stays(self, bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The lock is another build's, which mends the entry before it gives it back."""
        path = plan(bundle).path
        content = path.read_bytes()
        path.write_bytes(b"no plan")

        @contextlib.contextmanager
        def locked_after_a_build(lock: Path, waiting: object = None):
            path.write_bytes(content)
            yield

        monkeypatch.setattr(cache, "locked", locked_after_a_build)
        assert list(prune()) == [] and [entry.problem for entry in entries()] == [None]

    def test_an_entry_under_another_name_is_not_usable(self, bundle: Bundle, folder: Path) -> None:
        path = plan(bundle).path
        renamed = path.with_name("tiny.fp32.0123456789abcdef.plan")
        path.rename(renamed)
        PlanInfo.path_of(path).rename(PlanInfo.path_of(renamed))
        assert [entry.problem for entry in entries()] == ["its sidecar describes another plan than its name"]


class TestCheckedPlan:
    """A plan that the user names is never built again: it fits, or it is refused."""

    def test_fits(self, bundle: Bundle, folder: Path) -> None:
        built = plan(bundle)
        assert checked_plan(built.path, bundle, "fp32", **HERE) == cache.Plan(built.path, built.info, built=False)

    def test_another_precision(self, bundle: Bundle, folder: Path) -> None:
        with pytest.raises(PlanMismatchError, match="is fp32, fp16 was asked for"):
            checked_plan(plan(bundle).path, bundle, "fp16", **HERE)

    def test_another_gpu(self, bundle: Bundle, folder: Path) -> None:
        here = {**HERE, "gpu": Gpu("Tesla T4", "7.5")}
        with pytest.raises(
            PlanMismatchError, match=r"runs on compute capability 8\.0 8\.6 8\.9 12\.0\+, Tesla T4 has 7\.5"
        ):
            checked_plan(plan(bundle).path, bundle, "fp32", **here)

    def test_another_version(self, bundle: Bundle, folder: Path) -> None:
        with pytest.raises(PlanMismatchError, match=r"9\.9\.9 is loaded"):
            checked_plan(plan(bundle).path, bundle, "fp32", **{**HERE, "library_version": "9.9.9"})

    def test_another_bundle(self, bundle: Bundle, folder: Path, tmp_path: Path) -> None:
        other = Bundle.load(write_tiny_bundle(tmp_path, weight_scale=2.0))
        with pytest.raises(PlanMismatchError, match="built from another ONNX graph"):
            checked_plan(plan(bundle).path, other, "fp32", **HERE)
