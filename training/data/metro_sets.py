"""METRO's data sets: YAML files that name TSV files of pictures, sizes and labels, alone or several as one set.

    img: train.img.tsv              # key, base64 JPEG in the last column
    hw: train.hw.tsv                # key, height and width; optional
    label: train.label.tsv          # key, JSON list with one label
    linelist: train.linelist.tsv    # rows that are used; optional
    composite: true                 # then lists of files above, and a linelist of two columns: number of file, row

A label: `center` (px from the picture's corner) and `scale` (square of 200 px times it, 1.2 margin included);
`2d_joints` px and confidence, `3d_joints` metres and confidence (24 joints, hands 21; both may be nested one deeper);
`pose` (72; hands 48) in the camera's frame, `betas` (10), `gender`; `has_2d_joints`, `has_3d_joints`, `has_smpl`. Our
own sets (training.data.tsv_export), whose body has no such pose, have `vertices_int16` and `vertices_unit_m`.
Formats after metro/datasets/human_mesh_tsv.py and hand_mesh_tsv.py of microsoft/MeshTransformer.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.crop_rules import MPII_BOX_PX
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.joints import J24, JOINT_SETS
from metro_edge.smpl.model import SkinnedBody
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.data.augment import flip_pose, has_sides
from training.data.labelled import (
    BadSampleError,
    Floats,
    LabelledPicture,
    LabelledSet,
    centred_joints,
    centred_vertices,
)
from training.data.mirror import mesh_mirror
from training.data.tsv import TsvFile, label_of, picture_of, read_integers, size_of

LABEL_SETS = {len(s): s.name for s in (J24, JOINT_SETS["freihand21"])}
GENDERS = {"m": "male", "f": "female", "n": "neutral"}
Bodies = SkinnedBody | Mapping[str, SkinnedBody]


@dataclass(frozen=True)
class TsvSource:
    """The files of one set: pictures, labels, and sizes or None; `name` is the label file as the YAML names it."""

    name: str
    img: TsvFile
    label: TsvFile
    hw: TsvFile | None

    def check(self) -> None:
        """Raise UserError unless the files have equally many rows."""
        for other in (self.label, self.hw):
            if other is not None and len(other) != len(self.img):
                raise UserError(
                    f"{other.path} has {len(other)} rows, {self.img.path} has {len(self.img)}: they must be of one set"
                )


@dataclass(frozen=True)
class TsvRows:
    """The rows of a YAML file.

    Attributes:
        path: of the YAML file.
        sources: the files; one, unless the set is composite.
        lines: (n, 2) int32: source and row; None for all rows of the one source.
        cut_with_margin: entry that only our own sets have: pictures are crops already, that is squares so many times
            wider than the label's; 0 for pictures as they were taken.
    """

    path: Path
    sources: tuple[TsvSource, ...]
    lines: NDArray[np.int32] | None
    cut_with_margin: float = 0.0

    def __len__(self) -> int:
        return len(self.sources[0].img) if self.lines is None else len(self.lines)

    def place(self, index: int) -> tuple[TsvSource, int]:
        """Return the source and the row in it of a sample."""
        if self.lines is None:
            return self.sources[0], index
        return self.sources[self.lines[index, 0]], int(self.lines[index, 1])


def open_rows(path: str | os.PathLike[str]) -> TsvRows:
    """Open the files of a YAML file, which its folder or absolute paths lead to.

    Raises:
        UserError: a missing, unreadable or inconsistent file, named.
    """
    path = Path(path)
    config = _read_yaml(path)
    composite = bool(config.get("composite", False))
    names = {key: _names(path, config, key, composite) for key in ("img", "label", "hw")}
    if len(names["label"]) != len(names["img"]) or (names["hw"] and len(names["hw"]) != len(names["img"])):
        counts = ", ".join(f"{len(value)} {key}" for key, value in names.items())
        raise UserError(f"{path} names different numbers of files: {counts}")
    sources = []
    for i, (img, label) in enumerate(zip(names["img"], names["label"], strict=True)):
        hw = TsvFile(path.parent / names["hw"][i]) if names["hw"] else None
        sources.append(TsvSource(label, TsvFile(path.parent / img), TsvFile(path.parent / label), hw))
        sources[-1].check()
    lines = _lines(path, config.get("linelist"), sources, composite)
    margin = config.get("cut_with_margin", 0.0)
    if not isinstance(margin, (int, float)) or not (margin == 0 or 1 <= margin < 100):
        raise UserError(f"{path}: cut_with_margin must be a number of at least 1, got {margin!r}")
    rows = TsvRows(path, tuple(sources), lines, float(margin))
    if not len(rows):
        raise UserError(f"{path} has no rows")
    return rows


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("yaml", "train", "read the YAML files of data sets") from None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the data set {path}: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is no data set: expected a mapping with img and label")
    return config


def _names(path: Path, config: dict[str, Any], key: str, composite: bool) -> list[str]:
    value = config.get(key)
    if value is None and key == "hw":
        return []
    if composite and isinstance(value, str):  # a text file with one name a line
        try:
            value = (path.parent / value).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{path}: {key} names no readable list of files: {value}") from None
    names = value if composite else [value]
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path}: {key} must be {'a list of files' if composite else 'a file'}, got {value!r}")
    return names


def _lines(path: Path, linelist: Any, sources: list[TsvSource], composite: bool) -> NDArray[np.int32] | None:
    if linelist is None and not composite:
        return None
    if not isinstance(linelist, str):
        raise UserError(f"{path}: linelist must be a file, got {linelist!r}")
    file = path.parent / linelist
    lines = read_integers(file, 2 if composite else 1)
    if not composite:
        lines = np.column_stack((np.zeros(len(lines), np.int64), lines[:, 0]))
    counts = np.array([len(source.img) for source in sources])
    wrong = (lines[:, 0] >= len(sources)) | (lines[:, 1] >= counts[np.minimum(lines[:, 0], len(sources) - 1)])
    if wrong.any():
        at = int(np.argmax(wrong))
        raise UserError(
            f"{file}:{at}: file {lines[at, 0]}, row {lines[at, 1]} is not there; the files have {counts.tolist()} rows"
        )
    return lines.astype(np.int32)


class MetroTsvSet(LabelledSet):
    """Samples of one of METRO's data sets; see training.data.labelled.make_item for the items.

    A composite set mixes supervision: whichever of mesh, 3D and 2D joints a row has, by its has_smpl, has_3d_joints
    and has_2d_joints. 3D joints whose root (the hips, the wrist) is not labelled are not used.

    Args:
        source: YAML file, or what `open_rows` returned.
        spec: of the network; its joints are taken by name from the 24 or 21 of the labels.
        template: of the body, whose regressor centres the meshes.
        body: SMPL or MANO, to make meshes of poses; a mapping from gender uses the row's own (3DPW, gendered truth);
            None where no row has a pose.
        meshes: False leaves poses and meshes out, so that no body is needed.
        options: of LabelledSet.

    Raises:
        UserError: files that are missing or do not belong together; a body of another size.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | TsvRows,
        spec: ModelSpec,
        template: BodyTemplate,
        body: Bodies | None = None,
        meshes: bool = True,
        **options: Any,
    ) -> None:
        self.rows = source if isinstance(source, TsvRows) else open_rows(source)
        self.template, self.body, self.meshes = template, body, meshes
        bodies = list(body.values()) if isinstance(body, Mapping) else [body] if body else []
        for one in bodies:
            if len(one.file.v_template) != spec.vertex_count:
                raise UserError(
                    f"the {one.file.kind} file has {len(one.file.v_template)} vertices, the network's body "
                    f"{spec.body!r} has {spec.vertex_count}"
                )
        if meshes and has_sides(spec.joints) and options.get("train"):
            options.setdefault("mirror", mesh_mirror(template, bodies[0].file if bodies else None))
        super().__init__(len(self.rows), spec, **options)

    def name(self, index: int) -> str:
        """Return the picture's name in its file; prefixed by the file's in composite sets, as METRO does."""
        source, row = self.rows.place(index)
        prefix = f"{source.name}_" if len(self.rows.sources) > 1 else ""
        return prefix + source.label.key(row)

    def label(self, index: int) -> dict[str, Any]:
        """Return the label of a sample as the file has it; raises BadSampleError when it cannot be read."""
        source, row = self.rows.place(index)
        return label_of(source.label.row(row), f"{source.name}:{row}")

    def picture(self, index: int) -> LabelledPicture:
        """Return a sample; raises BadSampleError naming file, row and key for what cannot be used."""
        source, row = self.rows.place(index)
        where = f"{source.name}:{row}"
        image = self._image(source, row, where)
        label = Label(self.label(index), where)
        name = self.spec.joint_set
        joints = label.joints("3d_joints", 4, name) if label.has("has_3d_joints") else None
        vertices, flipped = self._vertices(label)
        centre, side, margin = self._square(label, image)
        return LabelledPicture(
            where,
            image,
            centre,
            side,
            label.joints("2d_joints", 3, name) if label.has("has_2d_joints") else None,
            None if joints is None else centred_joints(joints, name),
            vertices,
            margin=margin,
            crop_rule="box_bilinear" if self.rows.cut_with_margin else "",
            flipped_vertices=flipped,
        )

    def _square(self, label: Label, image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], float, float]:
        """Return the middle and the side of the picture's square, and that side over the crop's."""
        centre, side = label.numbers("center", (2,)) - 0.5, float(label.numbers("scale", ())) * MPII_BOX_PX
        margin, whole = self.rows.cut_with_margin, image.shape[1]
        if not margin:
            return centre, side, 1.0
        middle = np.full(2, (whole - 1) / 2)
        if image.shape[0] != whole or not np.allclose([*centre, side * margin], [*middle, whole]):
            raise BadSampleError(
                f"{label.where}: the set was cut with a margin of {margin:g}, so center and scale must make a square "
                f"in the middle of the picture ({whole} x {image.shape[0]} px)"
            )
        return middle, float(whole), margin  # as it was, before center and scale were rounded

    def _image(self, source: TsvSource, row: int, where: str) -> NDArray[np.uint8]:
        fields, name = source.img.row(row), source.label.key(row)
        if fields[0] != name.encode():
            raise BadSampleError(
                f"{where}: the label is of {name!r}, the picture in {source.img.path.name}:{row} is "
                f"{fields[0].decode('utf-8', 'replace')!r}"
            )
        image = picture_of(fields, f"{source.img.path.name}:{row} ({name})")
        if source.hw is not None:
            size = size_of(source.hw.row(row), f"{source.hw.path.name}:{row}")
            if size != image.shape[:2]:
                raise BadSampleError(
                    f"{source.hw.path.name}:{row}: height and width {size} are not the picture's, {image.shape[:2]}"
                )
        return image

    def _vertices(self, label: Label) -> tuple[Floats | None, Any]:
        if not self.meshes:
            return None, None
        if "vertices_int16" in label.values:
            return label.stored_vertices(self.spec.vertex_count), None
        if not label.has("has_smpl"):
            return None, None
        body = self._body(label)
        pose, betas = label.numbers("pose", (body.pose_size,)), label.numbers("betas", None)
        if betas.ndim != 1 or not 1 <= len(betas) <= body.file.shapedirs.shape[2]:
            raise BadSampleError(f"{label.where}: betas must be up to {body.file.shapedirs.shape[2]} numbers")
        skin = partial(_skinned, body, self.template, self.spec.joint_set)
        flips = body.file.kind == "smpl"
        return skin(pose, betas), (lambda: skin(flip_pose(pose), betas)) if flips else None

    def _body(self, label: Label) -> SkinnedBody:
        if self.body is None:
            raise UserError(f"{label.where} has a pose: give the SMPL or MANO file (data.smpl in the configuration)")
        if not isinstance(self.body, Mapping):
            return self.body
        given = label.values.get("gender")
        gender = GENDERS.get(str(given)[:1].lower(), "") if given is not None else ""
        if gender not in self.body:
            raise BadSampleError(f"{label.where}: gender must be {' or '.join(self.body)}, got {given!r}")
        return self.body[gender]


