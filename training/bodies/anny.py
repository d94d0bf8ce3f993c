"""The Anny body (NAVER, Apache-2.0; MakeHuman assets, CC0) as METRO's template.

`build_anny_template` makes everything from the `anny` package; `load_anny_template` reads the asset it saved:

    python -m training body --output training/bodies/anny.npz
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metro_edge.errors import MissingExtraError
from metro_edge.joints import COCO17, H36M14, JointSet
from metro_edge.template import BodyTemplate, SparseMatrix
from training.bodies.fit import (
    fit_regressor,
    fit_upsampling,
    mirror_permutation,
    mirrored_regressor,
    nearest,
    symmetric_subset,
)

FloatArray = NDArray[np.float32]

ASSET = Path(__file__).parent / "anny.npz"
LICENCE = "Anny 0.6 by NAVER Corp. (Apache-2.0), mesh and shapes from MakeHuman (CC0)"
COARSE_COUNT = 146  # with the 14 joints: 160 tokens
MIDDLE_TOPOLOGY = "notoes_collapse10pc"
COARSE_NEIGHBOURS = 12
FINE_NEIGHBOURS = 8
COCO_SUPPORT = 64

# Rotation centres of the rig that the h36m14 joints stand for; the crown is the top of the head's mesh.
H36M14_BONES = {
    "ankle": "foot.", "knee": "lowerleg01.", "hip": "upperleg01.",
    "wrist": "wrist.", "elbow": "lowerarm01.", "shoulder": "upperarm01.",
}  # fmt: skip
NECK_BONE = "neck01"

# Standard deviations of random rotations, radians, for the population that levels and regressors are fitted to.
ROTATION_STD = {
    "upperleg01": 0.6, "lowerleg01": 0.6, "upperarm01": 0.6, "lowerarm01": 0.6,
    "wrist": 0.3, "foot": 0.25, "neck": 0.2, "head": 0.25, "clavicle": 0.2, "shoulder01": 0.2,
    "finger": 0.25, "toe": 0.15, "spine": 0.15, "root": 0.0, "eye": 0.0,
}  # fmt: skip
OTHER_ROTATION_STD = 0.1


@lru_cache(maxsize=1)
def anny_model() -> Any:
    """Return the Anny model in float32; raises MissingExtraError where `anny` is not installed."""
    try:
        import warp  # Anny's skinning; it greets on standard output, which belongs to our tables

        warp.config.log_level = 40  # errors; by number, since older versions lack the name and ignore the setting
        import anny
    except ImportError:
        raise MissingExtraError("anny", "train", "make bodies") from None
    return anny.Anny().to(torch.float32).eval()


def camera_frame(points: FloatArray) -> FloatArray:
    """Turn Anny's frame (x left of the body, y back, z up) into a camera's (x right, y down, z away).

    A body in Anny's rest pose then stands upright and faces the camera.
    """
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


@torch.inference_mode()
def random_population(count: int, seed: int) -> dict[str, FloatArray]:
    """Pose `count` random bodies over the whole phenotype range.

    Returns: `vertices` (N, V, 3), `bones` (N, B, 3) heads of the bones; metres, camera frame.
    """
    model = anny_model()
    generator = torch.Generator().manual_seed(seed)
    std = torch.tensor(
        [
            next((v for key, v in ROTATION_STD.items() if label.startswith(key)), OTHER_ROTATION_STD)
            for label in model.bone_labels
        ]
    )
    vertices, bones = [], []
    for start in range(0, count, 32):
        size = min(32, count - start)
        rotation = torch.randn(size, len(std), 3, generator=generator) * std[:, None]
        pose = torch.eye(4).repeat(size, len(std), 1, 1)
        pose[:, :, :3, :3] = torch.matrix_exp(_cross_matrices(rotation))
        shape = {key: torch.rand(size, generator=generator) for key in model.phenotype_labels}
        output = model(pose_parameters=pose, phenotype_kwargs=shape)
        vertices.append(camera_frame(output["vertices"].numpy()))
        bones.append(camera_frame(output["bone_poses"][:, :, :3, 3].numpy()))
    return {"vertices": np.concatenate(vertices), "bones": np.concatenate(bones)}


def _cross_matrices(vectors: torch.Tensor) -> torch.Tensor:
    """Skew-symmetric matrices (..., 3, 3) whose exponentials are the rotations of (..., 3) rotation vectors."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def h36m14_targets(population: dict[str, FloatArray], crown: NDArray[np.int64]) -> FloatArray:
    """Return the (N, 14, 3) joints that the h36m14 regressor is fitted to."""
    labels = anny_model().bone_labels
    joints = []
    for name in H36M14.names:
        side, _, part = name.partition("_")
        if part in H36M14_BONES:
            joints.append(population["bones"][:, labels.index(H36M14_BONES[part] + side[0].upper())])
        elif name == "neck":
            joints.append(population["bones"][:, labels.index(NECK_BONE)])
        else:
            joints.append(population["vertices"][:, crown].mean(1))
    return np.stack(joints, 1)


