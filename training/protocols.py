"""Evaluation protocols: every choice that moves a published number, as data, printed beside the numbers.

Sources: section 4.2 of METRO (CVPR 2021), its released code (metro/tools/run_metro_bodymesh.py,
metro/utils/metric_pampjpe.py, metro/tools/run_metro_handmesh.py) and FreiHAND's official evaluation
(lmb-freiburg/freihand, eval.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.joints import joint_set
from metro_edge.metrics import f_score, mpjpe, mpvpe, pa_mpjpe, pa_mpvpe, procrustes
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate

Errors = NDArray[np.float64]
CROP_RULE_WORDS = {
    "box_area": "up to 4 x 4 bilinear taps a pixel, mean colour outside",
    "box_bilinear": "one bilinear tap a pixel, mean colour outside",
    "metro_eval": "METRO's own: corners cut to whole pixels, one bilinear tap a pixel, black outside",
    "metro_demo": "METRO's demonstration: resized with antialiasing, black outside",
}
TITLES = {
    "mpjpe": "MPJPE mm",
    "pa_mpjpe": "PA-MPJPE mm",
    "mpvpe": "MPVPE mm",
    "pa_mpvpe": "PA-MPVPE mm",
    "f_5mm": "F@5 mm",
    "f_15mm": "F@15 mm",
}
SIMILARITY = "per sample by a similarity (Procrustes: rotation, scale, translation; no reflection)"
NO_MESHES = "the data set has no true meshes"
PLACEHOLDERS = (
    "the labels of METRO's FreiHAND test set are placeholders: hand in the submission file, or evaluate on FreiHAND's "
    "own evaluation folder with evaluation_xyz.json and evaluation_verts.json"
)
SQUARE_OF_LABELS = "square of 200 px x scale about center, both of METRO's labels"
MIDDLE_OF_HIPS = "middle of the hips (mean of joints 2 and 3), for joints"


@dataclass(frozen=True)
class Protocol:
    """What is compared with what, and how.

    Attributes:
        name: on the command line.
        data: which pictures, with subset and stride.
        body: of the networks that it is for; empty for any.
        joint_set: of the compared joints.
        joints: where true and predicted joints come from, in words.
        root: what is moved to the origin before MPJPE and MPVPE, in words.
        mesh_root: joint set whose root the meshes are centred on for MPVPE; METRO takes its own regressor's pelvis.
        alignment: of the PA errors.
        gender: of the true bodies.
        square: which part of the picture the network sees; how that is resampled is the crop rule's.
        metrics: keys of TITLES, in the table's order.
        undefined: metric -> why it has no value here.
        truth_joints: `labels` of the data set, or regressed from the true `mesh`.
        count: pictures of the whole set, 0 where it is as large as one likes.
        published: METRO's row in mm, as metrics; empty where there is none.
        note: what else must be known to compare numbers.
    """

    name: str
    data: str
    body: str
    joint_set: str
    joints: str
    root: str
    metrics: tuple[str, ...] = ("mpjpe", "pa_mpjpe", "mpvpe")
    undefined: dict[str, str] = field(default_factory=dict)
    mesh_root: str = ""
    alignment: str = SIMILARITY
    gender: str = "none"
    square: str = SQUARE_OF_LABELS
    truth_joints: str = "labels"
    count: int = 0
    published: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def lines(self) -> list[str]:
        """Return the protocol as lines `what: choice`, for people."""
        choices = {
            "protocol": self.name,
            "pictures": self.data,
            "joints": self.joints,
            "root": self.root,
            "alignment": f"PA errors {self.alignment}",
            "gender of the true bodies": self.gender,
            "crop": self.square,
            "means": "over samples, each with the same weight, in one process, the last part of a batch included",
            **{f"{TITLES[name].removesuffix(' mm')} undefined": why for name, why in self.undefined.items()},
            "METRO's published": ", ".join(f"{TITLES[k]} {v}" for k, v in self.published.items()) or "none",
            "note": self.note,
        }
        return [f"{what}: {choice}" for what, choice in choices.items() if choice]

    def check(self, spec: ModelSpec) -> None:
        """Raise UserError for a network of another body or joint set."""
        if spec.joint_set != self.joint_set or (self.body and spec.body != self.body):
            raise UserError(
                f"protocol {self.name} is for {self.body or 'any body'} with joints {self.joint_set}; network "
                f"{spec.name!r} has the body {spec.body!r} with joints {spec.joint_set}"
            )

    def errors(self, predicted: NDArray[np.floating], truth: Truth, template: BodyTemplate) -> dict[str, Errors]:
        """Return per metric the errors of its labelled samples: metres, F-scores in [0, 1]; undefined ones are empty.

        Args:
            predicted: meshes (N, V, 3) metres.
            truth: of the same N samples.
            template: of the body, with its regressors.
        """
        joints = np.asarray(template.joints(self.joint_set, predicted), np.float64)
        true_joints, has_joints = truth.joints, truth.has_joints
        if self.truth_joints == "mesh":
            true_joints, has_joints = template.joints(self.joint_set, truth.vertices), truth.has_vertices
        ours, theirs = (np.asarray(v[truth.has_vertices], np.float64) for v in (np.asarray(predicted), truth.vertices))
        found: dict[str, Errors] = {}
        for name in self.metrics:
            if name in self.undefined:
                found[name] = np.empty(0)
            elif name == "mpjpe":
                found[name] = mpjpe(joints, true_joints, joint_set(self.joint_set), has_joints)
            elif name == "pa_mpjpe":
                found[name] = pa_mpjpe(joints, true_joints, has_joints)
            elif name == "mpvpe":
                root = self.mesh_root or self.joint_set
                found[name] = mpvpe(*(v - template.root(root, v)[:, None] for v in (ours, theirs)))
            elif name == "pa_mpvpe":
                found[name] = pa_mpvpe(ours, theirs)
            else:
                found[name] = f_score(procrustes(ours, theirs), theirs, float(name[2:-2]) / 1000.0)
        return found


@dataclass(frozen=True)
class Truth:
    """Labels of N samples: joints (N, J, 3) and vertices (N, V, 3) in metres, has_* (N,) bool."""

    joints: NDArray[np.floating]
    has_joints: NDArray[np.bool_]
    vertices: NDArray[np.floating]
    has_vertices: NDArray[np.bool_]

    @classmethod
    def of_batch(cls, batch: dict[str, Any]) -> Truth:
        """Take the labels of a batch of items; a sample's joints count only if all of them are labelled."""
        has = {name: batch[f"has_{name}"].numpy() > 0 for name in ("joints", "vertices")}
        known = (batch["joints_confidence"].numpy() > 0).all(axis=1)
        return cls(batch["joints"].numpy(), has["joints"] & known, batch["vertices"].numpy(), has["vertices"])


