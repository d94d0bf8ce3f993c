"""SMPL and MANO as METRO's templates, from the user's files.

    template = template_from_folder("smpl", "metro/modeling/data")

Sources: `METRO_Body_Network.forward` and `METRO_Hand_Network.forward` of microsoft/MeshTransformer for what the
released networks are given, its `_smpl.py`, `_mano.py` and `data/config.py` for the joints.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.joints import FREIHAND21, H36M14, H36M17
from metro_edge.smpl.files import (
    Downsampling,
    SmplFile,
    find_file,
    find_smpl,
    read_downsampling,
    read_h36m_regressor,
    read_smpl,
    sparse_rows,
)
from metro_edge.smpl.model import SkinnedBody
from metro_edge.template import BodyTemplate, SparseMatrix

FloatArray = NDArray[np.float32]

SMPL_LEVELS = (6890, 1723, 431)
MANO_LEVELS = (778, 195)
SMPL_DOWNSAMPLING, MANO_DOWNSAMPLING = "mesh_downsampling.npz", "mano_downsampling.npz"
H36M_REGRESSOR = "J_regressor_h36m_correct.npy"
LICENCES = {
    "smpl": "SMPL, Max-Planck-Gesellschaft: not to be passed on (https://smpl.is.tue.mpg.de); levels from METRO (MIT)",
    "mano": "MANO, Max-Planck-Gesellschaft: not to be passed on (https://mano.is.tue.mpg.de); levels from METRO (MIT)",
}

# Rows of METRO's Human3.6M regressor, in the order of h36m14. SPIN's regressor has another order.
H36M17_TO_14 = tuple(H36M17.index(name) for name in H36M14.names)
# MANO's joints are the wrist, then three of index, middle, little, ring and thumb; five finger tips follow as 16-20.
_MANO_FINGERS = {"thumb": (13, 16), "index": (1, 17), "middle": (4, 18), "ring": (10, 19), "little": (7, 20)}
MANO_TO_FREIHAND = (0, *(i for first, tip in _MANO_FINGERS.values() for i in (first, first + 1, first + 2, tip)))
# Vertices of the finger tips, thumb first. METRO's template has 444 for the middle finger (as manopth), its regressor
# 445: the two are neighbours, and a released network wants each where it was trained with it.
MANO_TEMPLATE_TIPS = (745, 317, 444, 556, 673)
MANO_REGRESSOR_TIPS = (745, 317, 445, 556, 673)


def smpl_template(model: SmplFile, levels: Downsampling, regressor: FloatArray) -> BodyTemplate:
    """Make METRO's body template.

    SMPL's mean shape at rest, turned by pi about x (y down, facing the camera) and centred on the pelvis of METRO's
    Human3.6M regressor, which lies near, not in, the middle of the hips.

    Args:
        model: SMPL; METRO uses the neutral one.
        levels: 6890, 1723 and 431 vertices.
        regressor: (17, 6890), what `read_h36m_regressor` returned.

    Returns:
        the template `smpl`, with regressors `h36m14` and `h36m17`.

    Raises:
        UserError: another model or other levels.
    """
    _check(model, "smpl", levels, SMPL_LEVELS)
    pelvis = regressor[H36M17.index("pelvis")].astype(np.float64) @ model.v_template
    vertices = (model.v_template - pelvis) * np.array([1, -1, -1])
    return _template(
        model,
        levels,
        vertices.astype(np.float32),
        {"h36m14": _sparse(regressor[list(H36M17_TO_14)]), "h36m17": _sparse(regressor)},
    )


def mano_template(model: SmplFile, levels: Downsampling) -> BodyTemplate:
    """Make METRO's hand template.

    A right hand of MANO's mean shape in its mean pose (the released layer adds `hands_mean` to zeros), in MANO's own
    axes, centred on the wrist. Its joints, as the network is given them, are the rotation centres and the finger
    tips (`rest_joints`); the regressor, for scoring meshes, is METRO's.

    Raises:
        UserError: another model or other levels.
        MissingExtraError: smplfitter, which poses it, is not installed.
    """
    _check(model, "mano", levels, MANO_LEVELS)
    body = SkinnedBody(model)
    zeros = np.zeros((1, body.pose_size), np.float32), np.zeros((1, model.shapedirs.shape[2]), np.float32)
    vertices, joints = body.vertices(*zeros)[0], body.joints(*zeros)[0]
    rest = np.concatenate([joints, vertices[list(MANO_TEMPLATE_TIPS)]])[list(MANO_TO_FREIHAND)] - joints[0]
    tips = np.eye(len(vertices), dtype=np.float32)[list(MANO_REGRESSOR_TIPS)]
    regressor = np.concatenate([model.joint_regressor, tips])[list(MANO_TO_FREIHAND)]
    return _template(
        model, levels, vertices - joints[0], {FREIHAND21.name: _sparse(regressor)}, {FREIHAND21.name: rest}
    )


def template_from_folder(name: str, folder: str | Path, gender: str = "neutral") -> BodyTemplate:
    """Make the template `smpl` or `mano` from a folder with the files of METRO's `metro/modeling/data`.

    SMPL: the model (`basicModel_neutral_lbs_10_207_0_v1.0.0.pkl` or another of its names), mesh_downsampling.npz and
    J_regressor_h36m_correct.npy. MANO: MANO_RIGHT.pkl and mano_downsampling.npz.

    Raises:
        UserError: another body, or a file that is missing or wrong.
    """
    if name == "smpl":
        return smpl_template(
            read_smpl(find_smpl(folder, gender)),
            read_downsampling(find_file(folder, SMPL_DOWNSAMPLING), SMPL_LEVELS),
            read_h36m_regressor(find_file(folder, H36M_REGRESSOR)),
        )
    if name == "mano":
        levels = read_downsampling(find_file(folder, MANO_DOWNSAMPLING), MANO_LEVELS)
        return mano_template(read_smpl(find_smpl(folder, kind="mano")), levels)
    raise UserError(f"{folder} is a folder: smpl and mano are made from one, {name!r} is read from a template file")


def skinned_body(path: str | Path, gender: str = "neutral", kind: str = "smpl") -> SkinnedBody:
    """Open the model that makes meshes of poses.

    Args:
        path: the folder with the model files, or one file, which stands for `neutral`.
        gender: which SMPL of the folder.
        kind: `smpl` or `mano`.

    Raises:
        UserError: a missing or wrong file, or one file where a gender is asked for.
        MissingExtraError: smplfitter is not installed.
    """
    if Path(path).is_file():
        if gender != "neutral":
            raise UserError(f"{path} is one file: gendered bodies need the folder with SMPL's male and female models")
        return SkinnedBody(read_smpl(path))
    return SkinnedBody(read_smpl(find_smpl(path, gender, kind)))


def _check(model: SmplFile, kind: str, levels: Downsampling, sizes: tuple[int, ...]) -> None:
    if model.kind != kind:
        raise UserError(f"the template {kind!r} is made of a {kind.upper()} model; this is {model.kind.upper()}")
    if levels.sizes != sizes:
        raise UserError(f"METRO's levels of {kind.upper()} are {list(sizes)} vertices; these are {list(levels.sizes)}")


def _sparse(matrix: FloatArray) -> SparseMatrix:
    rows, columns = np.nonzero(matrix)
    return sparse_rows(rows, columns, matrix[rows, columns], len(matrix))


def _template(
    model: SmplFile,
    levels: Downsampling,
    vertices: FloatArray,
    regressors: dict[str, SparseMatrix],
    rest_joints: dict[str, FloatArray] | None = None,
) -> BodyTemplate:
    chosen = [np.arange(len(vertices), dtype=np.int32)]
    for step in levels.down:
        chosen.append(chosen[-1][step])
    empty = np.zeros((0, 3), np.int32)  # the files hold which vertices are joined, not the triangles between them
    return BodyTemplate(
        name=model.kind,
        vertices=vertices,
        faces=model.faces,
        level_vertices=tuple(reversed(chosen)),
        level_faces=(*(empty for _ in levels.down), model.faces),
        upsampling=tuple(reversed(levels.up)),
        regressors=regressors,
        licence=LICENCES[model.kind],
        rest_joints=rest_joints or {},
    )


def upsampling_errors(template: BodyTemplate) -> dict[str, float]:
    """Return how far, in mm on average, each level of the rest mesh made from the coarser one lies from itself."""
    errors = {}
    for i, step in enumerate(template.upsampling):
        coarse, fine = (template.vertices[template.level_vertices[level]] for level in (i, i + 1))
        distance = np.linalg.norm(step @ coarse - fine, axis=-1).mean()
        errors[f"{len(coarse)} to {len(fine)} vertices at rest"] = float(distance * 1e3)
    return errors