def coco17_regressor(joints: JointSet = COCO17) -> tuple[SparseMatrix, FloatArray]:
    """Return Anny's own COCO weights, cut to the largest, and the (17, V) weights they come from."""
    import anny

    weights = anny.KeypointsRegressor.coco(anny_model(), list(joints.names)).regression_weights.numpy()
    indices = np.argsort(-weights, axis=1)[:, :COCO_SUPPORT]
    kept = np.take_along_axis(weights, indices, 1)
    kept /= kept.sum(1, keepdims=True)
    return SparseMatrix(indices.astype(np.int32), kept.astype(np.float32)), weights.astype(np.float32)


def middle_level(rest: FloatArray, mirror: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Map Anny's 1,229-vertex topology onto vertices of the full mesh; returns vertices and faces.

    That topology is a decimation whose vertices lie a few millimetres off the full mesh: each is moved to its
    nearest full vertex, faces that collapse are dropped.
    """
    import anny

    reduced = anny.Anny(topology=MIDDLE_TOPOLOGY).to(torch.float32)
    _, index = nearest(rest, camera_frame(reduced.template_vertices.numpy()))
    vertices, faces = np.unique(index[:, 0], return_inverse=True)
    triangles = faces[reduced.get_triangular_faces().numpy()]
    distinct = (triangles != np.roll(triangles, 1, axis=1)).all(1)
    return vertices, triangles[distinct]


def build_anny_template(count: int = 640, seed: int = 7) -> tuple[BodyTemplate, dict[str, float]]:
    """Make the template and report how well its fitted parts do on bodies they were not fitted to.

    Returns: the template; mean errors in mm of each fit on `count` // 4 other bodies.
    """
    model = anny_model()
    rest = camera_frame(model().get("vertices")[0].numpy())
    symmetric = camera_frame(model.template_vertices.numpy())
    mirror = mirror_permutation(symmetric)
    fitted, held_out = random_population(count, seed), random_population(count // 4, seed + 1)
    crown = np.argsort(symmetric[:, 1])[:8]
    rest_bones = {"vertices": rest[None], "bones": camera_frame(model()["bone_poses"][:, :, :3, 3].numpy())}

    targets = h36m14_targets(fitted, crown)
    h36m14 = fit_regressor(fitted["vertices"], targets, rest, h36m14_targets(rest_bones, crown)[0])
    h36m14 = mirrored_regressor(h36m14, mirror, H36M14.mirror)
    coco17, coco_weights = coco17_regressor()

    full = np.arange(len(rest))
    middle, middle_faces = middle_level(symmetric, mirror)
    both_sides = middle[np.isin(mirror[middle], middle)]
    centred = fitted["vertices"] - (h36m14 @ fitted["vertices"])[:, list(H36M14.root_indices)].mean(1, keepdims=True)
    coarse = symmetric_subset(centred[::4], both_sides, mirror, COARSE_COUNT)
    middle_up = fit_upsampling(centred, coarse, middle, COARSE_NEIGHBOURS)
    full_up = fit_upsampling(centred, middle, full, FINE_NEIGHBOURS)
    template = BodyTemplate(
        name="anny",
        vertices=(rest - (h36m14 @ rest)[list(H36M14.root_indices)].mean(0)).astype(np.float32),
        faces=model.get_triangular_faces().numpy().astype(np.int32),
        level_vertices=tuple(level.astype(np.int32) for level in (coarse, middle, full)),
        level_faces=(
            np.zeros((0, 3), np.int32),
            middle_faces.astype(np.int32),
            model.get_triangular_faces().numpy(),
        ),
        upsampling=(middle_up, full_up),
        regressors={"h36m14": h36m14, "coco17": coco17},
        licence=LICENCE,
    )
    return template, _fit_errors(template, held_out, crown, coco_weights)


def _fit_errors(
    template: BodyTemplate, held_out: dict[str, FloatArray], crown: NDArray[np.int64], coco: FloatArray
) -> dict[str, float]:
    vertices = held_out["vertices"] - template.root("h36m14", held_out["vertices"])[:, None]
    coarse, middle, _ = (vertices[:, level] for level in template.level_vertices)

    def error(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
        return float(np.linalg.norm(predicted - truth, axis=-1).mean() * 1e3)

    joints = template.joints("h36m14", held_out["vertices"])
    return {
        "h36m14 regressor against the rig": error(joints, h36m14_targets(held_out, crown)),
        "coco17 regressor against Anny's": error(template.joints("coco17", vertices), coco @ vertices),
        "coarse to middle": error(template.upsampling[0] @ coarse, middle),
        "middle to full": error(template.upsampling[1] @ middle, vertices),
        "coarse to full": error(template.upsampling[1] @ (template.upsampling[0] @ coarse), vertices),
    }


def load_anny_template() -> BodyTemplate:
    """Return the committed template: 13,718 vertices, 1,227 and 146 on the coarser levels."""
    return BodyTemplate.load(ASSET)
