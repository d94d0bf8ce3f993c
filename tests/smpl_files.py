"""Small made bodies in the file formats of SMPL, MANO and METRO, since the real files may not be passed on.

Sizes and layout are the real ones (6,890 vertices and 24 joints; 778 and 16), the shapes are tubes around bones. The
pickles are what Python 2 wrote: protocol 2, byte strings, SciPy sparse matrices, chumpy wrappers around arrays.

    write_metro_folder(tmp_path)                 # everything METRO keeps in its data folder
    write_smpl(tmp_path, gender="female")        # one file; returns its path
    write_mano(tmp_path)
"""

from __future__ import annotations

import io
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse
import scipy.spatial

# SMPL's own frame: x to the body's left, y up, z forwards; metres.
SMPL_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
SMPL_MIRROR = (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22)
_LEFT_AND_MIDDLE = {
    0: (0.0, 0.0, 0.0), 1: (0.08, -0.1, 0.0), 3: (0.0, 0.11, -0.02), 4: (0.1, -0.47, 0.0), 6: (0.0, 0.25, -0.01),
    7: (0.1, -0.87, -0.03), 9: (0.0, 0.3, 0.0), 10: (0.12, -0.93, 0.09), 12: (0.0, 0.52, -0.03),
    13: (0.08, 0.43, -0.02), 15: (0.0, 0.6, 0.01), 16: (0.18, 0.45, -0.02), 18: (0.44, 0.45, -0.04),
    20: (0.7, 0.45, -0.03), 22: (0.78, 0.44, -0.04),
}  # fmt: skip
_SMPL_LEAVES = {10: (0.0, 0.0, 0.06), 15: (0.0, 0.2, 0.0), 22: (0.1, 0.0, 0.0)}
# MANO's frame: a right hand, flat, fingers along -x; joints by finger: index, middle, little, ring, thumb.
MANO_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
MANO_TIPS = {15: 745, 3: 317, 6: 445, 12: 556, 9: 673}  # last joint of a finger -> METRO's vertex of its tip
_MANO_ROOTS = {
    1: (0.007, 0.005, 0.02), 4: (0.003, 0.005, 0.0), 7: (0.027, 0.004, -0.036), 10: (0.015, 0.005, -0.018),
    13: (0.07, -0.003, 0.03),
}  # fmt: skip
_MANO_WRIST = (0.095, 0.0, 0.005)


def smpl_arrays(vertices: int = 6890, seed: int = 0) -> dict[str, Any]:
    """Arrays of an SMPL-like body: `v_template`, `shapedirs`, ... `parents`, `joints` (its rest joints)."""
    joints = np.zeros((24, 3))
    for i, place in _LEFT_AND_MIDDLE.items():
        joints[i], joints[SMPL_MIRROR[i]] = place, np.multiply(place, (-1, 1, 1))
    leaves = {i: joints[i] + d for i, d in _SMPL_LEAVES.items()}
    leaves |= {SMPL_MIRROR[i]: joints[SMPL_MIRROR[i]] + np.multiply(d, (-1, 1, 1)) for i, d in _SMPL_LEAVES.items()}
    body = _tubes(joints, SMPL_PARENTS, leaves, vertices, segments=7, radius=0.06, mirror=SMPL_MIRROR, seed=seed)
    return body | {"joints": joints}


def mano_arrays(vertices: int = 778, seed: int = 0) -> dict[str, Any]:
    """Arrays of a MANO-like hand, as `smpl_arrays`, with `hands_mean` (45,) and `hands_components` (45, 45)."""
    joints = np.zeros((16, 3))
    joints[0] = _MANO_WRIST
    leaves = {}
    for first, place in _MANO_ROOTS.items():
        step = np.array((-0.025, 0.0, 0.02 if first == 13 else 0.0))
        joints[first : first + 3] = place + np.arange(3)[:, None] * step
        leaves[first + 2] = place + 3 * step
    body = _tubes(joints, MANO_PARENTS, leaves, vertices, segments=6, radius=0.008, mirror=None, seed=seed)
    order = np.arange(vertices)
    if vertices == 778:  # put a vertex at each finger's end where METRO looks for it
        places = [(joint, 0, place) for joint, place in MANO_TIPS.items()] + [(6, 1, 444)]  # and its neighbour
        for joint, rank, place in places:
            nearest = int(np.linalg.norm(body["v_template"] - leaves[joint], axis=1).argsort(kind="stable")[rank])
            i, j = int(np.flatnonzero(order == nearest)[0]), int(np.flatnonzero(order == place)[0])
            order[[i, j]] = order[[j, i]]
    back = np.argsort(order)
    body = {k: (v[order] if k in _PER_VERTEX else v) for k, v in body.items()}
    body["f"] = back[body["f"]].astype(np.uint32)
    body["J_regressor"] = body["J_regressor"][:, order]
    rng = np.random.default_rng(seed + 1)
    bend = np.tile((0.0, 0.05, 0.25), 15) + rng.normal(scale=0.05, size=45)
    return body | {"joints": joints, "hands_mean": bend, "hands_components": np.linalg.qr(rng.normal(size=(45, 45)))[0]}


