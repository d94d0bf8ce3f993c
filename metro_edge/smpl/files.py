"""SMPL, MANO and METRO's mesh levels from the files that their authors distribute.

None of them may be passed on, so they come from the user, by path: SMPL (Loper et al., SIGGRAPH Asia 2015) v1.0 or
v1.1, MANO (Romero et al., SIGGRAPH Asia 2017), and `mesh_downsampling.npz`, `mano_downsampling.npz` and
`J_regressor_h36m_correct.npy` of METRO (microsoft/MeshTransformer).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge import unpickle
from metro_edge.errors import UserError
from metro_edge.files import sha256_of
from metro_edge.template import SparseMatrix

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]

GENDERS = ("neutral", "male", "female")
VERTICES = {"smpl": 6890, "mano": 778}
JOINTS = {"smpl": 24, "mano": 16}
_OTHER_MODELS = {52: "SMPL+H", 55: "SMPL-X", 33: "SMAL", 5: "FLAME"}
_KEYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "f", "kintree_table")
# Names by which the files are known, best first: METRO was trained with the neutral SMPL of SMPLify, version 1.0.
_SMPL_STEMS = {
    "neutral": ("basicmodel_neutral_lbs_10_207_0_v1.0.0", "smpl_neutral", "basicmodel_neutral_lbs_10_207_0_v1.1.0"),
    "male": ("basicmodel_m_lbs_10_207_0_v1.0.0", "smpl_male", "basicmodel_m_lbs_10_207_0_v1.1.0"),
    "female": ("basicmodel_f_lbs_10_207_0_v1.0.0", "smpl_female", "basicmodel_f_lbs_10_207_0_v1.1.0"),
}
_FOLDERS = ("", "smpl", "smpl/models", "models", "mano", "mano/models", "data")


@dataclass(frozen=True, eq=False)
class SmplFile:
    """A body or hand model as arrays; metres, the model's own frame (SMPL: x to the body's left, y up, z forwards).

    Attributes:
        kind: `smpl` or `mano`.
        gender: `neutral`, `male`, `female`, or empty where the file's name does not tell.
        v_template: (V, 3) float32 mesh at rest, of the mean shape.
        shapedirs: (V, 3, B) float32 shape directions, B <= 10.
        posedirs: (V, 3, 9 (K - 1)) float32 pose directions, for the rotation matrices less identity.
        joint_regressor: (K, V) float32, joints at rest from a shaped mesh.
        weights: (V, K) float32 skinning weights.
        faces: (F, 3) int32, counter-clockwise seen from outside.
        parents: (K,) of each joint, -1 for the root.
        hands_mean: (45,) float32 axis-angle of MANO's mean pose; None for SMPL.
        sha256: of the file.
        mirror: (V,) int32, each vertex's counterpart on the other side, where the file has it; else None.
    """

    kind: str
    gender: str
    v_template: FloatArray = field(repr=False)
    shapedirs: FloatArray = field(repr=False)
    posedirs: FloatArray = field(repr=False)
    joint_regressor: FloatArray = field(repr=False)
    weights: FloatArray = field(repr=False)
    faces: IntArray = field(repr=False)
    parents: tuple[int, ...] = field(repr=False)
    hands_mean: FloatArray | None = field(default=None, repr=False)
    sha256: str = ""
    mirror: IntArray | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Downsampling:
    """METRO's mesh levels, fine to coarse.

    Attributes:
        sizes: vertices per level, the full mesh first.
        down: per step, (V_coarse,) int32: which vertices of the finer level make the coarser.
        up: per step, the matrix that makes the finer level from the coarser.
    """

    sizes: tuple[int, ...]
    down: tuple[IntArray, ...]
    up: tuple[SparseMatrix, ...]


def read_smpl(path: str | os.PathLike[str], betas: int = 10) -> SmplFile:
    """Read an SMPL or MANO model, a .pkl of its authors or a .npz with the same entries; runs no code from it.

    Args:
        betas: shape directions to keep; METRO and its data use 10, SMPL v1.1 has 300.

    Raises:
        UserError: unreadable, refused by `metro_edge.unpickle`, another model (SMPL-X, SMPL+H, ...), or arrays that
            are missing, misshapen or not finite.
    """
    file = Path(path)
    data = unpickle.load(file)
    if not isinstance(data, dict):
        raise UserError(f"{file} holds a {type(data).__name__}; an SMPL or MANO file holds named arrays")
    missing = [key for key in _KEYS if key not in data]
    if missing:
        raise UserError(f"{file} is not an SMPL or MANO model: it lacks {', '.join(missing)}")
    arrays = {key: _dense(file, key, data[key]) for key in _KEYS}
    kind = _kind(file, arrays)
    count, joints = VERTICES[kind], JOINTS[kind]
    shapes = {
        "v_template": (count, 3),
        "shapedirs": (count, 3, arrays["shapedirs"].shape[-1] if arrays["shapedirs"].ndim else 0),
        "posedirs": (count, 3, 9 * (joints - 1)),
        "J_regressor": (joints, count),
        "weights": (count, joints),
        "f": (len(arrays["f"]) if arrays["f"].ndim else 0, 3),
        "kintree_table": (2, joints),
    }
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise UserError(f"{file}: {key} has shape {arrays[key].shape}; {kind.upper()} has {shape}")
    return SmplFile(
        kind=kind,
        gender=_gender(file) if kind == "smpl" else "",
        v_template=_floats(file, "v_template", arrays["v_template"]),
        shapedirs=_floats(file, "shapedirs", arrays["shapedirs"][:, :, :betas]),
        posedirs=_floats(file, "posedirs", arrays["posedirs"]),
        joint_regressor=_floats(file, "J_regressor", arrays["J_regressor"]),
        weights=_floats(file, "weights", arrays["weights"]),
        faces=_indices(file, "f", arrays["f"], count),
        parents=_parents(file, arrays["kintree_table"]),
        hands_mean=_hands_mean(file, data) if kind == "mano" else None,
        sha256=sha256_of(file.read_bytes()),
        mirror=_mirror(data, count) if kind == "smpl" else None,
    )


def _dense(file: Path, key: str, value: Any) -> NDArray[Any]:
    array = value.toarray() if isinstance(value, unpickle.SparseMatrixData) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{file}: {key} holds {array.dtype} values, not numbers")
    return array


def _kind(file: Path, arrays: dict[str, NDArray[Any]]) -> str:
    table, vertices = arrays["kintree_table"].shape, len(np.atleast_1d(arrays["v_template"]))
    joints = table[1] if len(table) == 2 else 0
    for kind, count in JOINTS.items():
        if joints == count and vertices == VERTICES[kind]:
            return kind
    named = f" ({_OTHER_MODELS[joints]})" if joints in _OTHER_MODELS else ""
    raise UserError(
        f"{file} has {vertices} vertices and {joints} joints{named}; "
        f"SMPL has 6890 and 24, MANO 778 and 16, and METRO knows no other"
    )


def _floats(file: Path, key: str, array: NDArray[Any]) -> FloatArray:
    values = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{file}: {key} holds values that are not finite")
    return values


def _indices(file: Path, key: str, array: NDArray[Any], limit: int) -> IntArray:
    values = array.astype(np.int64)
    if values.size == 0 or values.min() < 0 or values.max() >= limit:
        raise UserError(f"{file}: {key} points outside the {limit} vertices")
    return values.astype(np.int32)


def _parents(file: Path, table: NDArray[Any]) -> tuple[int, ...]:
    place = {int(joint): i for i, joint in enumerate(table[1])}
    parents = (-1, *(place.get(int(parent), -1) for parent in table[0, 1:]))
    if any(not 0 <= parent < joint for joint, parent in enumerate(parents[1:], 1)):
        raise UserError(f"{file}: kintree_table is not a tree whose parents come before their children")
    return parents


def _hands_mean(file: Path, data: dict[str, Any]) -> FloatArray:
    if "hands_mean" not in data:
        raise UserError(f"{file} lacks hands_mean, MANO's mean pose; use MANO_RIGHT.pkl of MANO v1.2")
    mean = _floats(file, "hands_mean", _dense(file, "hands_mean", data["hands_mean"]).ravel())
    if mean.shape != (45,):
        raise UserError(f"{file}: hands_mean has {mean.size} values; MANO has 45")
    return mean


def _mirror(data: dict[str, Any], count: int) -> IntArray | None:
    """Return the file's left-right correspondence where it is one: METRO needs none, so nothing depends on it."""
    mirror = np.asarray(data.get("vert_sym_idxs", ())).ravel()
    if (
        mirror.shape != (count,)
        or mirror.dtype.kind not in "iu"
        or not np.array_equal(np.sort(mirror), np.arange(count))
    ):
        return None
    return mirror.astype(np.int32)