_SMPL_JOINTS = "14 joints (h36m14), predicted ones regressed from the full mesh by METRO's Human3.6M regressor"
_SMPL_ROOT = f"{MIDDLE_OF_HIPS}; pelvis of METRO's Human3.6M regressor, for meshes"
_3DPW_SQUARE = f"{SQUARE_OF_LABELS}; of 3DPW's own files as METRO's, 1.44 times the SMPL joints' extent in the picture"
_FREIHAND = ("pa_mpjpe", "pa_mpvpe", "f_5mm", "f_15mm")

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="generated",
            data="generated people of one seed, frames of 320 x 320 px",
            body="anny",
            joint_set="h36m14",
            joints="14 joints (h36m14) regressed from the predicted and the true full mesh by the body's regressor",
            root="middle of the hips (mean of joints 2 and 3), for joints and meshes",
            gender="Anny's, continuous",
            square="square about the true box, its longer side times the network's box_scale",
            truth_joints="mesh",
        ),
        Protocol(
            name="human36m-p2",
            data="Human3.6M protocol 2: subjects 9 and 11, every 5th frame of camera 60457274",
            body="smpl",
            joint_set="h36m14",
            joints=f"{_SMPL_JOINTS}; true ones are the motion capture's",
            root=MIDDLE_OF_HIPS,
            undefined={"mpvpe": NO_MESHES},
            square=f"{SQUARE_OF_LABELS} or of the .npz; of videos 1.2 times the extent of the projected joints",
            count=27_558,
            published={"mpjpe": 54.0, "pa_mpjpe": 36.7},
            note="pseudo meshes that a test file may hold are not scored; SPIN's regressor has another joint order",
        ),
        Protocol(
            name="3dpw-neutral",
            data="3DPW test split, every frame of every person whose camera pose is valid",
            body="smpl",
            joint_set="h36m14",
            joints=f"{_SMPL_JOINTS}; true ones of the labels, which are regressed from the neutral body's mesh",
            root=_SMPL_ROOT,
            mesh_root="h36m17",
            gender="neutral SMPL for everybody, as METRO",
            square=_3DPW_SQUARE,
            count=35_515,
            published={"mpjpe": 77.1, "pa_mpjpe": 47.9, "mpvpe": 88.2},
            note="not comparable with gendered ground truth, nor with the 24-joint scores of the 3DPW challenge",
        ),
        Protocol(
            name="3dpw-gendered",
            data="3DPW test split, every frame of every person whose camera pose is valid",
            body="smpl",
            joint_set="h36m14",
            joints=f"{_SMPL_JOINTS}; true ones regressed from the mesh of the person's own gender",
            root=_SMPL_ROOT,
            mesh_root="h36m17",
            gender="male or female SMPL, the person's, as 3DPW was made",
            square=_3DPW_SQUARE,
            count=35_515,
            note="not METRO's protocol: its numbers are those of 3dpw-neutral",
        ),
        Protocol(
            name="up3d",
            data="UP-3D test split",
            body="smpl",
            joint_set="h36m14",
            joints=f"{_SMPL_JOINTS}; true ones regressed from the fitted SMPL mesh in the same way",
            root=_SMPL_ROOT,
            mesh_root="h36m17",
            gender="neutral SMPL",
            truth_joints="mesh",
            note="the truth is a fit of SMPL to the picture, not a measurement",
        ),
        Protocol(
            name="freihand",
            data="FreiHAND evaluation split in image order, right hands",
            body="mano",
            joint_set="freihand21",
            joints="21 joints (freihand21), predicted ones regressed from the full mesh by METRO's MANO regressor",
            root="none: only aligned errors mean anything here; the submission's points are relative to the wrist",
            metrics=_FREIHAND,
            square="square of 180 px about (112, 112), which is METRO's scale 0.9",
            count=3_960,
            published={"pa_mpjpe": 6.6, "pa_mpvpe": 6.7, "f_5mm": 0.721, "f_15mm": 0.981},
            note="with METRO's test-time augmentation (--tta) 6.2, 6.3, 0.743, 0.984; lengths in metres; the official "
            "script may mirror when it aligns, which no hand that is near the truth needs",
        ),
    )
}


def protocol(name: str) -> Protocol:
    """Return the protocol called `name`; raises UserError for an unknown one."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
