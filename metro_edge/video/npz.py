"""Results as NumPy arrays: of a list of results, and as an .npz file of any length; a pandas table."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import MissingExtraError
from metro_edge.files import replacing
from metro_edge.joints import JointSet
from metro_edge.video.people import Person
from metro_edge.video.sinks import Sink
from metro_edge.video.spool import Spool
from metro_edge.video.stream import FrameResult
from metro_edge.video.writing import written

FIELDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "frame": ("<i8", ()),
    "time_s": ("<f8", ()),
    "identity": ("<i8", ()),
    "confidence": ("<f4", ()),
    "box_px": ("<f4", (4,)),
    "translation_m": ("<f4", (3,)),
    "camera": ("<f4", (3,)),
    "focal_px": ("<f4", ()),
    "centre_px": ("<f4", (2,)),
}


def row_of(result: FrameResult, person: Person) -> dict[str, Any]:
    """Return the values of FIELDS, `joints_m` (J, 3) and `joints_px` (J, 2) of a person in a frame."""
    body = person.body
    return {
        "frame": result.index,
        "time_s": result.time_s,
        "identity": person.identity,
        "confidence": person.confidence,
        "box_px": person.box,
        "translation_m": body.translation,
        "camera": body.camera,
        "focal_px": body.focal_px,
        "centre_px": body.centre_px,
        "joints_m": body.joints,
        "joints_px": body.joints_px,
    }


def arrays_of(results: Iterable[FrameResult], vertices: bool = False) -> dict[str, NDArray[Any]]:
    """Return results as arrays with a row per person and frame, R in all.

    `frame`, `time_s`, `identity`, `confidence` (R,); `box_px` (R, 4); `translation_m`, `camera` (R, 3); `focal_px`
    (R,); `centre_px` (R, 2); `joints_m` (R, J, 3) from the root joint; `joints_px` (R, J, 2); with `vertices`,
    `vertices_m` (R, V, 3). J and V are 0 when there is nobody.
    """
    rows = []
    for result in results:
        for person in result.people:
            rows.append(row_of(result, person) | ({"vertices_m": person.body.vertices} if vertices else {}))
    kinds = FIELDS | {"joints_m": ("<f4", (0, 3)), "joints_px": ("<f4", (0, 2))}
    if vertices:
        kinds |= {"vertices_m": ("<f4", (0, 3))}
    return {
        name: np.array([row[name] for row in rows], kind) if rows else np.zeros((0, *shape), kind)
        for name, (kind, shape) in kinds.items()
    }


def table_of(results: Iterable[FrameResult]) -> Any:
    """Return results as a pandas DataFrame with a row per person, frame and joint.

    Columns: frame, time_s, identity, confidence, joint, x_m, y_m, z_m (camera frame, with the translation), x_px, y_px.
    Raises MissingExtraError without pandas.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtraError("pandas", "pandas", "make a table of results") from None
    columns = ("frame", "time_s", "identity", "confidence", "joint", "x_m", "y_m", "z_m", "x_px", "y_px")
    rows = []
    for result in results:
        for person in result.people:
            placed = person.body.joints + person.body.translation
            for name, metres, pixels in zip(person.body.joint_names, placed, person.body.joints_px, strict=True):
                rows.append(
                    (result.index, result.time_s, person.identity, person.confidence, name,
                     *metres.tolist(), *pixels.tolist())
                )  # fmt: skip
    return pandas.DataFrame(rows, columns=list(columns))


class NpzFile(Sink):
    """The arrays of `arrays_of` as .npz, with `joint_names` (J,); of any length, as rows wait on the disk.

    With `vertices` also `vertices_m` (R, V, 3) and `faces` (F, 3).
    """

    def __init__(
        self, path: str | os.PathLike[str], joints: JointSet, faces: NDArray[np.integer] | None, vertex_count: int = 0
    ) -> None:
        """Check that the folder can be written.

        Args:
            path: of the .npz.
            joints: of the bodies.
            faces: (F, 3) of the meshes to keep, None to leave meshes out.
            vertex_count: V of the meshes.
        """
        self.path, self.notes = Path(path), []
        self._joints, self._faces = joints, faces
        shapes = {name: (kind, shape) for name, (kind, shape) in FIELDS.items()}
        shapes |= {"joints_m": ("<f4", (len(joints), 3)), "joints_px": ("<f4", (len(joints), 2))}
        if faces is not None:
            shapes["vertices_m"] = ("<f4", (vertex_count, 3))
        self._spools = {name: Spool(self.path.parent, shape, kind) for name, (kind, shape) in shapes.items()}

    def write(self, result: FrameResult) -> None:
        """Add a row per person."""
        for person in result.people:
            row = row_of(result, person)
            if self._faces is not None:
                row["vertices_m"] = person.body.vertices
            for name, value in row.items():
                self._spools[name].append(value)

    def close(self, complete: bool = True) -> None:
        """Write the file."""
        assert self.path is not None
        try:
            with written(self.path), replacing(self.path) as partial:
                self._save(partial, complete)
        finally:
            self.discard()

    def _save(self, path: Path, complete: bool) -> None:
        extra = {"joint_names": np.array(self._joints.names), "complete": np.array(complete)}
        if self._faces is not None:
            extra["faces"] = np.asarray(self._faces, "<i4")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, spool in self._spools.items():
                spool.save_into(archive, name)
            for name, array in extra.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    def discard(self) -> None:
        """Free what waits on the disk."""
        for spool in self._spools.values():
            spool.close()