def _gender(file: Path) -> str:
    name = file.stem.lower()
    for gender, pattern in (("neutral", r"neutral"), ("female", r"female|_f_|_f$"), ("male", r"male|_m_|_m$")):
        if re.search(pattern, name):
            return gender
    return ""


def find_smpl(folder: str | os.PathLike[str], gender: str = "neutral", kind: str = "smpl") -> Path:
    """Find the model of `gender` in `folder` or its usual sub-folders by the names its authors gave it.

    Args:
        gender: `neutral`, `male` or `female`; MANO has none.
        kind: `smpl`, or `mano` (right hand).

    Raises:
        UserError: an unknown gender, or no such file; says which genders are there and which names were looked for.
    """
    if kind not in VERTICES:
        raise UserError(f"unknown kind of body model {kind!r}; known: {', '.join(VERTICES)}")
    if kind == "smpl" and gender not in GENDERS:
        raise UserError(f"unknown gender {gender!r}; SMPL has {', '.join(GENDERS)}")
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder with {kind.upper()} files")
    stems = _SMPL_STEMS[gender] if kind == "smpl" else ("mano_right",)
    found = _find(root, stems)
    if found is not None:
        return found
    there = [g for g in GENDERS if kind == "smpl" and g != gender and _find(root, _SMPL_STEMS[g]) is not None]
    also = f"; it has the {' and '.join(there)} model" if there else ""
    what = f"{gender} SMPL" if kind == "smpl" else "right-hand MANO"
    names = ", ".join(f"{stem}.pkl" for stem in stems)
    raise UserError(f"no {what} model in {root}{also}. Looked for {names} (or .npz), in any case of letters")


