from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from metro_edge.errors import UserError
from metro_edge.mesh_files import write_glb, write_obj

WRITERS = [write_obj, write_glb]


def y_up(vertices: np.ndarray) -> np.ndarray:
    return vertices * np.float32((1, -1, -1))


def test_obj_is_y_up_with_faces_from_one(template, tmp_path):
    write_obj(tmp_path / "m.obj", template.vertices, template.faces)
    lines = (tmp_path / "m.obj").read_text().splitlines()
    vertices = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    faces = np.array([line.split()[1:] for line in lines if line.startswith("f ")], int)
    np.testing.assert_allclose(vertices, y_up(template.vertices), atol=1e-5)
    np.testing.assert_array_equal(faces - 1, template.faces)


def parse_glb(data: bytes) -> tuple[dict, bytes]:
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    json_length, json_kind = struct.unpack_from("<I4s", data, 12)
    assert json_kind == b"JSON" and json_length % 4 == 0
    bin_length, bin_kind = struct.unpack_from("<I4s", data, 20 + json_length)
    assert bin_kind == b"BIN\0" and bin_length % 4 == 0
    assert 28 + json_length + bin_length == len(data)
    return json.loads(data[20 : 20 + json_length]), data[28 + json_length :]


def test_glb_by_the_specification(template, tmp_path):
    write_glb(tmp_path / "m.glb", template.vertices, template.faces)
    document, binary = parse_glb((tmp_path / "m.glb").read_bytes())
    assert document["asset"]["version"] == "2.0"
    assert document["buffers"] == [{"byteLength": len(binary)}]

    def read(index: int, dtype: str, width: int) -> np.ndarray:
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        part = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        values = np.frombuffer(part, dtype).reshape(-1, width)
        assert accessor["count"] == len(values)
        return values

    positions, normals, indices = read(0, "<f4", 3), read(1, "<f4", 3), read(2, "<u4", 1)
    np.testing.assert_array_equal(positions, y_up(template.vertices))
    np.testing.assert_array_equal(indices.reshape(-1, 3), template.faces)
    np.testing.assert_allclose(document["accessors"][0]["min"], positions.min(0), rtol=1e-6)
    np.testing.assert_allclose(document["accessors"][0]["max"], positions.max(0), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    outwards = positions - positions.mean(0)
    assert ((normals * outwards).sum(1) > 0).all()


@pytest.mark.parametrize("suffix", ["obj", "glb"])
def test_trimesh_reads_a_closed_mesh_with_its_outside_outside(template, tmp_path, suffix):
    trimesh = pytest.importorskip("trimesh")
    path = tmp_path / f"m.{suffix}"
    (write_obj if suffix == "obj" else write_glb)(path, template.vertices, template.faces)
    mesh = trimesh.load(path, force="mesh")
    assert mesh.is_watertight and mesh.volume > 0
    assert mesh.vertices.shape == template.vertices.shape
    np.testing.assert_allclose(mesh.bounds[1][1], -template.vertices[:, 1].min(), atol=1e-4)


def test_vertices_without_faces_get_a_unit_normal(template, tmp_path):
    vertices = np.concatenate([template.vertices, [(5, 5, 5)]]).astype(np.float32)
    write_glb(tmp_path / "m.glb", vertices, template.faces)
    document, binary = parse_glb((tmp_path / "m.glb").read_bytes())
    start = document["bufferViews"][1]["byteOffset"]
    normals = np.frombuffer(binary[start : start + vertices.nbytes], "<f4").reshape(-1, 3)
    np.testing.assert_array_equal(normals[-1], (0, 0, 1))


@pytest.mark.parametrize("write", WRITERS)
def test_bad_meshes(template, tmp_path, write):
    path = tmp_path / "m"
    nan = template.vertices.copy()
    nan[3, 1] = np.nan
    for vertices in (template.vertices[:, :2], template.vertices[0], template.vertices[:0], nan):
        with pytest.raises(UserError, match="vertices must be"):
            write(path, vertices, template.faces)
    for faces in (template.faces[:, :2], template.faces[0], template.faces[:0]):
        with pytest.raises(UserError, match="faces must be"):
            write(path, template.vertices, faces)
    for faces in (template.faces + 1, template.faces - 1):
        with pytest.raises(UserError, match="faces must point"):
            write(path, template.vertices, faces)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS)
def test_unwritable_places(template, tmp_path, write):
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "missing" / "m", template.vertices, template.faces)
