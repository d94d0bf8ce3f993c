"""BodyTemplate: the mesh a network was made for, as plain arrays (body.npz)."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.files import replacing
from metro_edge.joints import joint_set

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class SparseMatrix:
    """Rows of weights over a few columns each: result[r] = sum_k weights[r, k] * values[indices[r, k]].

    Attributes:
        indices: (R, K) int32, columns; unused places repeat a column with weight 0.
        weights: (R, K) float32.
    """

    indices: IntArray
    weights: FloatArray

    def __matmul__(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Apply to `values` (..., C, D); returns (..., R, D)."""
        gathered = np.take(values, self.indices, axis=-2)  # (..., R, K, D)
        result: NDArray[np.floating] = np.einsum("rk,...rkd->...rd", self.weights, gathered)
        return result

    def dense(self, columns: int) -> FloatArray:
        """Return the (R, columns) float32 matrix."""
        matrix = np.zeros((len(self.indices), columns), np.float32)
        np.add.at(matrix, (np.arange(len(self.indices))[:, None], self.indices), self.weights)
        return matrix


@dataclass(frozen=True)
class BodyTemplate:
    """A body mesh with its levels and joint regressors.

    Levels run from coarse to full. A level is a subset of the full mesh's vertices, so going down is a
    selection and going up is a fitted matrix.

    Attributes:
        name: such as `anny`.
        vertices: (V, 3) float32 metres, rest pose, camera frame (y down), centred on the root joint. As in METRO,
            SMPL is centred on Human3.6M's pelvis, near the middle of the hips, and MANO is a relaxed hand in its own
            axes, centred on the wrist.
        faces: (F, 3) int32 triangles of the full mesh, counter-clockwise seen from outside in a y-up frame.
        level_vertices: per level, (V_l,) int32 indices into the full mesh; the last is arange(V).
        level_faces: per level, (F_l, 3) int32 triangles, empty where a level is a bare point set.
        upsampling: per step coarse -> ... -> full, the matrix that makes the finer level from the coarser.
        regressors: joint set name -> matrix that gives its joints from full vertices.
        licence: of the mesh data.
        rest_joints: joint set name -> (J, 3) float32, joints of `vertices` where the network was trained with others
            than the regressor gives (MANO's rotation centres); see `joints_at_rest`.
    """

    name: str
    vertices: FloatArray
    faces: IntArray
    level_vertices: tuple[IntArray, ...]
    level_faces: tuple[IntArray, ...]
    upsampling: tuple[SparseMatrix, ...]
    regressors: dict[str, SparseMatrix] = field(default_factory=dict)
    licence: str = ""
    rest_joints: dict[str, FloatArray] = field(default_factory=dict)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Vertices per level, coarse to full."""
        return tuple(len(v) for v in self.level_vertices)

    def joints(self, joint_set_name: str, vertices: NDArray[np.floating]) -> NDArray[np.floating]:
        """Regress joints (..., J, 3) from full vertices (..., V, 3); raises UserError for a set it lacks."""
        if joint_set_name not in self.regressors:
            raise UserError(
                f"body {self.name} has no regressor for joint set {joint_set_name!r}; "
                f"it has {', '.join(self.regressors) or 'none'}"
            )
        return self.regressors[joint_set_name] @ vertices

    def joints_at_rest(self, joint_set_name: str) -> NDArray[np.floating]:
        """Return the joints (J, 3) that a network is given beside the coarse vertices; raises UserError as `joints`."""
        if joint_set_name in self.rest_joints:
            return self.rest_joints[joint_set_name]
        return self.joints(joint_set_name, self.vertices)

    def root(self, joint_set_name: str, vertices: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the root (..., 3) of full vertices (..., V, 3), by the joint set's definition."""
        return joint_set(joint_set_name).root_of(self.joints(joint_set_name, vertices))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed .npz, atomically; raises UserError when it cannot be written."""
        arrays: dict[str, Any] = {
            "name": np.array(self.name),
            "licence": np.array(self.licence),
            "vertices": self.vertices.astype(np.float32),
            "faces": self.faces.astype(np.int32),
        }
        for i, (vertices, faces) in enumerate(zip(self.level_vertices, self.level_faces, strict=True)):
            arrays[f"level{i}.vertices"] = vertices.astype(np.int32)
            arrays[f"level{i}.faces"] = faces.astype(np.int32)
        named = {f"upsampling{i}": m for i, m in enumerate(self.upsampling)}
        named |= {f"regressor.{name}": m for name, m in self.regressors.items()}
        for name, matrix in named.items():
            arrays[f"{name}.indices"] = matrix.indices.astype(np.int32)
            arrays[f"{name}.weights"] = matrix.weights.astype(np.float32)
        for name, joints in self.rest_joints.items():
            arrays[f"rest.{name}"] = joints.astype(np.float32)
        with replacing(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | BinaryIO) -> BodyTemplate:
        """Read what `save` wrote, from a path or an open file.

        Raises UserError when the file is missing, damaged or inconsistent.
        """
        name = path if isinstance(path, (str, os.PathLike)) else "body.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                data = {key: file[key] for key in file.files}
        except FileNotFoundError:
            raise UserError(f"no body template at {name}") from None
        except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise UserError(f"{name} is not a readable body template: {error}") from None
        try:
            return cls._from_arrays(data)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise UserError(f"{name} is not a complete body template: {error}") from None

    @classmethod
    def _from_arrays(cls, data: dict[str, Any]) -> BodyTemplate:
        def matrix(name: str) -> SparseMatrix:
            return SparseMatrix(data[f"{name}.indices"], data[f"{name}.weights"])

        levels = sum(key.startswith("level") and key.endswith(".vertices") for key in data)
        template = cls(
            name=str(data["name"]),
            vertices=data["vertices"],
            faces=data["faces"],
            level_vertices=tuple(data[f"level{i}.vertices"] for i in range(levels)),
            level_faces=tuple(data[f"level{i}.faces"] for i in range(levels)),
            upsampling=tuple(matrix(f"upsampling{i}") for i in range(levels - 1)),
            regressors={
                key.split(".")[1]: matrix(key.removesuffix(".indices"))
                for key in data
                if key.startswith("regressor.") and key.endswith(".indices")
            },
            licence=str(data["licence"]),
            rest_joints={key.removeprefix("rest."): data[key] for key in data if key.startswith("rest.")},
        )
        template._check()
        return template

    def _check_kinds(self) -> None:
        """Raise ValueError for a number of another kind, or a weight that is not finite."""
        matrices = [*self.upsampling, *self.regressors.values()]
        for weights in (*(m.weights for m in matrices), *self.rest_joints.values()):
            if weights.dtype.kind != "f" or not np.isfinite(weights).all():
                raise ValueError(f"weights and rest joints must be finite floating-point numbers, got {weights.dtype}")
        for indices in (self.faces, *self.level_vertices, *self.level_faces, *(m.indices for m in matrices)):
            if indices.dtype.kind not in "iu":
                raise ValueError(f"indices must be integers, got {indices.dtype}")
        for triangles in (self.faces, *self.level_faces):
            if triangles.ndim != 2 or triangles.shape[1] != 3:
                raise ValueError(f"faces must be (F, 3), got {triangles.shape}")

    def _check(self) -> None:
        """Raise ValueError unless all indices and shapes agree with each other."""
        self._check_kinds()
        count = len(self.vertices)
        if self.vertices.shape != (count, 3) or self.vertices.dtype.kind != "f" or not np.isfinite(self.vertices).all():
            raise ValueError(f"vertices must be finite and (V, 3), got {self.vertices.shape}")
        if not self.level_sizes or self.level_sizes[-1] != count:
            raise ValueError(f"the last level must be the full mesh of {count} vertices, levels are {self.level_sizes}")
        columns = {
            f"upsampling{i}": (m, n)
            for i, (m, n) in enumerate(zip(self.upsampling, self.level_sizes[:-1], strict=True))
        }
        columns |= {f"regressor {name}": (m, count) for name, m in self.regressors.items()}
        for name, (matrix, limit) in columns.items():
            if matrix.indices.shape != matrix.weights.shape or matrix.indices.ndim != 2:
                raise ValueError(f"{name}: indices {matrix.indices.shape} and weights {matrix.weights.shape} differ")
            _check_indices(name, matrix.indices, limit)
        _check_indices("faces", self.faces, count)
        for i, (vertices, faces) in enumerate(zip(self.level_vertices, self.level_faces, strict=True)):
            _check_indices(f"level {i} vertices", vertices, count)
            _check_indices(f"level {i} faces", faces, len(vertices))
        for i, step in enumerate(self.upsampling):
            if len(step.indices) != self.level_sizes[i + 1]:
                raise ValueError(f"upsampling {i} makes {len(step.indices)} vertices, not {self.level_sizes[i + 1]}")
        for name, regressor in self.regressors.items():
            if len(regressor.indices) != len(joint_set(name)):
                raise ValueError(f"regressor {name} has {len(regressor.indices)} rows, not {len(joint_set(name))}")
        for name, joints in self.rest_joints.items():
            shape = (len(joint_set(name)), 3)
            if joints.shape != shape or not np.isfinite(joints).all():
                raise ValueError(f"rest joints {name} must be finite and {shape}, got {joints.shape}")


def _check_indices(name: str, indices: NDArray[np.integer], limit: int) -> None:
    if indices.size and (indices.min() < 0 or indices.max() >= limit):
        raise ValueError(f"{name} point outside 0..{limit - 1}")
