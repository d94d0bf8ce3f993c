"""What a search has measured so far, in a JSON Lines file: a search that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from metro_edge.archives import ZIP_ERRORS
from metro_edge.errors import UserError
from metro_edge.files import output_folder, reason, replacing

T = TypeVar("T")
FILE = "results.jsonl"


def key_of(*parts: Any) -> str:
    """Return a SHA-256 over anything JSON can hold, such as hashes of files and settings; order counts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_of(array: NDArray[Any] | None) -> str:
    """Return the SHA-256 of an array's type, shape and values; of None a word."""
    if array is None:
        return "none"
    values = np.ascontiguousarray(array)
    return hashlib.sha256(f"{values.dtype.str}{values.shape}".encode() + values.tobytes()).hexdigest()


class Store:
    """Results by key, each appended to the file as soon as it is known.

    Args:
        folder: made if need be; None keeps results in memory alone.

    Raises UserError when the folder cannot be used, or its file is not such a file.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else output_folder(folder) / FILE
        self._values: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Any:
        """Return the value of a key; raises KeyError."""
        return self._values[key]

    def put(self, key: str, value: Any) -> None:
        """Keep a value, on disk before this returns."""
        line = json.dumps({"key": key, "value": value}, allow_nan=False, separators=(",", ":"))
        if self.path is not None:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise UserError(f"cannot write {self.path}: {reason(error)}") from None
        self._values[key] = json.loads(line)["value"]

    def remember(self, key: str, make: Callable[[], T]) -> T:
        """Return the value of a key, made and kept first if it is not there."""
        if key not in self._values:
            self.put(key, make())
        return self._values[key]

    def remember_arrays(self, key: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """Return arrays by name, made first and kept in a file of their own if they are not there."""
        path = None if self.path is None else self.path.with_name(f"{key[:32]}.npz")
        if path is not None and key in self._values and path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    return {name: file[name] for name in file.files}
            except (*ZIP_ERRORS, TypeError, AttributeError):  # the last two of an array that is no archive
                pass  # damaged: made again
        made = make()
        if path is not None:
            with replacing(path) as partial:
                np.savez(partial, **made)  # type: ignore[arg-type]
            self.remember(key, lambda: path.name)
        return made

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from None
        lines = content.split(b"\n")
        # What follows the last line end is a line that a killed process had begun.
        begun = lines.pop()
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                self._values[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(
                    f"{path}, line {number}, is not a result of `python -m engines quantize`; choose another --work "
                    "folder or delete the file"
                ) from None
        if begun:
            with open(path, "r+b") as file:
                file.truncate(len(content) - len(begun))
