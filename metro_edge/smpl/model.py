"""Forward skinning of SMPL and MANO, through smplfitter's NumPy body model (MIT)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import MissingExtraError, UserError
from metro_edge.smpl.files import SmplFile

FloatArray = NDArray[np.float32]

CHUNK = 64  # bodies at a time: 6,890 vertices of 64 bodies take some 5 MB each time they are written


class SkinnedBody:
    """A body or hand that takes poses and shapes.

    Frame: the model's own (SMPL: x to the body's left, y up, z forwards), metres; with a pose whose first three
    numbers turn the body into the camera, as METRO's data have it, the camera's axes.

    Args:
        file: what `read_smpl` returned.

    Attributes:
        file: the same.
        model: smplfitter's `np.BodyModel`, whose pose of a hand includes `hands_mean`.

    Raises:
        MissingExtraError: smplfitter is not installed.
    """

    def __init__(self, file: SmplFile) -> None:
        self.file = file
        self.model = _body_model(file)

    @property
    def pose_size(self) -> int:
        """Numbers of a pose: three per joint."""
        return 3 * len(self.file.parents)

    def vertices(self, pose: NDArray[np.floating], betas: NDArray[np.floating]) -> FloatArray:
        """Pose bodies.

        Args:
            pose: (N, 3 K) or (N, K, 3) axis-angle in radians, each joint in its parent's frame, the root first. To
                a hand's pose MANO's mean is added, as METRO's layer does, so that zeros are a relaxed hand.
            betas: (N, B) shape; fewer than the model's are filled with zeros.

        Returns:
            (N, V, 3) float32 metres.

        Raises:
            UserError: arrays of other shapes.
        """
        return self._run(pose, betas, "vertices", len(self.file.v_template))

    def joints(self, pose: NDArray[np.floating], betas: NDArray[np.floating]) -> FloatArray:
        """Return the (N, K, 3) float32 rotation centres, metres; arguments and errors as of `vertices`."""
        return self._run(pose, betas, "joints", len(self.file.parents))

    def _run(self, pose: Any, betas: Any, what: str, rows: int) -> FloatArray:
        pose, betas = self._checked(pose, betas)
        result = np.empty((len(pose), rows, 3), np.float32)
        for start in range(0, len(pose), CHUNK):
            part = slice(start, start + CHUNK)
            output = self.model(pose[part], betas[part], return_vertices=what == "vertices")
            result[part] = output[what]
        return result

    def _checked(self, pose: Any, betas: Any) -> tuple[FloatArray, FloatArray]:
        pose, betas = np.asarray(pose, np.float32), np.asarray(betas, np.float32)
        if pose.ndim == 3 and pose.shape[1:] == (self.pose_size // 3, 3):
            pose = pose.reshape(len(pose), self.pose_size)
        if pose.ndim != 2 or pose.shape[1] != self.pose_size:
            raise UserError(f"a pose of {self.file.kind.upper()} is (N, {self.pose_size}), got {pose.shape}")
        limit = self.file.shapedirs.shape[2]
        if betas.ndim != 2 or len(betas) != len(pose) or betas.shape[1] > limit:
            raise UserError(f"betas for {len(pose)} poses are ({len(pose)}, up to {limit}), got {betas.shape}")
        if self.file.hands_mean is not None:
            pose = pose + np.concatenate([np.zeros(3, np.float32), self.file.hands_mean])
        return pose, betas


def _body_model(file: SmplFile) -> Any:
    """Return smplfitter's model of `file`.

    It reads files by itself, SMPL's and MANO's with a bare unpickler, but SMPL+H's from a plain .npz, whose sizes it
    takes from the arrays: so it is given our arrays as one of those.
    """
    try:
        import smplfitter.np
        from smplfitter.common import MANO_JOINT_NAMES, SMPL_JOINT_NAMES
    except ImportError:
        raise MissingExtraError("smplfitter", "smpl", "pose SMPL and MANO bodies") from None
    parents = np.array(file.parents, np.int64)
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(Path(folder) / "neutral")
        np.savez(
            Path(folder) / "neutral" / "model.npz",
            v_template=file.v_template,
            shapedirs=file.shapedirs,
            posedirs=file.posedirs,
            J_regressor=file.joint_regressor,
            weights=file.weights,
            f=file.faces,
            kintree_table=np.stack([parents, np.arange(len(parents))]),
        )
        np.save(Path(folder) / "kid_template.npy", np.zeros_like(file.v_template))  # all zeros: there is none
        model = smplfitter.np.BodyModel("smplh16", "neutral", model_root=folder)
    model.model_name, model.gender = file.kind, file.gender or "neutral"
    model.joint_names = SMPL_JOINT_NAMES if file.kind == "smpl" else MANO_JOINT_NAMES
    return model
