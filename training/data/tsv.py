"""TSV files as METRO's data sets use them: rows of tab-separated fields, beside `NAME.lineidx` with their offsets.

A row is read by its offset, so a file of any size costs 8 bytes a row. Every row that is read is checked against the
index: it begins after a line's end and ends at the next row's beginning, which finds an index of another file.
Formats after metro/utils/tsv_file.py and tsv_file_ops.py of microsoft/MeshTransformer.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metro_edge.errors import UserError
from metro_edge.files import reason, replacing
from training.data.labelled import BadSampleError

Offsets = NDArray[np.int64]

CHUNK_BYTES = 1 << 24
SPOT_CHECKS = 16  # rows whose beginnings are looked at when a file is opened


def lineidx_path(path: Path) -> Path:
    """Return where the offsets of a TSV file are: `.tsv` replaced by `.lineidx`."""
    return path.with_suffix(".lineidx")


class TsvFile:
    """A TSV file, opened when it is first read, and anew in every process.

    Args:
        path: of the file; a missing .lineidx is made from the file, and stored beside it where that can be.

    Raises:
        UserError: a missing or unreadable file; an index that is damaged or belongs to another file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file, self._process = -1, 0
        try:
            self.size = self.path.stat().st_size
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {reason(error)}") from None
        self.offsets = _read_offsets(self.path, self.size)
        self._spot_check()

    def __len__(self) -> int:
        return len(self.offsets)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": -1}

    def row(self, index: int) -> list[bytes]:
        """Return the fields of a row, stripped of blanks; raises BadSampleError where file and index disagree."""
        if not 0 <= index < len(self):
            raise UserError(f"{self.path} has rows 0 to {len(self) - 1}, not {index}")
        begin = int(self.offsets[index])
        end = int(self.offsets[index + 1]) if index + 1 < len(self) else self.size
        # With the byte before, which ends the row before.
        data = self._read(max(begin - 1, 0), end)
        line = data[1:] if begin else data
        if begin and not data.startswith(b"\n"):
            raise self._stale(index, "does not begin where the index says")
        if not line.endswith(b"\n"):
            last = index + 1 == len(self)
            raise self._stale(index, "has no line end: the file is cut short" if last else "does not end there")
        if b"\n" in line[:-1]:
            raise self._stale(index, "is followed by lines that the index does not list")
        return [field.strip() for field in line.split(b"\t")]

    def key(self, index: int) -> str:
        """Return the first field of a row."""
        return self.row(index)[0].decode("utf-8", "replace")

    def _stale(self, index: int, what: str) -> BadSampleError:
        return BadSampleError(
            f"{self.path}:{index}: row {index} {what}; {lineidx_path(self.path).name} is stale or the file was cut: "
            "fetch the file again, or delete the .lineidx to have it made anew"
        )

    def _spot_check(self) -> None:
        """Look at the beginnings of some rows, and at the whole of the last: the index is of this very file."""
        for index in np.unique(np.linspace(1, len(self) - 1, SPOT_CHECKS).astype(np.int64)) if len(self) > 1 else ():
            begin = int(self.offsets[index])
            if self._read(begin - 1, begin) != b"\n":
                raise UserError(str(self._stale(int(index), "does not begin where the index says")))
        try:
            if len(self):
                self.row(len(self) - 1)
        except BadSampleError as error:
            raise UserError(str(error)) from None

    def _read(self, begin: int, end: int) -> bytes:
        try:
            if self._file < 0 or self._process != os.getpid():
                self._file, self._process = os.open(self.path, os.O_RDONLY), os.getpid()
            return os.pread(self._file, end - begin, begin)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {reason(error)}") from None

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0 and self._process == os.getpid():
            os.close(self._file)


def _read_offsets(path: Path, size: int) -> Offsets:
    index = lineidx_path(path)
    if not index.exists():
        offsets = _scan(path, size)
        with contextlib.suppress(UserError), replacing(index) as partial:  # the folder may be read-only
            partial.write_text("".join(f"{offset}\n" for offset in offsets))
        return offsets
    offsets = read_integers(index, 1)[:, 0].astype(np.int64)
    rising = bool((np.diff(offsets) > 0).all())
    if (len(offsets) == 0) != (size == 0) or (len(offsets) and (offsets[0] != 0 or not rising)):
        raise UserError(
            f"{index} holds no offsets of rows (0 first, then rising); delete it to have it made anew from {path.name}"
        )
    if len(offsets) and offsets[-1] >= size:
        row = int(np.searchsorted(offsets, size))
        raise UserError(
            f"{index} is stale, or {path.name} is cut short: it puts row {row} at byte {offsets[row]} of {size}"
        )
    return offsets


