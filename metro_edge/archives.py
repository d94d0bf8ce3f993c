"""Zip archives from strangers: opened without a list of entries that fills the memory, or two entries of one name."""

from __future__ import annotations

import io
import lzma
import os
import struct
import zipfile
import zlib
from pathlib import Path

MAX_RATIO = 100  # of unpacked to packed bytes; weights pack by less than 2, deflate by 1032 at most
FREE_BYTES = 1 << 20  # may pack as they like
MAX_DIRECTORY_BYTES = 1 << 20  # some twenty thousand entries; a bundle has six, its body a few dozen

# What zipfile raises over damaged or foreign archives, opening them or reading entries.
ZIP_ERRORS = (
    OSError, ValueError, RuntimeError, NotImplementedError, EOFError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip


def open_archive(source: Path | io.BytesIO) -> zipfile.ZipFile:
    """Open a zip archive for reading.

    Raises:
        zipfile.BadZipFile: no zip, a list of entries beyond MAX_DIRECTORY_BYTES, or two entries of one name, of which
            different readers take different ones.
        ZIP_ERRORS: the file cannot be read.
    """
    data: io.BufferedIOBase = source if isinstance(source, io.BytesIO) else open(source, "rb")  # noqa: SIM115
    bounded = _Bounded(data)
    try:
        archive = zipfile.ZipFile(bounded)
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise zipfile.BadZipFile("two of its entries have one name")
    except BaseException:
        bounded.close()
        raise
    # ZipFile leaves files that it was given open, unless told that it opened them.
    archive._filePassed = 0  # type: ignore[attr-defined]
    return archive


def check_ratio(entry: zipfile.ZipInfo) -> None:
    """Raise zipfile.BadZipFile for an entry of more than FREE_BYTES that unpacks to over MAX_RATIO times its size.

    A reader gets no more bytes than the entry claims, whatever is packed in it.
    """
    if entry.file_size > max(FREE_BYTES, MAX_RATIO * entry.compress_size):
        raise zipfile.BadZipFile(f"{entry.compress_size} packed bytes claim to be {entry.file_size}")


class _Bounded(io.RawIOBase):
    """A file that refuses to give more than MAX_DIRECTORY_BYTES at once.

    ZipFile reads the whole list of entries in one call, and entries in small pieces; so what it will read is known
    whatever it takes for the archive's end.
    """

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._file.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > MAX_DIRECTORY_BYTES + (1 << 16):
            raise zipfile.BadZipFile(f"its list of entries takes {wanted} bytes")
        return self._file.read(wanted)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
