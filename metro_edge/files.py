"""Writing files so that nothing half-written is ever left, and telling users plainly what went wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from metro_edge.errors import UserError


def reason(error: OSError) -> str:
    """Return the operating system's words for `error`, without number and path."""
    return error.strerror or str(error)


def kind_of_path(path: str | os.PathLike[str]) -> Literal["file", "folder", "other"] | None:
    """Return what is at `path`, links followed: other is a device or a pipe, None nothing.

    Raises UserError where the system refuses to say: a folder on the way that may not be looked into, or a name that
    is too long. `Path.is_dir` and its like raise OSError there.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot look at {path}: {reason(error)}; check its name and its folders' rights") from None
    except ValueError as error:  # a null character, or one that no file name can hold
        raise UserError(f"{str(path)!r} is not a file name: {error}") from None
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`, with its suffix; what is written there takes its place.

    After an exception nothing is left of it and an older file at `path` stays. Raises UserError when the
    folder cannot be written.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(suffix=target.suffix, prefix=f".{target.stem}.", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {target}: {reason(error)}") from None
    partial = Path(name)
    try:
        yield partial
        os.chmod(partial, 0o666 & ~_umask())  # mkstemp makes files that only their owner may read
        os.replace(partial, target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {reason(error)}") from None
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically; raises UserError when it cannot be written."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write indented JSON atomically; raises UserError when it cannot be written."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return indented UTF-8 JSON with a final newline; NaN and infinity, not JSON, raise ValueError.

    Bytes of a file name that are not UTF-8, lone surrogates in Python, become JSON's own escapes, such as \\udce9.
    """
    return (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder `path` if it is not there and check that files can be written; raises UserError."""
    if not os.fspath(path):  # Path makes the current folder of it
        raise UserError("the output folder has no name; write . for the current folder")
    folder = Path(path)
    missing = [p for p in (folder, *folder.parents) if kind_of_path(p) is None]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise UserError(f"cannot write into folder {folder}: {reason(error)}") from None
    return folder


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """Give a hidden temporary folder inside `parent`, removed at the end; raises UserError."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=parent))
    except OSError as error:
        raise UserError(f"cannot write into folder {parent}: {reason(error)}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sha256_of(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
