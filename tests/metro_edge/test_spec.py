from __future__ import annotations

import dataclasses
import json

import pytest

from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec, check_precision


def changed(spec: ModelSpec, **changes) -> str:
    values = {**json.loads(spec.to_json()), **changes}
    return json.dumps({k: v for k, v in values.items() if v != "absent"})


def test_round_trip(spec):
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_json(changed(spec, mean=[0.1, 0.2, 0.3])).mean == (0.1, 0.2, 0.3)
    assert ModelSpec.from_json(changed(spec, box_scale="absent")).box_scale == 1.2
    assert len(spec.joints) == 14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 3}, "schema version 3, this metro-edge reads up to 2"),
        ({"schema_version": "2"}, "schema version '2'"),
        ({"outputs": ["camera", "joints", "verts"]}, "unknown output verts; known: camera, joints, mesh_joints"),
        ({"outputs": ["camera", "joints", "joints", "vertices"]}, "each goes in once"),
        ({"outputs": ["camera", "vertices"]}, "lack joints"),
        ({"outputs": ["camera", "joints", "joints_px"]}, "need vertices or mesh_joints"),
        ({"outputs": 3}, "wrong kind"),
        ({"schema_version": "absent"}, "schema version None"),
        ({"colour": 1}, "unknown fields: colour"),
        ({"body": "absent", "name": "absent"}, "lacks: body, name"),
        ({"joint_set": "x"}, "unknown joint set"),
        ({"crop_rule": "x"}, "unknown crop rule 'x'; known: box_area, box_bilinear"),
        ({"image_size": 16}, "image_size 16 must be 32 to 4096"),
        ({"image_size": 10**6}, "image_size 1000000 must be"),
        ({"vertex_count": 0}, "vertex_count 0"),
        ({"box_scale": 0}, "box_scale 0 must be 0.1 to 10"),
        ({"box_scale": 1e300}, r"box_scale 1e\+300 must be 0.1 to 10"),
        ({"box_scale": float("nan")}, "box_scale nan must be"),
        ({"std": [1, 0, 1]}, r"std \(1.0, 0.0, 1.0\) 0.001 to 10, of images scaled to 0 to 1"),
        ({"std": [1, 1e-300, 1]}, "1e-300, 1.0. 0.001 to 10"),
        ({"std": [1, 1, 1e30]}, "0.001 to 10"),
        ({"mean": [123.675, 116.28, 103.53]}, r"mean \(123.675, 116.28, 103.53\) must be 0 to 1"),
        ({"std": [1, 1]}, "wrong kind"),
        ({"mean": 0.5}, "wrong kind"),
        ({"image_size": "large"}, "wrong kind"),
        ({"image_size": 64.5}, "image_size 64.5 and vertex_count .* must be whole"),
        ({"vertex_count": True}, "must be whole"),
        ({"mean": [0.5, float("nan"), 0.5]}, "nan, 0.5. must be 0 to 1"),
        ({"box_scale": float("inf")}, "box_scale inf must be"),
        ({"box_scale": 10**400}, "wrong kind"),
        ({"name": 3}, "must be text"),
    ],
)
def test_bad_specs(spec, changes, message):
    with pytest.raises(UserError, match=message):
        ModelSpec.from_json(changed(spec, **changes))


def test_networks_of_other_numbers(spec):
    """Those that take values from 0 to 255, and from -1 to 1."""
    assert ModelSpec.from_json(changed(spec, mean=[0, 0, 0], std=[1 / 255] * 3)).std[0] == 1 / 255
    assert ModelSpec.from_json(changed(spec, mean=[0.5] * 3, std=[0.5] * 3, box_scale=1)).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("text", ["no json", "[1]", "3"])
def test_no_object(text):
    with pytest.raises(UserError, match="not a JSON object"):
        ModelSpec.from_json(text)


def test_files_of_version_1_have_the_three_outputs(spec):
    text = changed(spec, schema_version=1, outputs="absent")
    assert ModelSpec.from_json(text) == spec and spec.outputs == ("camera", "joints", "vertices")


def test_outputs_come_back_in_their_order(spec):
    joints_only = dataclasses.replace(spec, outputs=("joints", "camera", "joints_px", "mesh_joints"))
    assert ModelSpec.from_json(joints_only.to_json()) == joints_only


def test_precisions():
    assert check_precision("int8") == "int8"
    with pytest.raises(UserError, match="unknown precision 'FP32'; known: fp32, fp16, int8"):
        check_precision("FP32")
