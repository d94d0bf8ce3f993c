"""Output files of long work, tried before it begins."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from metro_edge.errors import UserError
from metro_edge.files import replacing


class _EnoughError(Exception):
    """Ends the attempt before a file takes its place."""


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise UserError when a file could not be written at `path`; leaves nothing there, and an older file as it is."""
    target = Path(path)
    if target.is_dir():
        raise UserError(f"cannot write {target}: a folder is in the way")
    with contextlib.suppress(_EnoughError), replacing(target):
        raise _EnoughError
