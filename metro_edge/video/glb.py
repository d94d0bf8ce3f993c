"""Animated GLB: the meshes of a clip as one glTF 2.0 file that any viewer plays.

A network's meshes have no bones, so a person's motion is written as morph targets, in pieces of PIECE frames: within a
piece the mesh goes from each frame's shape to the next; a piece is shown by its node's scale, 1 for its time and 0
else. The file grows by 12 bytes a vertex and frame. A level of the mesh of some thousand vertices is taken.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.files import replacing
from metro_edge.mesh_files import CLAY
from metro_edge.template import BodyTemplate
from metro_edge.video.sinks import Sink
from metro_edge.video.spool import Spool
from metro_edge.video.stream import FrameResult
from metro_edge.video.writing import written

PIECE = 24  # frames
MOST_VERTICES = 2500
MAX_BYTES = 3_500_000_000  # glTF's lengths are 32-bit numbers
FLOAT, UINT32 = 5126, 5125
ARRAY_BUFFER, ELEMENT_BUFFER = 34962, 34963


def drawing_level(template: BodyTemplate, most: int = MOST_VERTICES) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return vertices (N,) of the full mesh and faces (F, 3) over them: its finest level of up to `most` vertices.

    The full mesh where no level with faces is as small.
    """
    fitting = [
        (vertices, faces)
        for vertices, faces in zip(template.level_vertices, template.level_faces, strict=True)
        if len(faces) and len(vertices) <= most
    ]
    return fitting[-1] if fitting else (template.level_vertices[-1], template.faces)


class GlbFile(Sink):
    """The people's meshes over time, in the ground's frame: metres, y up, the floor at 0."""

    def __init__(self, path: str | os.PathLike[str], template: BodyTemplate) -> None:
        """Check that the folder can be written."""
        self.path, self.notes = Path(path), []
        self._vertices, self._faces = drawing_level(template)
        self._spool = Spool(self.path.parent, (len(self._vertices), 3))
        self._seen: dict[int, list[tuple[float, int, int]]] = {}  # identity -> (time, frame's number, row)
        self._ground = np.eye(4)
        self._frames, self._start_s, self._full = 0, 0.0, False

    def write(self, result: FrameResult) -> None:
        """Keep the frame's meshes."""
        if not self._frames:
            self._start_s = result.time_s
        self._ground = result.ground
        for person in result.people:
            if not person.body.has_mesh:
                raise UserError("an animated GLB needs meshes, and this bundle's network gives joints alone")
            if self._spool.rows * 12 * len(self._vertices) > MAX_BYTES:
                self._say_full()
                break
            placed = person.body.vertices[self._vertices] + person.body.translation
            row = (result.time_s - self._start_s, self._frames, self._spool.rows)
            self._seen.setdefault(person.identity, []).append(row)
            self._spool.append(placed)
        self._frames += 1

    def _say_full(self) -> None:
        if not self._full:
            self.notes.append(f"{self.path} ends before the source does: a GLB holds 4 GB at most")
        self._full = True

    @property
    def paths(self) -> list[Path]:
        """The file, if somebody was seen."""
        return super().paths if self._seen else []

    def close(self, complete: bool = True) -> None:
        """Write the file; raises UserError when it cannot be written."""
        assert self.path is not None
        try:
            if not self._seen:
                self.notes.append(f"nobody was seen: no {self.path} was written")
                return
            with written(self.path), replacing(self.path) as partial, open(partial, "wb") as file:
                _Document(self._spool, self._faces, self._ground).write(file, self._seen)
        finally:
            self.discard()

    def discard(self) -> None:
        """Free what waits on the disk."""
        self._spool.close()