def _scan(path: Path, size: int) -> Offsets:
    parts, begin = [np.zeros(min(size, 1), np.int64)], 0
    with open(path, "rb") as file, tqdm(total=size, unit="B", unit_scale=True, desc=f"index {path.name}") as bar:
        while data := file.read(CHUNK_BYTES):
            parts.append(np.flatnonzero(np.frombuffer(data, np.uint8) == 10) + begin + 1)
            begin += len(data)
            bar.update(len(data))
    offsets = np.concatenate(parts)
    return offsets[offsets < size]


def read_integers(path: Path, columns: int) -> NDArray[np.int64]:
    """Return the whole numbers of a text file as (rows, columns); raises UserError for anything else."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    rows = text.count(b"\n") + (not text.endswith(b"\n") and bool(text))
    # Only then may a number be cut short unseen.
    values = np.zeros(0, np.int64)
    if text.strip(b"0123456789 \t\r\n") == b"" and text:
        values = np.fromstring(text, np.int64, sep=" ")
    if len(values) != rows * columns:
        wrong = next((k for k, line in enumerate(text.splitlines()) if not _integers(line, columns)), rows)
        raise UserError(f"{path}:{wrong}: expected {columns} whole number{'s' * (columns > 1)} a line")
    return values.reshape(rows, columns)


def _integers(line: bytes, columns: int) -> bool:
    fields = line.split()
    return len(fields) == columns and all(field.isdigit() for field in fields)


def write_tsv(path: str | os.PathLike[str], rows: Iterable[Sequence[str | bytes]]) -> int:
    """Write a TSV file and its .lineidx, both whole or not at all; returns the number of rows.

    Raises:
        UserError: a field with a tab or line end in it, a folder that cannot be written.
    """
    path, count, offset = Path(path), 0, 0
    with (
        replacing(path) as partial,
        replacing(lineidx_path(path)) as partial_index,
        open(partial, "wb") as file,
        open(partial_index, "w", encoding="ascii") as index,
    ):
        for row in rows:
            fields = [field.encode() if isinstance(field, str) else field for field in row]
            if any(b"\t" in field or b"\n" in field for field in fields):
                raise UserError(f"{path}:{count}: a field must not hold tabs or line ends")
            line = b"\t".join(fields) + b"\n"
            file.write(line)
            index.write(f"{offset}\n")
            offset += len(line)
            count += 1
    return count


def picture_of(row: list[bytes], where: str) -> NDArray[np.uint8]:
    """Return the picture (H, W, 3) uint8 BGR in a row's last column; raises BadSampleError naming `where`."""
    try:
        data = base64.b64decode(row[-1], validate=True)
    except (binascii.Error, ValueError):
        raise BadSampleError(f"{where}: the picture (last column) is not base64") from None
    if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data:  # may decode, the rest grey
        raise BadSampleError(f"{where}: the picture (last column, {len(data)} bytes of JPEG) is cut short")
    image = None
    if data:
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise BadSampleError(f"{where}: the picture (last column, {len(data)} bytes) does not decode")
    return np.asarray(image, np.uint8)


def size_of(row: list[bytes], where: str) -> tuple[int, int]:
    """Return height and width in a row of an `hw` file: a JSON list of one object, or "height width"."""
    text = row[-1].decode("utf-8", "replace")
    try:
        if text.startswith(("[", "{")):
            value = json.loads(text)
            value = value[0] if isinstance(value, list) else value
            return int(value["height"]), int(value["width"])
        height, width = text.split()
        return int(height), int(width)
    except (ValueError, KeyError, IndexError, TypeError):
        raise BadSampleError(f"{where}: expected height and width, got {text[:60]!r}") from None


def label_of(row: list[bytes], where: str) -> dict[str, Any]:
    """Return the label in a row of a `label` file: the first object of the JSON list in its second column."""
    try:
        value = json.loads(row[1])[0]
    except (ValueError, IndexError, KeyError, TypeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadSampleError(f"{where}: expected a JSON list with one label in the second column")
    return value


def rows_of(path: str | os.PathLike[str]) -> Iterator[list[bytes]]:
    """Give the fields of every row of a TSV file, one after another."""
    file = TsvFile(path)
    for index in range(len(file)):
        yield file.row(index)
