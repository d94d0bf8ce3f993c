from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from metro_edge.bundle import Bundle
from metro_edge.errors import BundleError, UserError
from metro_edge.files import sha256_of
from metro_edge.plans.info import PlanInfo, PlanMismatchError
from metro_edge.plans.options import BatchProfile
from metro_edge.triton import TritonOptions, export_triton, repository
from tests.metro_edge.triton.schema import check_ensemble, parsed

OPTIONS = TritonOptions("tiny", max_people=4)


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def plan_of(folder: Path, bundle: Bundle, **changes) -> Path:
    """A plan's file with the sidecar that `metro-edge build` writes."""
    path = folder / "model.plan"
    path.write_bytes(b"a plan")
    values = {
        "onnx_sha256": bundle.onnx_sha256("fp16"),
        "precision": "fp16",
        "library": "tensorrt",
        "library_version": "10.3.0",
        "platform": "linux-x86_64",
        "gpu": "Orin",
        "power_mode": None,
        "compute_capabilities": ("8.7",),
        "profiles": (BatchProfile(1, 1, 8),),
        "settings": {},
        "plan_sha256": sha256_of(b"a plan"),
        "plan_bytes": 6,
        "onnx_name": "model.fp16.onnx",
    }
    PlanInfo.path_of(path).write_bytes(PlanInfo(**{**values, **changes}).to_bytes())
    return path


def test_files(tmp_path, shared_bundle):
    folders = export_triton(shared_bundle, "int8", tmp_path / "models", OPTIONS)
    names = ("tiny", "tiny_preprocess", "tiny_postprocess", "tiny_frame", "tiny_picture")
    assert folders == [tmp_path / "models" / name for name in names]
    found = content(tmp_path / "models")
    assert found["tiny/1/model.onnx"] == shared_bundle.onnx_bytes("int8")
    assert found["tiny_frame/1"] is None and "tiny_frame/1/model.py" not in found
    made = {name: parsed(found[f"{name}/config.pbtxt"].decode()) for name in names}
    for role in ("frame", "picture"):
        check_ensemble(made[f"tiny_{role}"], made)
    assert not [name for name in os.listdir(tmp_path / "models") if name.startswith(".")]


def test_the_same_input_gives_the_same_bytes(tmp_path, shared_bundle):
    for name in ("a", "b"):
        export_triton(shared_bundle, "fp32", tmp_path / name, OPTIONS)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_exporting_again_replaces_and_leaves_others_alone(tmp_path, shared_bundle):
    (tmp_path / "theirs").mkdir()
    export_triton(shared_bundle, "fp32", tmp_path, OPTIONS)
    export_triton(shared_bundle, "fp16", tmp_path, dataclasses.replace(OPTIONS, max_people=9))
    assert (tmp_path / "tiny/1/model.onnx").read_bytes() == shared_bundle.onnx_bytes("fp16")
    assert "max_batch_size: 9" in (tmp_path / "tiny/config.pbtxt").read_text()
    assert (tmp_path / "theirs").is_dir() and len(list(tmp_path.iterdir())) == 6


def test_somebody_elses_model_stays(tmp_path, shared_bundle):
    for text in ('name: "tiny_frame"\n', None):
        (tmp_path / "tiny_frame").mkdir(exist_ok=True)
        if text:
            (tmp_path / "tiny_frame/config.pbtxt").write_text(text)
        else:
            (tmp_path / "tiny_frame/config.pbtxt").unlink()
        with pytest.raises(UserError, match=r"tiny_frame is in the way .* choose another --name"):
            export_triton(shared_bundle, "fp32", tmp_path, OPTIONS)
    assert os.listdir(tmp_path) == ["tiny_frame"]


def test_all_or_nothing(tmp_path, shared_bundle, monkeypatch):
    export_triton(shared_bundle, "fp32", tmp_path, OPTIONS)
    before, rename, calls = content(tmp_path), os.rename, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 6:  # the third model is aside, its successor does not come
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(repository.os, "rename", failing)
    with pytest.raises(UserError, match="No space left on device"):
        export_triton(shared_bundle, "int8", tmp_path, OPTIONS)
    assert content(tmp_path) == before


def test_plans(tmp_path, shared_bundle):
    plan = plan_of(tmp_path, shared_bundle)
    export_triton(shared_bundle, "fp16", tmp_path / "models", OPTIONS, plan)
    assert (tmp_path / "models/tiny/1/model.plan").read_bytes() == b"a plan"
    assert not (tmp_path / "models/tiny/1/model.onnx").exists()
    assert 'platform: "tensorrt_plan"' in (tmp_path / "models/tiny/config.pbtxt").read_text()
    plan_of(tmp_path, shared_bundle, profiles=(BatchProfile(2, 4, 8), BatchProfile(1, 1, 4)))
    export_triton(shared_bundle, "fp16", tmp_path / "models", OPTIONS, plan)
    assert 'profile: ["1"]' in (tmp_path / "models/tiny/config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"onnx_sha256": "0" * 64}, "gpu", "was built from another ONNX graph"),
        ({"library": "tensorrt_rtx"}, "gpu", "is of tensorrt_rtx: Triton's backend runs plans of tensorrt alone"),
        ({}, "cpu", "a plan runs on a GPU"),
        (
            {"profiles": (BatchProfile(1, 1, 3), BatchProfile(2, 4, 8))},
            "gpu",
            "batches of 1 to 3, 2 to 8, none of 1 to 4",
        ),
    ],
)
def test_plans_that_triton_cannot_run(tmp_path, shared_bundle, changes, kind, message):
    plan = plan_of(tmp_path, shared_bundle, **changes)
    with pytest.raises(UserError, match=message):
        export_triton(shared_bundle, "fp16", tmp_path / "m", dataclasses.replace(OPTIONS, kind=kind), plan)
    assert not (tmp_path / "m").exists()


def test_a_damaged_plan(tmp_path, shared_bundle):
    plan = plan_of(tmp_path, shared_bundle)
    plan.write_bytes(b"another plan")
    with pytest.raises(PlanMismatchError, match="is not the plan that"):
        export_triton(shared_bundle, "fp16", tmp_path / "m", OPTIONS, plan)


def test_networks_that_do_not_fit(tmp_path, bundle_of, network):
    with pytest.raises(UserError, match="takes 1 images at once alone"):
        export_triton(bundle_of(network(dynamic=False)), "fp32", tmp_path / "m", OPTIONS)
    with pytest.raises(BundleError, match="is not the one of its spec"):
        export_triton(bundle_of(network(outputs=("camera", "joints", "skin"))), "fp32", tmp_path / "m", OPTIONS)
    with pytest.raises(BundleError, match="has no int8 network"):
        export_triton(bundle_of(network()), "int8", tmp_path / "m", OPTIONS)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into folder"):
        export_triton(bundle_of(network()), "fp32", tmp_path / "file", OPTIONS)