class Label:
    """One label, its entries checked as they are asked for; errors name `where`, "file:row", and the key."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def numbers(self, key: str, shape: tuple[int, ...] | None) -> NDArray[np.float64]:
        """Return an entry as finite numbers of `shape`; None allows any."""
        array = self._array(key)
        if shape is not None and array.shape != shape:
            raise BadSampleError(f"{self.where}: {key} must have shape {shape}, got {array.shape}")
        if not np.isfinite(array).all():
            raise BadSampleError(f"{self.where}: {key} holds values that are not finite")
        if key == "scale" and not array > 0:
            raise BadSampleError(f"{self.where}: box of no size: scale is {array:g}")
        return array

    def has(self, key: str) -> bool:
        """Return whether a has_ entry is 1."""
        return bool(self.numbers(key, None).any())

    def joints(self, key: str, columns: int, joint_set_name: str) -> Floats:
        """Return joints (J, columns) float32 of the named set; zeros where the confidence, the last column, is 0."""
        array = self._array(key)
        array = array[0] if array.ndim == 3 and len(array) == 1 else array
        if array.ndim != 2 or array.shape[1] != columns or len(array) not in LABEL_SETS:
            counts = " or ".join(str(count) for count in LABEL_SETS)
            raise BadSampleError(f"{self.where}: {key} must be ({counts}, {columns}), got {array.shape}")
        array = np.asarray(array[_order(LABEL_SETS[len(array)], joint_set_name)], np.float32)
        bad = ~np.isfinite(array).all(1) & ~(array[:, -1] == 0)
        if bad.any():
            raise BadSampleError(f"{self.where}: {key} holds values that are not finite")
        array[array[:, -1] <= 0] = 0
        return np.asarray(array, np.float32)

    def stored_vertices(self, count: int) -> Floats:
        """Return vertices (count, 3) float32 metres, root-centred, of our own sets' labels."""
        try:
            data = np.frombuffer(base64.b64decode(self.values["vertices_int16"], validate=True), "<i2")
        except (ValueError, TypeError):
            data = np.zeros(0, np.int16)
        if data.size != count * 3:
            raise BadSampleError(f"{self.where}: vertices_int16 must be base64 of {count} x 3 int16 values")
        unit = float(self.numbers("vertices_unit_m", ()))
        return np.asarray(data.reshape(count, 3).astype(np.float32) * np.float32(unit))

    def _array(self, key: str) -> NDArray[np.float64]:
        if key not in self.values:
            raise BadSampleError(f"{self.where}: the label has no {key}")
        try:
            return np.asarray(self.values[key], np.float64)
        except (TypeError, ValueError):
            raise BadSampleError(f"{self.where}: {key} must be numbers, got {str(self.values[key])[:40]!r}") from None


@lru_cache(maxsize=16)
def _order(label_set: str, wanted: str) -> list[int]:
    names = JOINT_SETS[label_set].names
    missing = [name for name in JOINT_SETS[wanted].names if name not in names]
    if missing:
        raise UserError(f"the labels' joints ({label_set}) lack {', '.join(missing)} of the network's {wanted}")
    return [names.index(name) for name in JOINT_SETS[wanted].names]


def _skinned(
    body: SkinnedBody, template: BodyTemplate, joint_set_name: str, pose: NDArray[Any], betas: NDArray[Any]
) -> Floats:
    vertices = body.vertices(np.asarray(pose, np.float32)[None], np.asarray(betas, np.float32)[None])[0]
    return centred_vertices(vertices, template, joint_set_name)
