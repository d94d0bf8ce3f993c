from __future__ import annotations

import json

import numpy as np
import pytest

from metro_edge.backends import Outputs
from metro_edge.body import Body
from metro_edge.joints import H36M14
from metro_edge.postprocess import Intrinsics, bodies_from_outputs


@pytest.fixture
def body(template, spec) -> Body:
    vertices = template.vertices[None]
    outputs = Outputs(
        np.array([[0.9, 0.05, 0.02]], np.float32),
        template.joints("h36m14", vertices).astype(np.float32),
        vertices,
    )
    return bodies_from_outputs(
        outputs, np.array([[20.0, 10, 60, 100]]), Intrinsics(200.0, (79.5, 59.5)), spec, template
    )[0]


def test_projections_are_a_pinholes(body):
    for points, pixels in ((body.joints, body.joints_px), (body.vertices, body.vertices_px)):
        placed = points + body.translation
        np.testing.assert_allclose(pixels, placed[:, :2] / placed[:, 2:] * 200 + (79.5, 59.5), atol=1e-3)
        assert pixels.dtype == np.float32
    assert body.joint_names == H36M14.names
    head, ankle = (body.joints_px[H36M14.index(name)] for name in ("head_top", "left_ankle"))
    assert head[1] < ankle[1]  # y down


def test_dictionary_has_the_documented_fields_and_is_json(body):
    values = json.loads(json.dumps(body.to_dict(), allow_nan=False))
    assert values.keys() == {
        "schema_version", "joint_set", "joint_names", "joints_m", "joints_px", "camera", "translation_m",
        "box_px", "focal_px", "centre_px",
    }  # fmt: skip
    assert values["schema_version"] == 1
    assert values["camera"].keys() == {"scale", "tx", "ty"}
    np.testing.assert_allclose(values["joints_m"], body.joints, atol=1e-5)
    np.testing.assert_allclose(values["joints_px"], body.joints_px, atol=0.01)
    np.testing.assert_allclose(values["box_px"], (20, 10, 60, 100))
    with_mesh = body.to_dict(vertices=True)
    np.testing.assert_allclose(with_mesh["vertices_m"], body.vertices, atol=1e-5)


def test_meshes_are_saved(body, tmp_path):
    body.save_obj(tmp_path / "a.obj")
    body.save_glb(tmp_path / "a.glb")
    assert (tmp_path / "a.obj").read_text().count("\nv ") == len(body.vertices)
    assert (tmp_path / "a.glb").read_bytes()[:4] == b"glTF"


def test_repr_is_short(body):
    assert len(repr(body)) < 500
