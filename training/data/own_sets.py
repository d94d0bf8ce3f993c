"""3DPW and Human3.6M opened by name from their own annotation files: for protocols and training configurations.

    open_set("3dpw-neutral", folder, spec, template, smpl=smpl_folder)      # 3DPW test, everybody the neutral body
    open_set("3dpw-gendered", folder, spec, template, smpl=smpl_folder)     # 3DPW test, the person's own gender
    open_set("human36m-p2", folder_or_npz, spec, template)                  # Human3.6M protocol 2
    open_set("3dpw-neutral", folder, spec, template, smpl=..., split="train", train=True, seed=0)
    open_set("human36m-p2", folder, spec, template, split="train", train=True)

`own_kind(path)` tells whether a path holds such files, and whose, so that one option can take them and METRO's TSVs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.data.human36m import Human36M, Human36MNpz
from training.data.labelled import LabelledSet
from training.data.threedpw import ThreeDPW

KINDS = ("3dpw-neutral", "3dpw-gendered", "human36m-p2")


def own_kind(path: str | os.PathLike[str]) -> str:
    """Return "3dpw" or "human36m" when `path` holds that data set's own files, else ""."""
    path = Path(path)
    if (path / "sequenceFiles").is_dir():
        return "3dpw"
    if path.suffix == ".npz" or any(path.glob("S*/Videos")):
        return "human36m"
    return ""


def open_set(
    kind: str,
    path: str | os.PathLike[str],
    spec: ModelSpec,
    template: BodyTemplate,
    *,
    smpl: str | os.PathLike[str] = "",
    **options: Any,
) -> LabelledSet:
    """Open the data set of `kind` (KINDS).

    Args:
        kind: data set and ground truth.
        path: folder as distributed; for Human3.6M also the .npz that SPIN's or GraphCMR's scripts make.
        spec, template: of the network and its body.
        smpl: folder with the SMPL model files, which 3DPW needs.
        **options: of ThreeDPW, Human36M or Human36MNpz, such as split, stride, skip_bad, train, seed.

    Raises:
        UserError: an unknown kind, missing SMPL files, or what the data set finds wrong.
        MissingExtraError: smplfitter (3DPW) or cdflib (Human3.6M) is not installed.
    """
    if kind not in KINDS:
        raise UserError(f"unknown data set {kind!r}; known: {', '.join(KINDS)}")
    if kind == "human36m-p2":
        if Path(path).suffix == ".npz":
            return Human36MNpz(path, spec, **options)
        return Human36M(path, spec, **options)
    ground_truth = kind.removeprefix("3dpw-")
    genders = ("neutral",) if ground_truth == "neutral" else ("male", "female")
    bodies = {gender: _body(smpl, gender) for gender in genders}
    return ThreeDPW(path, spec, template, bodies, ground_truth=ground_truth, **options)


def _body(smpl: str | os.PathLike[str], gender: str) -> Any:
    if not str(smpl):
        raise UserError("3DPW's labels are SMPL parameters: name the folder with your SMPL model files")
    from training.bodies.smpl import skinned_body

    return skinned_body(Path(smpl), gender)
