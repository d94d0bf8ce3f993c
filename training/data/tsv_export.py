"""Generated people as one of METRO's data sets: NAME.yaml and NAME.{img,hw,label,linelist}.tsv with their .lineidx."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metro_edge.crop_rules import MPII_BOX_PX
from metro_edge.errors import UserError
from metro_edge.files import output_folder, write_bytes
from metro_edge.joints import J24, joint_set
from metro_edge.raster import project
from training.data.shards import ShardedPeople
from training.data.storage import shard_path
from training.data.tsv import write_tsv

SMPL_POSE, SMPL_BETAS = 72, 10


def export_people(people: ShardedPeople, folder: str | os.PathLike[str], name: str = "train") -> Path:
    """Write the samples of `people` in METRO's form; returns the YAML file.

    Pictures are the shards' JPEGs, unchanged; `center` and `scale` are of the network's crop in them. The joints of
    h36m14 and of the face are among the label's 24, the rest have confidence 0; Anny has no SMPL pose, so `has_smpl` is
    0 and the mesh is in `vertices_int16` (base64 of little-endian int16, (V, 3), root-centred) times `vertices_unit_m`.

    Raises:
        UserError: a folder that cannot be written, or damaged shards.
    """
    target = output_folder(folder)
    if not name or Path(name).name != name:
        raise UserError(f"the set's name must be a file name, got {name!r}")
    files = {kind: f"{name}.{kind}.tsv" for kind in ("img", "hw", "label", "linelist")}
    side = people.manifest.stored_px
    size = json.dumps([{"height": side, "width": side}])
    count = range(len(people))
    keys = [f"seed{people.manifest.seed}_{people.sample_id(i):08d}.jpg" for i in count]
    write_tsv(target / files["img"], ((keys[i], base64.b64encode(_jpeg(people, i))) for i in tqdm(count, desc="img")))
    write_tsv(target / files["hw"], ((key, size) for key in keys))
    write_tsv(target / files["label"], _labels(people, keys))
    write_tsv(target / files["linelist"], ((str(i),) for i in count))
    path = target / f"{name}.yaml"
    lines = [f"{kind}: {file}" for kind, file in files.items()]
    margin = f"cut_with_margin: {people.manifest.margin}"
    write_bytes(path, "\n".join([*lines, "composite: false", margin, ""]).encode())
    return path


def _jpeg(people: ShardedPeople, index: int) -> bytes:
    shard, row = divmod(people.sample_id(index), people.manifest.shard_size)
    folder = shard_path(people.folder, shard)
    begin, end = np.load(folder / "offsets.npy", mmap_mode="r")[row : row + 2]
    return np.load(folder / "images.npy", mmap_mode="r")[begin:end].tobytes()


def _labels(people: ShardedPeople, keys: list[str]) -> Iterator[tuple[str, str]]:
    manifest, side = people.manifest, people.manifest.stored_px
    for index, key in enumerate(tqdm(keys, desc="label")):
        stored = people.stored(index)
        joints, flat = np.zeros((len(J24), 4), np.float32), np.zeros((len(J24), 3), np.float32)
        focal, *centre = (float(v) for v in stored["camera"])
        # METRO's 14 joints last: what both sets have, such as the hips, is theirs in METRO's labels.
        for name in sorted(manifest.joint_sets, key=lambda name: name == "h36m14"):
            rows = [i for i, joint in enumerate(joint_set(name).names) if joint in J24.names]
            into = [J24.index(joint_set(name).names[i]) for i in rows]
            points = stored[f"joints.{name}"]
            joints[into] = _known(points)[rows]
            flat[into] = _known(project(points + stored["root"], focal, (centre[0], centre[1])))[rows]
        yield key, json.dumps([_label(people, stored["vertices"], joints, flat, side)])


def _label(
    people: ShardedPeople, vertices: NDArray[Any], joints: NDArray[Any], flat: NDArray[Any], side: int
) -> dict[str, Any]:
    hips = [J24.index(name) for name in ("right_hip", "left_hip")]
    pelvis = J24.index("pelvis")  # METRO centres 3D joints on it
    joints[pelvis], flat[pelvis] = joints[hips].mean(0), flat[hips].mean(0)
    return {
        "center": [side / 2, side / 2],
        "scale": side / people.manifest.margin / MPII_BOX_PX,
        "2d_joints": [flat.tolist()],
        "has_2d_joints": 1,
        "3d_joints": [joints.tolist()],
        "has_3d_joints": 1,
        "pose": [0.0] * SMPL_POSE,
        "betas": [0.0] * SMPL_BETAS,
        "has_smpl": 0,
        "vertices_int16": base64.b64encode(np.asarray(vertices, "<i2").tobytes()).decode(),
        "vertices_unit_m": people.manifest.unit_m,
    }


def _known(points: NDArray[Any]) -> NDArray[np.float32]:
    return np.column_stack((points, np.ones(len(points), np.float32))).astype(np.float32)
