"""Reading the pickles of others without running them: numbers, containers, NumPy arrays, SciPy sparse matrices, chumpy.

SMPL, MANO and METRO distribute data as Python 2 pickles. A pickle is a program that names functions to call, and the
usual loaders call them. Here each name is looked up in a closed table of stand-ins (metro_edge.unpickle_objects), none
of which touches more than the values in the file; any other name stops the reading. NumPy's own unpickling is not used
either, as it trusts the flags and fields of a data type that the file describes.
"""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from metro_edge.errors import UserError
from metro_edge.files import reason
from metro_edge.unpickle_objects import ADMITTED, RefusedError, SparseMatrixData, resolved

__all__ = ["SparseMatrixData", "load"]


def load(path: str | os.PathLike[str]) -> Any:
    """Read a pickle, a .npy or a .npz that may hold pickled objects.

    Returns: what was pickled, with plain containers, NumPy arrays and scalars, `SparseMatrixData` for SciPy sparse
        matrices and arrays for chumpy objects; of a .npy its array, of a .npz a dictionary of its arrays. Object
        arrays stay such, those of one element without dimensions become their element.

    Raises:
        UserError: the file is missing, cut short, damaged, or names a class or function other than these.
    """
    file = Path(path)
    try:
        with open(file, "rb") as stream:
            start = stream.read(6)
            stream.seek(0)
            if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
                return _load_npz(stream)
            return _load_npy(stream) if start == b"\x93NUMPY" else _load_pickle(stream)
    except FileNotFoundError:
        raise UserError(f"no file at {file}") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason(error)}") from None
    except RefusedError as error:
        raise UserError(f"{file} was not read: {error}") from None
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file} is cut short or damaged: {error}") from None
    except MemoryError:
        raise UserError(f"{file} describes more data than fits into memory") from None
    except RecursionError:
        raise UserError(f"{file} nests its data too deeply") from None
    except Exception as error:  # a malformed pickle can raise anything
        cut = "truncated" in str(error) or "Ran out of input" in str(error)
        what = "is cut short" if cut else "is not a readable pickle or NumPy file"
        raise UserError(f"{file} {what}: {error}") from None


def _load_npz(stream: IO[bytes]) -> dict[str, Any]:
    with zipfile.ZipFile(stream) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        values = {}
        for name in names:
            with archive.open(name) as member:
                values[name.removesuffix(".npy")] = _load_npy(member)
        return values


def _load_npy(stream: IO[bytes]) -> Any:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise RefusedError(f"its .npy format {version} is not supported")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if not dtype.hasobject:
        count = int(np.prod(shape, dtype=np.int64))
        data = stream.read(count * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise EOFError(f"{len(data)} of {count * dtype.itemsize} bytes of an array")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()
    value = _load_pickle(stream)
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value


def _load_pickle(stream: IO[bytes]) -> Any:
    # latin1 gives Python 2's byte strings back byte for byte, as characters.
    return resolved(_Unpickler(stream, encoding="latin1").load(), {})


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise RefusedError(
                f"it needs {module}.{name}; only plain containers, NumPy arrays, SciPy sparse matrices (csr, csc, "
                f"coo) and chumpy arrays are read. A file from elsewhere may be an attack: get it from its authors"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedError("it refers to objects outside the file")
