"""Body: one person, as joints and a mesh in metres and where they are in the frame."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.joints import joint_set
from metro_edge.mesh_files import write_glb, write_obj
from metro_edge.raster import project

SCHEMA_VERSION = 1

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Body:
    """One person in one frame. Camera frame: x right, y down, z away from the camera.

    Attributes:
        joints: (J, 3) float32 metres, from the root joint; the network's own joints.
        vertices: (V, 3) float32 metres, from the root joint; (0, 3) of a network that gives joints alone.
        camera: (3,) float32 (s, tx, ty): crop coordinates in [-1, 1] are s (x + tx), s (y + ty).
        translation: (3,) float32 metres, the root joint in the camera frame; depth is
            proportional to the focal length.
        box: (4,) float32 x, y, width, height in px, the box that the person was cropped by.
        focal_px, centre_px: the pinhole camera that `translation` is for.
        joint_set: name of the joint set of `joints`.
        faces: (F, 3) int32 triangles, shared by all bodies of a template; (0, 3) without a mesh.
    """

    joints: FloatArray = field(repr=False)
    vertices: FloatArray = field(repr=False)
    camera: FloatArray
    translation: FloatArray
    box: FloatArray
    focal_px: float
    centre_px: tuple[float, float]
    joint_set: str
    faces: NDArray[np.int32] = field(repr=False)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the rows of `joints`."""
        return joint_set(self.joint_set).names

    @property
    def has_mesh(self) -> bool:
        """Whether there is a mesh; networks may give joints alone."""
        return len(self.vertices) > 0

    @property
    def joints_px(self) -> FloatArray:
        """Joints (J, 2) float32 in the frame, px counted from pixel centres."""
        return self._project(self.joints)

    @property
    def vertices_px(self) -> FloatArray:
        """Vertices (V, 2) float32 in the frame, px counted from pixel centres."""
        return self._project(self.vertices)

    def _project(self, points: FloatArray) -> FloatArray:
        placed = points.astype(np.float64) + self.translation
        return project(placed, self.focal_px, self.centre_px).astype(np.float32)

    def save_obj(self, path: str | os.PathLike[str]) -> None:
        """Write the mesh as Wavefront OBJ: metres, y up, root joint in the origin; raises UserError."""
        self._check_mesh()
        write_obj(path, self.vertices, self.faces)

    def save_glb(self, path: str | os.PathLike[str]) -> None:
        """Write the mesh as binary glTF 2.0: metres, y up, root joint in the origin; raises UserError."""
        self._check_mesh()
        write_glb(path, self.vertices, self.faces)

    def _check_mesh(self) -> None:
        if not self.has_mesh:
            raise UserError("this body has joints and no mesh: use a bundle whose outputs have `vertices`")

    def to_dict(self, vertices: bool = False) -> dict[str, Any]:
        """Return the person as JSON values; `vertices` adds the mesh, which makes it long.

        Schema 1: `schema_version`; `joint_set`; `joint_names` (J); `joints_m` (J, 3) from the root joint;
        `joints_px` (J, 2); `camera` {`scale`, `tx`, `ty`}; `translation_m` (3) of the root joint; `box_px`
        (4) x, y, width, height; `focal_px`; `centre_px` (2); with `vertices`, `vertices_m` (V, 3) from the
        root joint. Camera frame, as in the attributes. Raises UserError for vertices that it does not have.
        """
        scale, tx, ty = (float(value) for value in self.camera)
        values: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "joint_set": self.joint_set,
            "joint_names": list(self.joint_names),
            "joints_m": _rounded(self.joints, 5),
            "joints_px": _rounded(self.joints_px, 2),
            "camera": {"scale": scale, "tx": tx, "ty": ty},
            "translation_m": _rounded(self.translation, 5),
            "box_px": _rounded(self.box, 2),
            "focal_px": float(self.focal_px),
            "centre_px": [float(value) for value in self.centre_px],
        }
        if vertices:
            self._check_mesh()
            values["vertices_m"] = _rounded(self.vertices, 5)
        return values


def _rounded(values: NDArray[np.floating], digits: int) -> Any:
    return np.round(values.astype(np.float64), digits).tolist()
