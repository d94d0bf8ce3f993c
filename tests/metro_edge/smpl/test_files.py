"""Reading SMPL, MANO and METRO's own files, made in their formats."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from metro_edge.errors import UserError
from metro_edge.smpl import files
from tests import smpl_files
from tests.smpl_files import Ch, Select, metro_folder, python2_pickle, smpl_arrays, write_mano, write_smpl


@pytest.fixture(scope="module")
def folder() -> Path:
    return metro_folder()


def assert_same_model(read: files.SmplFile, arrays: dict[str, Any]) -> None:
    names = {
        "v_template": "v_template", "shapedirs": "shapedirs", "posedirs": "posedirs", "weights": "weights",
        "joint_regressor": "J_regressor", "faces": "f",
    }  # fmt: skip
    for ours, theirs in names.items():
        np.testing.assert_allclose(getattr(read, ours), arrays[theirs], rtol=1e-6, atol=1e-7)
    assert read.parents == arrays["parents"]
    assert (read.v_template.dtype, read.faces.dtype) == (np.float32, np.int32)


def test_smpl_pickles(folder: Path) -> None:
    for i, gender in enumerate(files.GENDERS):
        read = files.read_smpl(files.find_smpl(folder, gender))
        assert (read.kind, read.gender, read.hands_mean) == ("smpl", gender, None)
        if i == 0:
            arrays = smpl_arrays()
            assert_same_model(read, arrays)
            np.testing.assert_array_equal(read.mirror, arrays["vert_sym_idxs"])
            assert read.sha256 == hashlib.sha256(files.find_smpl(folder).read_bytes()).hexdigest()


def test_mano_pickle(folder: Path) -> None:
    arrays = smpl_files.mano_arrays()
    read = files.read_smpl(files.find_smpl(folder, kind="mano"))
    assert (read.kind, read.gender, read.mirror) == ("mano", "", None)
    assert_same_model(read, arrays)
    np.testing.assert_allclose(read.hands_mean, arrays["hands_mean"], rtol=1e-6)


def test_npz_and_the_other_forms_of_arrays(tmp_path: Path) -> None:
    plain = files.read_smpl(write_mano(tmp_path, "mano_right.npz"))
    assert_same_model(plain, smpl_files.mano_arrays())
    arrays = smpl_files.mano_arrays()
    shape = arrays["shapedirs"]
    wrapped = write_mano(
        tmp_path,
        shapedirs=Select(Ch(shape), np.arange(shape.size), shape.shape),
        J_regressor=scipy.sparse.coo_matrix(arrays["J_regressor"]),
        weights=Ch(arrays["weights"]),
    )
    assert_same_model(files.read_smpl(wrapped), arrays)


def test_more_betas_than_needed(tmp_path: Path) -> None:
    path = write_mano(tmp_path, shapedirs=np.zeros((778, 3, 300)))
    assert files.read_smpl(path).shapedirs.shape == (778, 3, 10)
    assert files.read_smpl(path, betas=300).shapedirs.shape == (778, 3, 300)


@pytest.mark.parametrize(
    ("name", "gender"),
    [
        ("SMPL_NEUTRAL.pkl", "neutral"),
        ("SMPL_FEMALE.npz", "female"),
        ("smpl_male.npz", "male"),
        ("basicModel_f_lbs_10_207_0_v1.0.0.pkl", "female"),
        ("basicmodel_m_lbs_10_207_0_v1.1.0.pkl", "male"),
        ("model.pkl", ""),
    ],
)
def test_gender_by_name(name: str, gender: str) -> None:
    assert files._gender(Path(name)) == gender


def test_find_smpl(tmp_path: Path) -> None:
    (tmp_path / "smpl" / "models").mkdir(parents=True)
    (tmp_path / "SMPL_FEMALE.PKL").write_bytes(b"")
    (tmp_path / "smpl" / "models" / "basicmodel_m_lbs_10_207_0_v1.1.0.pkl").write_bytes(b"")
    assert files.find_smpl(tmp_path, "female").name == "SMPL_FEMALE.PKL"
    assert files.find_smpl(tmp_path, "male").parent.name == "models"
    with pytest.raises(UserError, match=r"no neutral SMPL model in .*; it has the male and female model.*v1\.0"):
        files.find_smpl(tmp_path, "neutral")
    with pytest.raises(UserError, match=r"no right-hand MANO model in .*Looked for mano_right\.pkl"):
        files.find_smpl(tmp_path, kind="mano")
    for name in ("SMPL_NEUTRAL.npz", "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl"):  # METRO's own wins
        (tmp_path / name).write_bytes(b"")
        assert files.find_smpl(tmp_path).name == name
    with pytest.raises(UserError, match="unknown gender 'woman'"):
        files.find_smpl(tmp_path, "woman")
    with pytest.raises(UserError, match="unknown kind of body model 'smplx'"):
        files.find_smpl(tmp_path, kind="smplx")
    for look in (files.find_smpl, lambda path: files.find_file(path, "x.npz")):
        with pytest.raises(UserError, match="is not a folder"):
            look(tmp_path / "none")
    with pytest.raises(UserError, match=r"no mesh_downsampling\.npz in"):
        files.find_file(tmp_path, "mesh_downsampling.npz")


MANO = smpl_files.mano_arrays()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v_template": None}, "lacks v_template$"),
        ({"weights": None, "f": None}, "lacks weights, f$"),
        ({"hands_mean": None}, "lacks hands_mean"),
        ({"hands_mean": np.zeros(12)}, "hands_mean has 12 values; MANO has 45"),
        ({"posedirs": np.zeros((778, 3, 207))}, r"posedirs has shape \(778, 3, 207\); MANO has \(778, 3, 135\)"),
        ({"shapedirs": np.zeros((778, 3))}, r"shapedirs has shape \(778, 3\)"),
        ({"J_regressor": np.zeros((17, 778))}, "J_regressor has shape"),
        ({"J_regressor": scipy.sparse.csc_matrix((2**20, 2**20))}, "too large to be a body model"),
        ({"weights": np.full((778, 16), np.nan)}, "weights holds values that are not finite"),
        ({"v_template": np.full((778, 3), np.inf)}, "v_template holds values that are not finite"),
        ({"v_template": np.full((778, 3), "a")}, "v_template holds <U1 values, not numbers"),
        ({"f": MANO["f"] + 20}, "f points outside the 778 vertices"),
        ({"f": np.zeros((0, 3), np.uint32)}, "f points outside"),
        ({"kintree_table": MANO["kintree_table"][:, ::-1]}, "not a tree"),
        ({"kintree_table": np.zeros((2, 55))}, r"778 vertices and 55 joints \(SMPL-X\); SMPL has 6890 and 24"),
        ({"kintree_table": np.zeros((2, 52))}, r"52 joints \(SMPL\+H\)"),
        ({"kintree_table": np.zeros((2, 24))}, "778 vertices and 24 joints; SMPL has 6890"),
        ({"kintree_table": np.zeros(16)}, "778 vertices and 0 joints"),
    ],
)
def test_wrong_models_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_mano(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        files.read_smpl(path)
    assert "too large" in message or str(path) in str(caught.value)


def test_wrong_vertex_counts_and_other_contents(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="700 vertices and 16 joints; SMPL has 6890 and 24, MANO 778 and 16"):
        files.read_smpl(write_mano(tmp_path, vertices=700))
    (tmp_path / "list.pkl").write_bytes(python2_pickle([1, 2]))
    with pytest.raises(UserError, match=r"list\.pkl holds a list"):
        files.read_smpl(tmp_path / "list.pkl")
    whole = write_mano(tmp_path).read_bytes()
    (tmp_path / "cut.pkl").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UserError, match=r"cut\.pkl is cut short"):
        files.read_smpl(tmp_path / "cut.pkl")


def test_a_malicious_model_does_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = write_mano(tmp_path, bs_style=Attack())
    with pytest.raises(UserError, match=rf"MANO_RIGHT\.pkl was not read: it needs {os.system.__module__}\.system"):
        files.read_smpl(path)
    objects = np.empty(1, object)
    objects[0] = Attack()
    np.savez(tmp_path / "mesh_downsampling.npz", U=objects, D=objects, A=objects)
    with pytest.raises(UserError, match=r"\.system"):
        files.read_downsampling(tmp_path / "mesh_downsampling.npz")
    assert not (tmp_path / "ran").exists()


def test_smpl_of_the_wrong_size_is_not_smpl(tmp_path: Path) -> None:
    path = write_smpl(tmp_path, vertices=1680)
    with pytest.raises(UserError, match="1680 vertices and 24 joints"):
        files.read_smpl(path)


def test_downsampling(folder: Path) -> None:
    rest = smpl_arrays()["v_template"]
    read = files.read_downsampling(folder / "mesh_downsampling.npz", (6890, 1723, 431))
    assert read.sizes == (6890, 1723, 431)
    assert [len(step) for step in read.down] == [1723, 431]
    middle = rest[read.down[0]]
    assert np.linalg.norm(read.up[0] @ middle - rest, axis=1).max() < 0.1
    # A vertex that is kept is its own combination: up after down leaves it where it was.
    np.testing.assert_allclose((read.up[0] @ middle)[read.down[0]], middle, atol=1e-5)
    with np.load(folder / "mesh_downsampling.npz", allow_pickle=True) as data:
        np.testing.assert_allclose(read.up[1].dense(431), data["U"][1].toarray(), rtol=1e-6)
        np.testing.assert_array_equal(data["D"][1] @ np.arange(1723), read.down[1])
    whole = files.read_downsampling(folder / "mano_downsampling.npz")
    assert whole.sizes == (778, 195, 49)
    assert files.read_downsampling(folder / "mano_downsampling.npz", (778, 195)).sizes == (778, 195)


def test_wrong_downsampling(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has levels of \[778, 195, 49\] vertices; \[6890, 1723, 431\] are needed"):
        files.read_downsampling(folder / "mano_downsampling.npz", (6890, 1723, 431))
    with pytest.raises(UserError, match="no mesh downsampling"):
        files.read_downsampling(folder / "J_regressor_h36m_correct.npy")
    path = tmp_path / "d.npz"
    one = scipy.sparse.csr_matrix(np.eye(2, 4))
    up = scipy.sparse.csr_matrix(np.ones((4, 2)))
    for down, ups, message in (
        ([one], [up, up], "as many sparse matrices each"),
        ([np.eye(2)], [up], "as many sparse matrices each"),
        ([one], [scipy.sparse.csr_matrix((5, 2))], "do not lead from 4 to 2"),
        ([scipy.sparse.csr_matrix(np.full((2, 4), 0.25))], [up], "not a selection"),
        ([one * 2], [up], "not a selection"),
    ):
        np.savez(path, D=smpl_files._object_array(down), U=smpl_files._object_array(ups))
        with pytest.raises(UserError, match=message):
            files.read_downsampling(path)


def test_h36m_regressor(folder: Path, tmp_path: Path) -> None:
    read = files.read_h36m_regressor(folder / "J_regressor_h36m_correct.npy")
    assert (read.shape, read.dtype) == ((17, 6890), np.float32)
    np.save(tmp_path / "a.npy", read[:14])
    with pytest.raises(UserError, match=r"holds \(14, 6890\); METRO's J_regressor_h36m_correct\.npy"):
        files.read_h36m_regressor(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", read * 2)
    with pytest.raises(UserError, match="sum to one, these to"):
        files.read_h36m_regressor(tmp_path / "b.npy")
    shutil.copy(folder / "mano_downsampling.npz", tmp_path / "c.npy")
    with pytest.raises(UserError, match="holds dict"):
        files.read_h36m_regressor(tmp_path / "c.npy")


def test_sparse_rows_is_the_matrix() -> None:
    dense = np.where(np.random.default_rng(2).random((6, 9)) < 0.4, 1.5, 0)
    dense[3] = 0
    rows, columns = np.nonzero(dense)
    order = np.random.default_rng(3).permutation(len(rows))
    packed = files.sparse_rows(rows[order], columns[order], dense[rows, columns][order], 6)
    np.testing.assert_array_equal(packed.dense(9), dense)
