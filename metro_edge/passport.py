"""passport.json: where a bundle comes from and what it loses. It is a stranger's text until it is checked here.

`metro_edge.bundle` and docs/bundles.md document its keys. All that the package reads is checked for its kind; what else
a maker adds is carried along untouched.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from metro_edge.errors import BundleError
from metro_edge.files import json_bytes

SCHEMA_VERSION = 1
PASSPORT_FILE = "passport.json"
ACCURACY_KEYS = ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "moved_mm")
MENDING = "convert the checkpoint again or fetch the bundle again"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def passport_bytes(passport: Mapping[str, Any]) -> bytes:
    """Return the content of passport.json; raises BundleError for what JSON cannot hold."""
    try:
        return json_bytes(passport)
    except (TypeError, ValueError) as error:
        raise BundleError(f"the passport holds what JSON cannot: {error}") from None


def parse_passport(content: bytes, name: str, needed: Collection[str], allowed: Collection[str]) -> dict[str, Any]:
    """Return passport.json as a dictionary.

    Args:
        content: of the file.
        name: of the bundle, for messages.
        needed: files that every bundle has; it has one more at least.
        allowed: all the files that a bundle may have.

    Raises:
        BundleError: no JSON object, another schema version, or not complete.
    """
    try:
        passport = json.loads(content, parse_constant=_no_constant)
        version = passport.get("schema_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"bundle {name}: {PASSPORT_FILE} is not a JSON object ({error}); {MENDING}") from None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"bundle {name} has schema version {version!r}, this metro-edge reads {SCHEMA_VERSION}: "
            "convert the checkpoint again or install the metro-edge that made it"
        )
    try:
        _check_files(_object(passport, "files"), needed, allowed)
        _check_origin(passport)
        _check_measured(passport)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"bundle {name}: {PASSPORT_FILE} is not complete: {error}; {MENDING}") from None
    return dict(passport)


def _check_files(files: Mapping[str, Any], needed: Collection[str], allowed: Collection[str]) -> None:
    if not set(needed) < files.keys() <= set(allowed):
        raise ValueError(f"files must be {', '.join(needed)} and ONNX files, got {', '.join(sorted(files))}")
    for name, entry in files.items():
        if not isinstance(entry, dict) or not isinstance(sha256 := entry.get("sha256"), str):
            raise ValueError(f"{name} has no 'sha256'")
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"the 'sha256' of {name} must be 64 digits of 0-9 and a-f")
        if type(entry.get("bytes", 0)) is not int or entry.get("bytes", 0) < 0:
            raise ValueError(f"the 'bytes' of {name} must be a number of bytes")


def _check_origin(passport: Mapping[str, Any]) -> None:
    for key in ("checkpoint", "licences", "versions"):
        _object(passport, key)
    for key in ("name", "sha256"):
        if not isinstance(passport["checkpoint"].get(key), str):
            raise ValueError(f"checkpoint {key!r} must be text")
    for key in ("calibration", "folds"):
        if key in passport:
            _object(passport, key)
    for fold in _list(passport.get("folds", {}), "folds"):
        if not isinstance(fold, dict) or not isinstance(fold.get("name"), str):
            raise ValueError("each of 'folds' must have a 'name'")


def _check_measured(passport: Mapping[str, Any]) -> None:
    for key in ("accuracy", "verification"):
        if key not in passport:
            continue
        precisions = _object(passport, key).get("precisions", {})
        if not isinstance(precisions, dict):
            raise ValueError(f"'precisions' of {key!r} must be an object")
        for precision, values in precisions.items():
            if not isinstance(values, dict):
                raise ValueError(f"{key} of {precision} must be an object")
            for name, value in values.items():
                if name.endswith("_mm") and not _is_finite(value):
                    raise ValueError(f"{key} of {precision}: {name!r} must be a number")
            if key == "accuracy" and (missing := [name for name in ACCURACY_KEYS if name not in values]):
                raise ValueError(f"accuracy of {precision} lacks {missing[0]!r}")


def _object(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(value := values.get(key), dict):
        raise ValueError(f"{key!r} must be an object")
    return value


def _list(values: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(value := values.get(key, []), list):
        raise ValueError(f"{key!r} must be a list")
    return value


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