class _Document:
    """Puts the glTF together: first all sizes and the JSON, then the numbers, piece by piece."""

    def __init__(self, spool: Spool, faces: NDArray[np.integer], ground: NDArray[np.float64]) -> None:
        self.spool, self.faces = spool, np.ascontiguousarray(faces, "<u4")
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []
        self.blocks: list[Any] = []  # bytes, or (row, base row) of the spool
        self.length = 0
        self.meshes: list[dict[str, Any]] = []
        matrix = [float(value) for value in ground.T.ravel()]  # column by column
        self.nodes: list[dict[str, Any]] = [{"name": "ground", "matrix": matrix, "children": []}]
        self.samplers: list[dict[str, Any]] = []
        self.channels: list[dict[str, Any]] = []

    def write(self, file: Any, seen: dict[int, list[tuple[float, int, int]]]) -> None:
        faces = self._accessor(self.faces.tobytes(), UINT32, self.faces.size, "SCALAR", ELEMENT_BUFFER)
        for identity, rows in sorted(seen.items()):
            for piece in _pieces(rows):
                self._add_piece(identity, piece, faces)
        text = json.dumps(self._json(), separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self.length
        file.write(struct.pack("<III", 0x46546C67, 2, total))
        file.write(struct.pack("<II", len(text), 0x4E4F534A) + text)
        file.write(struct.pack("<II", self.length, 0x004E4942))
        for block in self.blocks:
            file.write(block if isinstance(block, bytes) else self._points(*block).tobytes())

    def _json(self) -> dict[str, Any]:
        material = {"baseColorFactor": [*CLAY, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7}
        return {
            "asset": {"version": "2.0", "generator": "metro-edge"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": self.nodes,
            "meshes": self.meshes,
            "materials": [{"pbrMetallicRoughness": material, "doubleSided": True}],
            "animations": [{"name": "clip", "samplers": self.samplers, "channels": self.channels}],
            "buffers": [{"byteLength": self.length}],
            "bufferViews": self.views,
            "accessors": self.accessors,
        }

    def _add_piece(self, identity: int, piece: Sequence[tuple[float, int, int]], faces: int) -> None:
        base = piece[0][2]
        targets = [{"POSITION": self._positions(row, base)} for _, _, row in piece[1:]]
        attributes = {"POSITION": self._positions(base, -1)}
        primitive: dict[str, Any] = {"attributes": attributes, "indices": faces, "material": 0}
        mesh: dict[str, Any] = {"primitives": [primitive]}
        # Viewers that do not animate show the beginning.
        at_rest = [1.0 if piece[0][0] <= 0 else 0.0] * 3
        node: dict[str, Any] = {"mesh": len(self.meshes), "name": f"person{identity}", "scale": at_rest}
        number = len(self.nodes)
        times = [time_s for time_s, _, _ in piece]
        if targets:
            primitive["targets"] = targets
            mesh["weights"] = [0.0] * len(targets)
            weights = np.vstack([np.zeros(len(targets)), np.eye(len(targets))])
            self._channel(number, "weights", times, weights, "LINEAR")
        end_s = times[-1] if len(times) > 1 else times[0] + 1.0 / 25.0
        keys = [times[0], end_s] if times[0] <= 0 else [0.0, times[0], end_s]
        shown = [1.0, 0.0] if times[0] <= 0 else [0.0, 1.0, 0.0]
        self._channel(number, "scale", keys, np.repeat(shown, 3).reshape(-1, 3), "STEP")
        self.meshes.append(mesh)
        self.nodes.append(node)
        self.nodes[0]["children"].append(number)

    def _channel(self, node: int, path: str, times: Sequence[float], values: Any, kind: str) -> None:
        keys = np.asarray(times, "<f4")
        table = np.asarray(values, "<f4")
        at = self._accessor(keys.tobytes(), FLOAT, len(keys), "SCALAR", None, [float(keys[0])], [float(keys[-1])])
        shape = ("VEC3", len(table)) if path == "scale" else ("SCALAR", table.size)
        out = self._accessor(table.tobytes(), FLOAT, shape[1], shape[0], None)
        self.channels.append({"sampler": len(self.samplers), "target": {"node": node, "path": path}})
        self.samplers.append({"input": at, "output": out, "interpolation": kind})

    def _positions(self, row: int, base: int) -> int:
        points = self._points(row, base)
        low, high = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return self._accessor((row, base), FLOAT, len(points), "VEC3", ARRAY_BUFFER, low, high, points.nbytes)

    def _points(self, row: int, base: int) -> NDArray[np.float32]:
        points: NDArray[np.float32] = self.spool.row(row)
        return points if base < 0 else points - self.spool.row(base)

    def _accessor(
        self, block: Any, kind: int, count: int, shape: str, target: int | None, low: Any = None, high: Any = None,
        size: int | None = None,
    ) -> int:  # fmt: skip
        size = len(block) if size is None else size
        view: dict[str, Any] = {"buffer": 0, "byteOffset": self.length, "byteLength": size}
        self.views.append(view if target is None else view | {"target": target})
        accessor: dict[str, Any] = {"componentType": kind, "count": count, "type": shape}
        accessor["bufferView"] = len(self.views) - 1
        if low is not None:
            accessor |= {"min": low, "max": high}
        self.accessors.append(accessor)
        self.blocks.append(block)
        self.length += size
        return len(self.accessors) - 1


def _pieces(rows: Sequence[tuple[float, int, int]]) -> list[list[tuple[float, int, int]]]:
    """Cut a person's rows where they were away, and into pieces whose last frame is the next one's first."""
    pieces: list[list[tuple[float, int, int]]] = [[rows[0]]]
    for before, row in pairwise(rows):
        if row[1] != before[1] + 1:
            pieces.append([row])
            continue
        pieces[-1].append(row)
        if len(pieces[-1]) > PIECE:
            pieces.append([row])
    # A last piece of the one frame that ends the piece before shows nothing new.
    return [p for n, p in enumerate(pieces) if len(p) > 1 or n == 0 or p[0] != pieces[n - 1][-1]]
