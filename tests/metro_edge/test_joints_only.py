"""A bundle whose network gives joints alone: the same joints and places as the full one, no mesh, and no surprise."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import onnx
import pytest

from metro_edge.backends import Outputs, open_session
from metro_edge.bundle import Bundle, write_bundle
from metro_edge.cli import main
from metro_edge.errors import BundleError, PredictionError, UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.postprocess import centre_on_root
from metro_edge.spec import ModelSpec
from metro_edge.video.overlay import draw_bodies, draw_skeletons
from tests.metro_edge.conftest import PASSPORT, made_network
from tests.metro_edge.video.clips import write_clip

OUTPUTS = ("camera", "joints", "mesh_joints")
BOXES = [[10.0, 5, 60, 100], [80, 20, 40, 90]]


@pytest.fixture(scope="module")
def joints_only(template, spec, tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("joints")
    onnx.save(made_network(template, joints_only=True), folder / "made.onnx")
    narrow = dataclasses.replace(spec, outputs=OUTPUTS)
    return write_bundle(folder / "bundle", narrow, template, {"fp32": folder / "made.onnx"}, PASSPORT)


def test_joints_and_place_equal_the_full_bundles(shared_bundle, joints_only, frame):
    with MeshEstimator.from_bundle(shared_bundle) as full, MeshEstimator.from_bundle(joints_only) as narrow:
        expected, found = full(frame, BOXES), narrow(frame, BOXES)
    assert len(found) == 2
    for body, whole in zip(found, expected, strict=True):
        for name in ("joints", "camera", "translation", "joints_px"):
            np.testing.assert_allclose(getattr(body, name), getattr(whole, name), rtol=1e-5, atol=1e-4, err_msg=name)
        assert not body.has_mesh and body.vertices.shape == (0, 3) and body.faces.shape == (0, 3)
        assert whole.has_mesh


def test_outputs_are_named_and_the_others_none(joints_only):
    images = np.zeros((2, 3, 64, 64), np.float32)
    with open_session(joints_only) as session:
        outputs, none = session.infer(images), session.infer(images[:0])
    assert outputs.vertices is None and outputs.coarse is None and outputs.joints_px is None
    assert outputs.mesh_joints.shape == (2, 14, 3) and none.mesh_joints.shape == (0, 14, 3)
    with pytest.raises(UserError, match="gives joints alone"):
        _ = outputs.mesh
    joined = Outputs.joined([outputs, outputs])
    assert joined.vertices is None and joined.camera.shape == (4, 3)


def test_a_graph_of_other_outputs_than_the_spec_says_is_refused(template, spec, onnx_files, tmp_path):
    narrow = dataclasses.replace(spec, outputs=OUTPUTS)
    bundle = write_bundle(tmp_path / "b", narrow, template, {"fp32": onnx_files["fp32"]}, PASSPORT)
    with pytest.raises(BundleError, match="expected images and camera, joints, mesh_joints"):
        open_session(bundle)


def test_a_missing_output_is_a_prediction_error(joints_only):
    with open_session(joints_only) as session:
        session._infer = lambda images: Outputs(np.zeros((1, 3), np.float32), np.zeros((1, 14, 3), np.float32))
        with pytest.raises(PredictionError, match="mesh_joints are None, its spec says"):
            session.infer(np.zeros((1, 3, 64, 64), np.float32))


def test_without_mesh_and_mesh_joints_there_is_no_root(template, spec):
    outputs = Outputs(np.ones((1, 3), np.float32), np.zeros((1, 14, 3), np.float32))
    with pytest.raises(PredictionError, match="neither vertices nor mesh_joints"):
        centre_on_root(outputs, spec, template)


def test_the_overlay_is_the_skeleton(joints_only, frame):
    with MeshEstimator.from_bundle(joints_only) as estimator:
        bodies = estimator(frame, BOXES)
    drawn = draw_bodies(frame, bodies)
    assert (drawn != frame).any()
    np.testing.assert_array_equal(drawn, draw_skeletons(frame, bodies))


@pytest.mark.parametrize("kind", ["obj", "glb"])
def test_there_is_no_mesh_to_save(joints_only, frame, tmp_path, kind):
    with MeshEstimator.from_bundle(joints_only) as estimator:
        body = estimator(frame, BOXES)[0]
    with pytest.raises(UserError, match="joints and no mesh"):
        getattr(body, f"save_{kind}")(tmp_path / f"body.{kind}")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="joints and no mesh"):
        body.to_dict(vertices=True)


def test_run_writes_overlay_and_json_alone(joints_only, frame, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "picture.png"), frame)
    out = tmp_path / "out"
    assert main(["run", str(tmp_path / "picture.png"), "--bundle", str(joints_only.path), "-o", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["picture.json", "picture.overlay.png"]
    (person,) = json.loads((out / "picture.json").read_text())["people"]
    assert len(person["joints_m"]) == 14 and not {"obj", "glb"} & person.keys()


def test_the_demo_needs_meshes(joints_only, tmp_path, capsys):
    assert main(["demo", "--bundle", str(joints_only.path), "-o", str(tmp_path / "demo")]) == 2
    assert "joints alone" in capsys.readouterr().err


def test_version_1_specs_promise_the_mesh(spec):
    values = json.loads(spec.to_json())
    values.pop("outputs")
    assert "vertices" in ModelSpec.from_json(json.dumps(values | {"schema_version": 1})).outputs


def test_a_video_has_joints_and_motion_and_no_meshes(joints_only, tmp_path, capsys):
    clip = write_clip(tmp_path / "a.mp4", 4)
    start = ["run", "--bundle", str(joints_only.path), str(clip), "--box", "0,0,64,48", "-o", str(tmp_path / "out")]
    assert main([*start, "--write", "glb,jsonl"]) == 2
    assert "glb: this bundle's network gives joints alone" in capsys.readouterr().err
    assert main([*start, "--write", "jsonl,overlay,bvh,npz"]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 4