def find_file(folder: str | os.PathLike[str], name: str) -> Path:
    """Find the file `name`, in any case of letters, in `folder` or its usual sub-folders; raises UserError."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    found = _first(root, (name.lower(),))
    if found is None:
        raise UserError(f"no {name} in {root}; METRO's download script puts it into metro/modeling/data")
    return found


def _find(root: Path, stems: tuple[str, ...]) -> Path | None:
    return _first(root, tuple(f"{stem}{suffix}" for stem in stems for suffix in (".pkl", ".npz")))


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    files: dict[str, Path] = {}
    for folder in _FOLDERS:
        if (root / folder).is_dir():
            for path in sorted((root / folder).iterdir()):
                files.setdefault(path.name.lower(), path)
    return next((files[name] for name in names if name in files), None)


def read_downsampling(path: str | os.PathLike[str], sizes: tuple[int, ...] = ()) -> Downsampling:
    """Read METRO's mesh_downsampling.npz or mano_downsampling.npz.

    Args:
        sizes: the levels to keep, full mesh first, such as (6890, 1723, 431); empty for all.

    Raises:
        UserError: unreadable, refused by `metro_edge.unpickle`, without the levels asked for, or with a level that is
            not a selection of the finer one's vertices.
    """
    file = Path(path)
    data = unpickle.load(file)
    if not isinstance(data, dict) or not {"U", "D"} <= data.keys():
        raise UserError(f"{file} is no mesh downsampling of METRO's: it must hold arrays U and D of sparse matrices")
    down, up = (list(np.atleast_1d(data[key])) for key in ("D", "U"))
    if len(down) != len(up) or not all(isinstance(m, unpickle.SparseMatrixData) for m in (*down, *up)):
        raise UserError(f"{file}: U and D must hold as many sparse matrices each")
    levels = (down[0].shape[1], *(m.shape[0] for m in down)) if down else ()
    if sizes and levels[: len(sizes)] != sizes:
        raise UserError(f"{file} has levels of {list(levels)} vertices; {list(sizes)} are needed")
    steps = len(sizes or levels) - 1
    for fine, coarse, d, u in zip(levels, levels[1:], down, up, strict=False):
        if d.shape != (coarse, fine) or u.shape != (fine, coarse):
            raise UserError(f"{file}: matrices of shape {d.shape} and {u.shape} do not lead from {fine} to {coarse}")
    return Downsampling(
        sizes=levels[: steps + 1],
        down=tuple(_selection(file, m) for m in down[:steps]),
        up=tuple(sparse_rows(m.rows, m.columns, m.values, m.shape[0]) for m in up[:steps]),
    )


def _selection(file: Path, matrix: unpickle.SparseMatrixData) -> IntArray:
    kept = matrix.values != 0
    rows, columns, values = (part[kept] for part in (matrix.rows, matrix.columns, matrix.values))
    order = np.argsort(rows, kind="stable")
    if not (np.array_equal(rows[order], np.arange(matrix.shape[0])) and np.allclose(values, 1)):
        raise UserError(f"{file}: a level of {matrix.shape[0]} vertices is not a selection of the finer level's")
    selection: IntArray = columns[order].astype(np.int32)
    return selection


def sparse_rows(rows: NDArray[Any], columns: NDArray[Any], values: NDArray[Any], count: int) -> SparseMatrix:
    """Pack entries (N,) of a matrix of `count` rows into SparseMatrix's equal rows; spare places have weight 0."""
    kept = np.flatnonzero(values != 0)
    kept = kept[np.argsort(rows[kept], kind="stable")]
    sizes = np.bincount(rows[kept], minlength=count)
    place = np.arange(len(kept)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    width = max(int(sizes.max(initial=0)), 1)
    indices, weights = np.zeros((count, width), np.int32), np.zeros((count, width), np.float32)
    indices[rows[kept], place], weights[rows[kept], place] = columns[kept], values[kept]
    return SparseMatrix(indices, weights)


def read_h36m_regressor(path: str | os.PathLike[str]) -> FloatArray:
    """Read METRO's J_regressor_h36m_correct.npy: (17, 6890) float32, Human3.6M's joints from an SMPL mesh.

    Raises:
        UserError: unreadable, of another shape, or with rows that do not sum to one (joints would not follow the body).
    """
    file = Path(path)
    matrix = unpickle.load(file)
    if not isinstance(matrix, np.ndarray) or matrix.shape != (17, VERTICES["smpl"]) or matrix.dtype.kind not in "fiu":
        shape = getattr(matrix, "shape", type(matrix).__name__)
        raise UserError(f"{file} holds {shape}; METRO's J_regressor_h36m_correct.npy is a matrix of (17, 6890)")
    regressor = _floats(file, "the regressor", matrix)
    if np.abs(regressor.sum(1) - 1).max() > 1e-2:
        raise UserError(f"{file}: rows of a joint regressor sum to one, these to {regressor.sum(1).round(3).tolist()}")
    return regressor
