"""SMPL and MANO parameters of predicted meshes: which pose and shape the body model would need to give that mesh.

    fitter = SmplFitter.for_bundle(estimator.bundle, "folder/with/smpl")
    parameters = fitter.fit_bodies(estimator(frame))

smplfitter (Sárándi and Pons-Moll, "Neural Localizer Fields", NeurIPS 2024; MIT) starts the fit in closed form,
`metro_edge.smpl.refine` finishes it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.errors import UserError
from metro_edge.files import replacing
from metro_edge.smpl.files import VERTICES, find_smpl, read_smpl
from metro_edge.smpl.model import SkinnedBody
from metro_edge.smpl.refine import Pose, Skinning, refine

if TYPE_CHECKING:
    from metro_edge.body import Body
    from metro_edge.bundle import Bundle

FloatArray = NDArray[np.float32]

SHAPE_WEIGHT_MM2 = 0.1  # shrinks a beta that moves the mesh by 3 mm by one part in a hundred
START_VERTICES = 1500  # every vertex costs time, and all are needed only for the last steps
START_ROUNDS = 2
MAX_EXTENT_M = 10.0


@dataclass(frozen=True, eq=False)
class SmplParameters:
    """Parameters of N bodies: model(pose, betas) + translation gives their vertices, in the vertices' own frame.

    In the camera frame of this project (x right, y down, z away) an upright person's root is turned by about half a
    turn, since SMPL's own frame has y up.

    Attributes:
        pose: (N, 3 K) float32 axis-angle in radians, (N, 72) for SMPL and (N, 48) for MANO; the first three turn the
            whole body, about the root joint, the others a joint in its parent's frame. MANO's are offsets from its
            mean pose (`hands_mean`, `flat_hand_mean=False`), as in METRO and FreiHAND.
        betas: (N, B) float32 shape, in standard deviations.
        translation: (N, 3) float32 metres, added after posing; where the model's origin lies, not its root joint.
        error_mm: (N,) float32 mean distance between the model's vertices with these parameters and those given.
        model: `smpl` or `mano`.
        gender: of the model's file: `neutral`, `male`, `female`, or empty.
        model_sha256: of the model's file.
    """

    pose: FloatArray
    betas: FloatArray
    translation: FloatArray
    error_mm: FloatArray
    model: str
    gender: str
    model_sha256: str

    def __len__(self) -> int:
        return len(self.pose)

    def only(self, index: int) -> SmplParameters:
        """Return the parameters of body `index` alone, with N = 1."""
        rows = {name: getattr(self, name)[index][None] for name in ("pose", "betas", "translation", "error_mm")}
        return dataclasses.replace(self, **rows)

    def to_dict(self, index: int) -> dict[str, Any]:
        """Return body `index` as JSON values: `pose`, `betas`, `translation_m`, `error_mm`."""
        values = {"pose": (self.pose, 6), "betas": (self.betas, 6), "translation_m": (self.translation, 6)}
        rounded = {key: np.round(array[index].astype(np.float64), n).tolist() for key, (array, n) in values.items()}
        return {**rounded, "error_mm": round(float(self.error_mm[index]), 3)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the attributes as .npz, each under its name, atomically; raises UserError."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        with replacing(path) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)


class SmplFitter:
    """Fits an SMPL or MANO model to vertices in its own topology.

    Args:
        body: the model; needs at least two shape directions.

    Raises:
        UserError: a model without shape directions.
    """

    def __init__(self, body: SkinnedBody) -> None:
        betas = body.file.shapedirs.shape[2]
        if betas < 2:  # smplfitter has a weight of its own for the first two
            raise UserError(f"fitting needs a model with at least 2 betas, got {betas}: read_smpl(path, betas=10)")
        self.body = body
        self._start, self._chosen = _start_fitter(body)
        self._thin = Skinning(body.file, self._chosen)
        self._full = Skinning(body.file, np.arange(len(body.file.v_template)))

    @classmethod
    def for_bundle(cls, bundle: Bundle, path: str | os.PathLike[str], gender: str = "neutral") -> SmplFitter:
        """Return the fitter for what a bundle's network predicts.

        Args:
            bundle: of a network with SMPL's or MANO's mesh.
            path: an SMPL or MANO file, or a folder with them under their authors' names.
            gender: which SMPL of a folder: neutral (which METRO predicts), male or female.

        Raises:
            UserError: a bundle of another body or without meshes, a file that is missing or unreadable, or a model of
                another mesh.
            MissingExtraError: smplfitter is not installed.
        """
        template, name = bundle.template, bundle.spec.body
        kinds = [kind for kind, count in VERTICES.items() if len(template.vertices) == count]
        if not kinds:
            raise UserError(
                f"bundle {bundle.spec.name!r} predicts the body {name!r} of {len(template.vertices)} vertices, which "
                "has no SMPL or MANO parameters: use a bundle whose network was trained on SMPL (6890 vertices) or "
                "MANO (778), such as a converted release of METRO, or run without --smpl-parameters and take the mesh "
                "from the OBJ and GLB files"
            )
        if "vertices" not in bundle.spec.outputs:
            raise UserError(
                f"bundle {bundle.spec.name!r} gives joints alone ({', '.join(bundle.spec.outputs)}): SMPL and MANO "
                "parameters are fitted to meshes, so convert the network with its vertices"
            )
        place = Path(path)
        file = read_smpl(find_smpl(place, gender, kinds[0]) if place.is_dir() else place)
        if file.kind != kinds[0]:
            raise UserError(f"{place} is {file.kind.upper()}, the bundle's body {name!r} is {kinds[0].upper()}")
        if _face_set(file.faces) != _face_set(template.faces):
            raise UserError(
                f"the bundle's body {name!r} has other triangles than {place}: their vertices do not correspond"
            )
        return cls(SkinnedBody(file))

    def fit(
        self,
        vertices: ArrayLike,
        shape_weight_mm2: float = SHAPE_WEIGHT_MM2,
        share_betas: bool = False,
    ) -> SmplParameters:
        """Fit parameters to meshes.

        Minimises, per body, the mean squared vertex distance in mm^2 plus shape_weight_mm2 |betas|^2.

        Args:
            vertices: (N, V, 3) metres, in any right-handed frame; METRO's are camera axes from the root joint.
            shape_weight_mm2: >= 0. What a beta of one costs; 0 follows the mesh as far as it can, 100 keeps to the
                mean shape.
            share_betas: the N bodies are frames of one person, with one shape; its cost is counted once.

        Returns:
            Parameters with which the model gives the vertices in their own frame.

        Raises:
            UserError: vertices of another shape, not finite, or not in metres; a weight that is negative.
        """
        targets = self._checked(vertices)
        if not (math.isfinite(shape_weight_mm2) and shape_weight_mm2 >= 0):
            raise UserError(f"shape_weight_mm2 must be a number from 0 on, got {shape_weight_mm2}")
        groups = [slice(0, len(targets))] if share_betas else [slice(i, i + 1) for i in range(len(targets))]
        poses: list[Pose] = []
        betas = np.zeros((len(targets), self.body.file.shapedirs.shape[2]))
        for group in groups if len(targets) else ():
            # centred, so that a far-away body loses no digits
            centres = targets[group].mean(axis=1, keepdims=True)
            centred = targets[group] - centres
            started, shape = self._started(centred, shape_weight_mm2, share_betas)
            thin = list(centred[:, self._chosen])
            started, shape = refine(self._thin, thin, started, shape, shape_weight_mm2)
            refined, betas[group] = refine(self._full, list(centred), started, shape, shape_weight_mm2)
            poses += [
                Pose(pose.rotations, pose.translation + centre[0])
                for pose, centre in zip(refined, centres, strict=True)
            ]
        return self._parameters(targets, poses, betas)

    def fit_bodies(
        self, bodies: Sequence[Body], shape_weight_mm2: float = SHAPE_WEIGHT_MM2, share_betas: bool = False
    ) -> SmplParameters:
        """Fit parameters to an estimator's bodies, as `fit`; the translations put them into the camera frame.

        So model(pose, betas) + translation is `body.vertices + body.translation`: depth is as good as the focal length.
        """
        count = len(self.body.file.v_template)
        sizes = {len(body.vertices) for body in bodies} - {count}
        if sizes:
            raise UserError(f"{self.body.file.kind.upper()} has {count} vertices, the bodies have {min(sizes)}")
        stacked = np.stack([body.vertices for body in bodies]) if bodies else np.empty((0, count, 3), np.float32)
        result = self.fit(stacked, shape_weight_mm2, share_betas)
        if not bodies:
            return result
        placed = result.translation + np.stack([body.translation for body in bodies])
        return dataclasses.replace(result, translation=placed.astype(np.float32))

    def _checked(self, vertices: ArrayLike) -> NDArray[np.float64]:
        try:
            targets = np.asarray(vertices, np.float64)
        except (TypeError, ValueError):
            raise UserError("vertices must be an array (N, V, 3) of numbers, metres") from None
        count = len(self.body.file.v_template)
        if targets.ndim != 3 or targets.shape[1:] != (count, 3):
            raise UserError(
                f"{self.body.file.kind.upper()} parameters are fitted to vertices (N, {count}, 3), got {targets.shape}"
            )
        if not np.isfinite(targets).all():
            body = int((~np.isfinite(targets)).any(axis=(1, 2)).argmax())
            raise UserError(f"the vertices of body {body} have NaN or infinity")
        extent = float(np.ptp(targets, axis=1).max(initial=0))
        if extent > MAX_EXTENT_M:
            raise UserError(f"a body spans {extent:.0f} m: vertices must be in metres, these look like millimetres")
        return targets

    def _started(
        self, targets: NDArray[np.float64], shape_weight_mm2: float, share_betas: bool
    ) -> tuple[list[Pose], NDArray[np.float64]]:
        """Return smplfitter's poses (a hand's with the mean included) and the betas (B,)."""
        weight = shape_weight_mm2 * 1e-6 * len(self._chosen)  # its objective is a sum over vertices, in m^2
        found = self._start.fit(
            targets[:, self._chosen],
            target_joints=self.body.file.joint_regressor @ targets,
            num_iter=START_ROUNDS,
            beta_regularizer=weight + 1e-6,
            beta_regularizer2=weight + 1e-6,
            share_beta=share_betas,
            requested_keys=["relative_orientations"],
        )
        rotations, translations = found["relative_orientations"], found["trans"]
        poses = [
            Pose(np.asarray(r, np.float64), np.asarray(t, np.float64))
            for r, t in zip(rotations, translations, strict=True)
        ]
        return poses, np.asarray(found["shape_betas"][0], np.float64)

    def _parameters(
        self, targets: NDArray[np.float64], poses: Sequence[Pose], betas: NDArray[np.float64]
    ) -> SmplParameters:
        file = self.body.file
        vectors = [[cv2.Rodrigues(rotation)[0].ravel() for rotation in pose.rotations] for pose in poses]
        pose = np.reshape(vectors, (len(poses), 3 * len(file.parents)))
        if file.hands_mean is not None:
            pose[:, 3:] -= file.hands_mean
        translation = np.reshape([p.translation for p in poses], (len(poses), 3)).astype(np.float32)
        pose32, betas32 = pose.astype(np.float32), betas.astype(np.float32)
        # by the model that users would pose with these numbers, not by the one that fitted them
        again = self.body.vertices(pose32, betas32) + translation[:, None]
        error = 1000 * np.linalg.norm(again - targets, axis=2).mean(axis=1)
        return SmplParameters(
            pose32, betas32, translation, error.astype(np.float32), file.kind, file.gender, file.sha256
        )


def _start_fitter(body: SkinnedBody) -> tuple[Any, NDArray[np.intp]]:
    """Return smplfitter's fitter on evenly picked vertices, and which those are.

    Joints to fit to are regressed from all vertices; the fitter regresses none itself.
    """
    import smplfitter.np

    count = body.model.num_vertices
    chosen = np.arange(0, count, max(1, count // START_VERTICES))
    thin = copy.copy(body.model)
    for name in ("v_template", "shapedirs", "posedirs", "weights", "kid_shapedir", "vertex_subset"):
        setattr(thin, name, getattr(thin, name)[chosen])
    thin.J_regressor_post_lbs = thin.J_regressor_post_lbs[:, chosen]
    thin.num_vertices = len(chosen)
    return smplfitter.np.BodyFitter(thin), chosen


def _face_set(faces: NDArray[np.integer]) -> set[tuple[int, ...]]:
    return {tuple(face) for face in np.sort(faces, axis=1).tolist()}
