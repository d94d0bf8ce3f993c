"""metro-edge: 3D joints and a body mesh of every person in a picture, with METRO, on edge devices.

    from metro_edge import MeshEstimator
    from metro_edge.preprocess import read_picture

    with MeshEstimator.from_bundle() as estimator:
        bodies = estimator(read_picture("person.jpg"))

    for frame in metro_edge.stream("clip.mp4"):
        print(frame.time_s, frame.identities, frame.bodies)

The names below are imported when they are first used, so that importing the package loads no engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metro_edge.body import Body
    from metro_edge.bundle import Bundle
    from metro_edge.errors import UserError
    from metro_edge.estimator import MeshEstimator
    from metro_edge.frames import HostFrame
    from metro_edge.spec import ModelSpec
    from metro_edge.video.stream import stream

    __version__: str

__all__ = ["Body", "Bundle", "HostFrame", "MeshEstimator", "ModelSpec", "UserError", "__version__", "stream"]

_HOMES = {
    "Body": "metro_edge.body",
    "Bundle": "metro_edge.bundle",
    "HostFrame": "metro_edge.frames",
    "MeshEstimator": "metro_edge.estimator",
    "ModelSpec": "metro_edge.spec",
    "UserError": "metro_edge.errors",
    "stream": "metro_edge.video.stream",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'metro_edge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("metro-edge")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