_PER_VERTEX = ("v_template", "shapedirs", "posedirs", "weights")


def _tubes(
    joints: np.ndarray,
    parents: tuple[int, ...],
    leaves: dict[int, Any],
    count: int,
    segments: int,
    radius: float,
    mirror: tuple[int, ...] | None,
    seed: int,
) -> dict[str, Any]:
    """A tube of rings from every joint to its child; left and right are mirror images where `mirror` is given."""
    rings = count // (len(joints) * segments)
    points, faces, weights, regressor, symmetric = [], [], [], np.zeros((len(joints), count)), np.arange(count)
    for j, start in enumerate(joints):
        children = [i for i, parent in enumerate(parents) if parent == j]
        end = np.asarray(leaves[j]) if j in leaves else joints[children].mean(0)
        flipped = mirror is not None and mirror[j] < j  # the right side is made from the left one
        first = j * rings * segments
        if flipped:
            twin = mirror[j] * rings * segments
            points.append(np.concatenate(points)[twin : twin + rings * segments] * (-1, 1, 1))
        else:
            points.append(_tube(start, end, rings, segments, radius))
        ring = np.arange(rings * segments).reshape(rings, segments)
        a, b = ring[:-1], ring[1:]
        quads = np.stack([a, np.roll(a, -1, 1), np.roll(b, -1, 1), b], -1).reshape(-1, 4)
        triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]) + first
        faces.append(triangles[:, ::-1] if flipped else triangles)
        own = np.zeros((rings * segments, len(joints)))
        blend = 0.5 * np.clip(1 - np.repeat(np.arange(rings), segments) / (0.3 * rings), 0, 1)
        own[:, max(parents[j], 0)] += blend
        own[:, j] += 1 - blend
        weights.append(own)
        regressor[j, first : first + segments] = 1 / segments  # the first ring's middle is the joint
        if mirror is not None:
            turn = (-np.arange(segments)) % segments if mirror[j] == j else np.arange(segments)
            symmetric[first : first + rings * segments] = (ring[:, turn] + mirror[j] * rings * segments).ravel()
    spare = count - len(joints) * rings * segments
    tip = np.asarray(leaves[15 if mirror else max(leaves)])
    ends = list(leaves.values())[:spare] if mirror is None else []
    ends += [tip + np.array((0, 0.01 * (i + 1), 0)) for i in range(spare - len(ends))]
    owners = list(leaves)[: len(leaves)] if mirror is None else []
    owners += [15 if mirror else max(leaves)] * (spare - len(owners))
    v_template = np.concatenate([*points, *([np.reshape(ends, (-1, 3))] if spare else [])])
    weights_all = np.concatenate([*weights, np.eye(len(joints))[owners[:spare]].reshape(spare, len(joints))])
    rng = np.random.default_rng(seed)
    shapedirs = rng.normal(scale=0.002, size=(count, 3, 10)) + v_template[:, :, None] * rng.normal(scale=0.02, size=10)
    return {
        "v_template": v_template,
        "shapedirs": shapedirs,
        # float32, unlike the real files, to keep those of the tests small
        "posedirs": rng.normal(scale=1e-3, size=(count, 3, 9 * (len(joints) - 1))).astype(np.float32),
        "J_regressor": regressor,
        "weights": weights_all,
        "f": np.concatenate(faces).astype(np.uint32),
        "kintree_table": np.stack([np.array(parents).astype(np.uint32), np.arange(len(joints), dtype=np.uint32)]),
        "vert_sym_idxs": symmetric,
        "parents": parents,
    }


