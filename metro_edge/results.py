"""The files that `metro-edge run` and `metro-edge demo` write for a picture.

STEM.overlay.png is the picture with the meshes over it, STEM.person0.obj and STEM.person0.glb are the mesh of
each person, and STEM.json holds

- `schema_version`: 1;
- `picture`: file name; `width_px`, `height_px`;
- `model`: {`name`, `precision`, `device`, `crop_rule`, `checkpoint_sha256`, `onnx_sha256`};
- `people`: one object per person as Body.to_dict documents, and its `obj` and `glb` file names.

A network that gives joints alone leaves no OBJ and GLB: the overlay shows skeletons, and both names are missing.

With SMPL parameters there are STEM.smpl.npz, the same people in the same order as
metro_edge.smpl.fit.SmplParameters.save documents, translations in the camera frame, and in STEM.json

- `smpl`: {`file`: its name, `model`: smpl or mano, `gender`, `model_sha256`};
- in each of `people`, `smpl`: {`pose`, `betas`, `translation_m`, `error_mm`}, as SmplParameters.to_dict documents.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metro_edge.body import Body
from metro_edge.errors import UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.files import reason, staging_folder, write_json
from metro_edge.preprocess import Frame
from metro_edge.video.overlay import draw_bodies, side_by_side
from metro_edge.video.sinks import write_picture

if TYPE_CHECKING:
    from metro_edge.smpl.fit import SmplParameters

SCHEMA_VERSION = 1


def model_description(estimator: MeshEstimator) -> dict[str, Any]:
    """Return what made a result, as in the JSON file's `model`."""
    bundle, precision = estimator.bundle, estimator.session.precision
    return {
        "name": bundle.spec.name,
        "precision": precision,
        "device": estimator.session.device,
        "crop_rule": bundle.spec.crop_rule,
        "checkpoint_sha256": bundle.passport["checkpoint"]["sha256"],
        "onnx_sha256": bundle.onnx_sha256(precision),
    }


def write_results(
    folder: Path,
    stem: str,
    picture: str,
    frame: Frame,
    bodies: Sequence[Body],
    model: dict[str, Any],
    beside: bool = False,
    smpl: SmplParameters | None = None,
) -> list[Path]:
    """Write all files of a picture into `folder`, which exists, all or none; returns their paths.

    Args:
        folder: where to.
        stem: how the files' names begin.
        picture: name of the picture for the JSON file.
        frame: (H, W, 3) uint8 BGR.
        bodies: found in it.
        model: what `model_description` returned.
        beside: put the bare picture to the left of the overlay.
        smpl: parameters of the bodies, one each.

    Raises:
        UserError: the folder cannot be written.
    """
    overlay = draw_bodies(frame, bodies)
    people = []
    with staging_folder(folder) as staging:
        write_picture(staging / f"{stem}.overlay.png", side_by_side(frame, overlay) if beside else overlay)
        for number, body in enumerate(bodies):
            people.append(body.to_dict())
            if body.has_mesh:
                obj, glb = (f"{stem}.person{number}.{kind}" for kind in ("obj", "glb"))
                body.save_obj(staging / obj)
                body.save_glb(staging / glb)
                people[-1] |= {"obj": obj, "glb": glb}
            if smpl is not None:
                people[-1]["smpl"] = smpl.to_dict(number)
        document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "picture": picture,
            "width_px": frame.shape[1],
            "height_px": frame.shape[0],
            "model": model,
        }
        if smpl is not None:
            file = f"{stem}.smpl.npz"
            smpl.save(staging / file)
            named = {"model": smpl.model, "gender": smpl.gender, "model_sha256": smpl.model_sha256}
            document["smpl"] = {"file": file, **named}
        document["people"] = people
        write_json(staging / f"{stem}.json", document)
        return _move_all(sorted(staging.iterdir()), folder)


def _move_all(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Move files into `folder`, over older ones; raises UserError before the first when one cannot go there."""
    targets = [folder / path.name for path in paths]
    for target in targets:
        if target.is_dir():
            raise UserError(f"cannot write {target}: a folder is in the way")
    for path, target in zip(paths, targets, strict=True):
        try:
            os.replace(path, target)
        except OSError as error:
            raise UserError(f"cannot write {target}: {reason(error)}") from None
    return targets
