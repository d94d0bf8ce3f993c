from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest

from metro_edge.errors import UserError
from metro_edge.template import BodyTemplate, SparseMatrix


def test_round_trip(template, tmp_path):
    template.save(tmp_path / "t.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]
    for source in (tmp_path / "t.npz", io.BytesIO((tmp_path / "t.npz").read_bytes())):
        again = BodyTemplate.load(source)
        assert (again.name, again.licence, again.level_sizes) == ("egg", "CC0-1.0", (12, 162))
        for field in ("vertices", "faces"):
            np.testing.assert_array_equal(getattr(again, field), getattr(template, field))
        np.testing.assert_array_equal(again.upsampling[0].weights, template.upsampling[0].weights)
        np.testing.assert_array_equal(
            again.joints("h36m14", template.vertices), template.joints("h36m14", template.vertices)
        )


def test_sparse_is_its_dense_matrix():
    matrix = SparseMatrix(np.array([[0, 2, 2], [1, 1, 4]], np.int32), np.array([[1, 2, 3], [4, 5, 6]], np.float32))
    values = np.random.default_rng(0).normal(size=(2, 5, 3))
    np.testing.assert_array_equal(matrix.dense(5), [[1, 0, 5, 0, 0], [0, 9, 0, 0, 6]])
    np.testing.assert_allclose(matrix @ values, matrix.dense(5) @ values, rtol=1e-6)


def test_root_is_in_the_origin(template):
    assert np.abs(template.root("h36m14", template.vertices)).max() < 1e-6
    batch = np.repeat(template.vertices[None], 4, axis=0) + np.float32((1, 2, 3))
    np.testing.assert_allclose(template.root("h36m14", batch), [(1, 2, 3)] * 4, atol=1e-5)


def test_a_joint_set_it_lacks(template):
    with pytest.raises(UserError, match="no regressor for joint set 'coco17'; it has h36m14"):
        template.joints("coco17", template.vertices)
    with pytest.raises(UserError, match="it has none"):
        dataclasses.replace(template, regressors={}).joints("h36m14", template.vertices)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="no body template at"):
        BodyTemplate.load(tmp_path / "none.npz")
    for data in (b"", b"no zip at all"):
        (tmp_path / "bad.npz").write_bytes(data)
        with pytest.raises(UserError, match="not a readable body template"):
            BodyTemplate.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="not a complete body template"):
        BodyTemplate.load(tmp_path / "other.npz")
    objects = np.array([{"code": 1}], dtype=object)
    np.savez(tmp_path / "pickled.npz", name=objects)
    with pytest.raises(UserError, match="not a readable body template"):
        BodyTemplate.load(tmp_path / "pickled.npz")


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("vertices", lambda a: a * np.nan, "vertices must be finite"),
        ("vertices", lambda a: a[:, :2], r"vertices must be finite and \(V, 3\)"),
        ("vertices", lambda a: a[:-1], "last level must be the full mesh"),
        ("faces", lambda a: a + 1, "faces point outside 0..161"),
        ("faces", lambda a: a - 1, "faces point outside"),
        ("level0.vertices", lambda a: a + 160, "level 0 vertices point outside"),
        ("level1.faces", lambda a: a + 1, "level 1 faces point outside"),
        ("upsampling0.indices", lambda a: a[:-1], "differ"),
        ("upsampling0.indices", lambda a: a + 12, "upsampling0 point outside 0..11"),
        ("regressor.h36m14.indices", lambda a: a + 162, "regressor h36m14 point outside"),
        ("regressor.h36m14.weights", lambda a: a[:, :2], "differ"),
    ],
)
def test_inconsistent_files(template, tmp_path, key, change, message):
    path = tmp_path / "t.npz"
    template.save(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **{**arrays, key: change(arrays[key])})
    with pytest.raises(UserError, match=message):
        BodyTemplate.load(path)


def test_matrices_of_the_wrong_size(template, tmp_path):
    for changes, message in (
        ({"upsampling": (SparseMatrix(*(a[:-1] for a in dataclasses.astuple(template.upsampling[0]))),)}, "makes 161"),
        ({"regressors": {"h36m14": SparseMatrix(np.zeros((3, 1), np.int32), np.ones((3, 1), np.float32))}}, "3 rows"),
    ):
        dataclasses.replace(template, **changes).save(tmp_path / "t.npz")
        with pytest.raises(UserError, match=message):
            BodyTemplate.load(tmp_path / "t.npz")