def _tube(start: np.ndarray, end: Any, rings: int, segments: int, radius: float) -> np.ndarray:
    """(rings * segments, 3) points; each ring is symmetric about x = 0 where the axis lies in that plane."""
    axis = np.asarray(end) - start
    axis = axis / np.linalg.norm(axis)
    across = np.cross(axis, (1.0, 0, 0) if abs(axis[0]) < 0.9 else (0, 1.0, 0))
    across /= np.linalg.norm(across)
    other = np.cross(axis, across)
    angle = np.arange(segments) * 2 * np.pi / segments
    ring = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * other
    along = np.linspace(0, 1, rings)[:, None, None]
    return (start + along * (np.asarray(end) - start) + radius * (1 - 0.3 * along) * ring).reshape(-1, 3)


# --- Files ---------------------------------------------------------------------------------------------------------


def write_smpl(
    folder: Path, gender: str = "neutral", name: str = "", vertices: int = 6890, seed: int = 0, **changes: Any
) -> Path:
    """Write an SMPL v1.0 file into `folder`; `changes` replace entries of the dictionary (None leaves one out).

    Args:
        name: file name; empty for the authors'. With the suffix .npz the arrays are written plainly.
    """
    letter = {"neutral": "neutral", "male": "m", "female": "f"}[gender]
    stem = "basicmodel" if gender == "male" else "basicModel"
    path = Path(folder) / (name or f"{stem}_{letter}_lbs_10_207_0_v1.0.0.pkl")
    body = smpl_arrays(vertices, seed)
    return _write_model(
        path, body, {"vert_sym_idxs": body["vert_sym_idxs"], "pose_training_info": {"gen": gender}}, changes
    )


def write_mano(folder: Path, name: str = "MANO_RIGHT.pkl", vertices: int = 778, seed: int = 0, **changes: Any) -> Path:
    """Write a MANO file into `folder`, as `write_smpl`."""
    body = mano_arrays(vertices, seed)
    extra = {key: body[key] for key in ("hands_mean", "hands_components")}
    return _write_model(Path(folder) / name, body, extra | {"hands_coeffs": np.zeros((3, 45))}, changes)


def _write_model(path: Path, body: dict[str, Any], extra: dict[str, Any], changes: dict[str, Any]) -> Path:
    plain = path.suffix == ".npz"
    values = {key: body[key] for key in ("v_template", "posedirs", "weights", "f", "kintree_table")}
    values |= {
        "shapedirs": body["shapedirs"] if plain else Ch(body["shapedirs"]),
        "J_regressor": body["J_regressor"] if plain else scipy.sparse.csc_matrix(body["J_regressor"]),
        "J": body["joints"],
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }
    values = {k: v for k, v in (values | extra | changes).items() if v is not None}
    if plain:
        np.savez(path, **{k: v for k, v in values.items() if not isinstance(v, dict)})
    else:
        path.write_bytes(python2_pickle(values))
    return path


def write_downsampling(
    path: Path, rest: np.ndarray, counts: tuple[int, ...], kind: type = scipy.sparse.csr_matrix
) -> Path:
    """Write a mesh_downsampling.npz (object arrays A, U, D of sparse matrices) for levels of `counts` vertices."""
    levels = [np.asarray(rest)]
    down, up = [], []
    for count in counts:
        fine = levels[-1]
        chosen = np.unique(np.linspace(0, len(fine) - 1, count).round().astype(int))
        assert len(chosen) == count
        coarse = fine[chosen]
        down.append(_sparse(np.arange(count)[:, None], chosen[:, None], np.ones((count, 1)), (count, len(fine)), kind))
        distance, near = scipy.spatial.cKDTree(coarse).query(fine, 3)
        weights = 1 / np.maximum(distance, 1e-9)
        weights /= weights.sum(1, keepdims=True)
        up.append(_sparse(np.arange(len(fine))[:, None].repeat(3, 1), near, weights, (len(fine), count), kind))
        levels.append(coarse)
    adjacency = [scipy.sparse.identity(len(level), format="csr") for level in levels]
    with io.BytesIO() as buffer:
        np.savez(buffer, **{name: _object_array(parts) for name, parts in (("A", adjacency), ("U", up), ("D", down))})
        path.write_bytes(buffer.getvalue())
    return path


