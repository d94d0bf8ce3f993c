"""Rows of numbers that wait on the disk, so that a file whose header must know them all costs no memory."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from metro_edge.errors import UserError
from metro_edge.files import reason
from metro_edge.video.writing import written

CHUNK_BYTES = 1 << 20


class Spool:
    """An array (rows, *shape) that grows in a nameless temporary file.

    Attributes:
        shape, dtype: of a row.
        rows: how many there are.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: DTypeLike = "<f4") -> None:
        self.folder, self.shape, self.dtype, self.rows = folder, shape, np.dtype(dtype), 0
        self._row_bytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise UserError(f"cannot write into folder {folder}: {reason(error)}") from None

    def append(self, row: Any) -> None:
        """Add a row."""
        array = np.asarray(row, self.dtype, order="C")
        if array.shape != self.shape:
            raise UserError(f"a row of shape {self.shape} was expected, got {array.shape}")
        self._write(array.tobytes())
        self.rows += 1

    def row(self, number: int) -> NDArray[Any]:
        """Return row `number`."""
        self._file.seek(number * self._row_bytes)
        data = self._file.read(self._row_bytes)
        return np.frombuffer(data, self.dtype).reshape(self.shape)

    def blocks(self) -> Iterator[bytes]:
        """Yield all rows' bytes in order, about a megabyte at a time."""
        self._file.seek(0)
        while block := self._file.read(CHUNK_BYTES):
            yield block

    def save_into(self, archive: zipfile.ZipFile, name: str) -> None:
        """Write the array as a member NAME.npy of an .npz."""
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.shape)}
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for block in self.blocks():
                member.write(block)

    def close(self) -> None:
        """Free the disk's space."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        with written(self.folder):
            self._file.seek(0, os.SEEK_END)
            self._file.write(data)
            self._file.flush()
