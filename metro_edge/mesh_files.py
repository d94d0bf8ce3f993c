"""Mesh files: Wavefront OBJ and binary glTF 2.0 (GLB), both in metres and y up.

The camera frame (x right, y down, z away) becomes y up by a half turn about x, (x, -y, -z): the body stands
upright and faces the viewer as it faced the camera, and triangles keep their outside.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.files import write_bytes
from metro_edge.raster import vertex_normals

CLAY = (0.55, 0.68, 0.86)  # linear RGB base colour
_GLTF_MAGIC, _JSON_CHUNK, _BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
_FLOAT, _UINT32, _ARRAY_BUFFER, _ELEMENT_BUFFER = 5126, 5125, 34962, 34963


def write_obj(path: str | os.PathLike[str], vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> None:
    """Write vertices (V, 3), metres in the camera frame, and faces (F, 3) as OBJ; raises UserError."""
    points, triangles = _checked(vertices, faces)
    lines = ["# metres, y up"]
    lines += [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in points.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (triangles + 1).tolist()]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def write_glb(path: str | os.PathLike[str], vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> None:
    """Write vertices (V, 3), metres in the camera frame, and faces (F, 3) as GLB; raises UserError."""
    points, triangles = _checked(vertices, faces)
    # Normals make viewers shade smoothly. A vertex without faces has none, and glTF wants unit ones.
    normals = vertex_normals(points, triangles)
    normals[~normals.any(axis=1)] = (0.0, 0.0, 1.0)
    blocks = [points.tobytes(), normals.tobytes(), triangles.astype("<u4").tobytes()]
    targets = [_ARRAY_BUFFER, _ARRAY_BUFFER, _ELEMENT_BUFFER]
    starts = np.cumsum([0, *(len(block) for block in blocks)]).tolist()
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "metro-edge"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "body"}],
        "meshes": [
            {"primitives": [{"attributes": {"POSITION": 0, "NORMAL": 1}, "indices": 2, "material": 0}]},
        ],
        "materials": [
            {
                "pbrMetallicRoughness": {
                    "baseColorFactor": [*CLAY, 1.0],
                    "metallicFactor": 0.0,
                    "roughnessFactor": 0.7,
                },
            },
        ],
        "buffers": [{"byteLength": starts[-1]}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": len(block), "target": target}
            for start, block, target in zip(starts, blocks, targets, strict=False)
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": _FLOAT,
                "count": len(points),
                "type": "VEC3",
                "min": points.min(axis=0).tolist(),
                "max": points.max(axis=0).tolist(),
            },
            {"bufferView": 1, "componentType": _FLOAT, "count": len(points), "type": "VEC3"},
            {"bufferView": 2, "componentType": _UINT32, "count": triangles.size, "type": "SCALAR"},
        ],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    # Chunks are padded to four bytes, JSON with spaces; the binary one is made of four-byte numbers.
    text += b" " * (-len(text) % 4)
    binary = b"".join(blocks)
    header = struct.pack("<III", _GLTF_MAGIC, 2, 12 + 8 + len(text) + 8 + len(binary))
    chunks = (_chunk(_JSON_CHUNK, text), _chunk(_BIN_CHUNK, binary))
    write_bytes(path, b"".join((header, *chunks)))


def _chunk(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", len(data), kind) + data


def _checked(
    vertices: NDArray[np.floating], faces: NDArray[np.integer]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the mesh in the y-up frame; raises UserError when it is not one."""
    points = np.array(vertices, dtype="<f4")
    triangles = np.asarray(faces, np.int64)
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
        raise UserError(f"vertices must be (V, 3) and finite, got shape {points.shape}")
    if triangles.ndim != 2 or triangles.shape[1] != 3 or not len(triangles):
        raise UserError(f"faces must be (F, 3), at least one, got shape {triangles.shape}")
    if triangles.min() < 0 or triangles.max() >= len(points):
        raise UserError(f"faces must point to vertices 0..{len(points) - 1}")
    points[:, 1:] *= -1.0
    return points, triangles