def _sparse(rows: Any, columns: Any, values: Any, shape: tuple[int, int], kind: type) -> Any:
    return kind(scipy.sparse.coo_matrix((values.ravel(), (rows.ravel(), columns.ravel())), shape=shape))


def _object_array(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def h36m_regressor(joint_regressor: np.ndarray) -> np.ndarray:
    """(17, V) in the order of METRO's J_regressor_h36m_correct.npy, of an SMPL-like body's (24, V) regressor."""
    like = (0, 2, 5, 8, 1, 4, 7, 6, 12, 15, 15, 16, 18, 20, 17, 19, 21)
    regressor = np.asarray(joint_regressor)[list(like)].copy()
    regressor[10] = 0
    regressor[10, -1] = 1  # the crown
    return regressor


def write_metro_folder(folder: Path, seed: int = 0) -> Path:
    """Write all that METRO's data folder holds, under its names; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for gender in ("neutral", "male", "female"):
        write_smpl(folder, gender, seed=seed + ("neutral", "male", "female").index(gender))
    write_mano(folder, seed=seed)
    body = smpl_arrays(seed=seed)
    write_downsampling(folder / "mesh_downsampling.npz", body["v_template"], (1723, 431))
    write_downsampling(folder / "mano_downsampling.npz", mano_arrays(seed=seed)["v_template"], (195, 49))
    np.save(folder / "J_regressor_h36m_correct.npy", h36m_regressor(body["J_regressor"]))
    return folder


@lru_cache(maxsize=1)
def _session_folder() -> Path:
    """Not a file of any test: made once a session for those that only read."""
    import atexit
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="metro-data-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_metro_folder(folder)


def metro_folder() -> Path:
    """Return a folder as of `write_metro_folder`, made once a session; read only."""
    return _session_folder()


# --- Pickles as Python 2 wrote them --------------------------------------------------------------------------------


class Ch:
    """Stands for chumpy.ch.Ch, which wraps an array in the attribute x."""

    def __init__(self, x: Any) -> None:
        self.x = x
        self._dirty_vars = {"x"}


class Select:
    """Stands for chumpy.reordering.Select: the entries `idxs` of the flattened `a`, in shape `preferred_shape`."""

    def __init__(self, a: Any, idxs: np.ndarray, preferred_shape: tuple[int, ...] | None = None) -> None:
        self.a, self.idxs, self.preferred_shape = a, idxs, preferred_shape


_OLD_NAMES = {
    ("tests.smpl_files", "Ch"): ("chumpy.ch", "Ch"),
    ("tests.smpl_files", "Select"): ("chumpy.reordering", "Select"),
    **{
        (f"scipy.sparse._{kind}", f"{kind}_matrix"): (f"scipy.sparse.{kind}", f"{kind}_matrix")
        for kind in ("csr", "csc", "coo")
    },
    ("numpy._core.multiarray", "_reconstruct"): ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"): ("numpy.core.multiarray", "scalar"),
    ("builtins", "set"): ("__builtin__", "set"),
}


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Protocol 2 with Python 2's byte strings and module names; the C pickler offers neither."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: Any) -> None:
        data = value if isinstance(value, bytes) else value.encode("latin1")
        if len(data) < 256:
            self.write(b"U" + bytes([len(data)]) + data)
        else:
            self.write(b"T" + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[bytes] = save_string
    dispatch[str] = save_string

    def save_global(self, obj: Any, name: str | None = None) -> None:
        written = name or getattr(obj, "__qualname__", obj.__name__)
        module, written = _OLD_NAMES.get((obj.__module__, written), (obj.__module__, written))
        self.write(f"c{module}\n{written}\n".encode())
        self.memoize(obj)

    dispatch[type] = save_global
    dispatch[type(write_smpl)] = save_global
    dispatch[type(len)] = save_global


def python2_pickle(value: Any) -> bytes:
    """Return `value` as Python 2's `cPickle.dumps(value, 2)` wrote it."""
    buffer = io.BytesIO()
    _Python2Pickler(buffer, 2).dump(value)
    return buffer.getvalue()
