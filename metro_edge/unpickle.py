"""Reading the pickles of others without running them: numbers, containers, NumPy arrays, SciPy sparse matrices, chumpy.

SMPL, MANO and METRO distribute data as Python 2 pickles. A pickle is a program that names functions to call, and the
usual loaders call them. Here each name is looked up in a closed table of stand-ins below, none of which touches more
than the values in the file; any other name stops the reading. NumPy's own unpickling is not used either, as it trusts
the flags and fields of a data type that the file describes.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.files import reason

MAX_DENSE = 2**28  # entries: a file may claim any shape for a few stored numbers
_DTYPE = re.compile(r"[<>=|]?([?]|[biufc]\d{1,2}|[SU]\d{0,4}|O8?)")


class _Refused(pickle.UnpicklingError):
    """A pickle that needs something that is not admitted."""


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
    except _Refused as error:
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
        raise _Refused(f"its .npy format {version} is not supported")
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
    return _resolved(_Unpickler(stream, encoding="latin1").load(), {})


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(
                f"it needs {module}.{name}; only plain containers, NumPy arrays, SciPy sparse matrices (csr, csc, "
                f"coo) and chumpy arrays are read. A file from elsewhere may be an attack: get it from its authors"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to objects outside the file")


# --- Stand-ins: what a file may ask for. Each overrides __setstate__, so that no attribute can be set from a file. ---


class _Function:
    """A function that a pickle may call."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it changes a function")


class _Object:
    """`object`, only as the base that protocols 0 and 1 name."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it changes a class")


class _ArrayType(_Object):
    """`numpy.ndarray`, only as the type that `_reconstruct` is asked for."""

    __slots__ = ()


class _DType:
    """`numpy.dtype` of numbers, strings and objects."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any = None, *_: Any) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        match = _DTYPE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise _Refused(f"it needs the data type {text!r}; only numbers, strings and objects are read")
        self.dtype = np.dtype(object if match[1].startswith("O") else match[0])

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if any(part is not None for part in state[2:5]):  # subarray, names, fields
            raise _Refused("it needs a structured data type; only numbers, strings and objects are read")
        if order in ("<", ">"):
            if self.dtype.kind in "SU" and len(state) > 5 and 0 <= state[5] <= 2**16:
                self.dtype = np.dtype(f"{order}{self.dtype.kind}{state[5] // (4 if self.dtype.kind == 'U' else 1)}")
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")


class _Array:
    """An array being read; `_resolved` puts `value` in its place."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, _DType):
            raise _Refused("it holds an array without a data type")
        shape = tuple(int(n) for n in shape)
        if isinstance(data, list):
            if dtype.dtype != object:
                raise _Refused("it holds a list where numbers belong")
            flat: NDArray[Any] = _objects(data)
        else:
            flat = _numbers(data, dtype)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _objects(items: list[Any]) -> NDArray[Any]:
    array: NDArray[Any] = np.empty(len(items), object)
    for i, item in enumerate(items):  # one by one: lists assigned to a slice would become rows
        array[i] = item
    return array


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _numbers(data: Any, dtype: _DType) -> NDArray[Any]:
    if dtype.dtype == object:
        raise _Refused("it holds bytes where objects belong")
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    return np.frombuffer(raw, dtype.dtype).astype(dtype.dtype.newbyteorder("="))


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.__setstate__((shape, dtype, order == "F", bytes(data)))
    return array


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, _DType):
        raise _Refused("it holds a number without a data type")
    return _numbers(data, dtype)[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, by which Python 3 writes bytes in protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _rebuild(cls: Any, *_: Any) -> Any:
    """`copy_reg._reconstructor`, by which protocols 0 and 1 make objects."""
    if not (isinstance(cls, type) and issubclass(cls, (_Sparse, _Chumpy))):
        raise _Refused("it makes an object of a class that is not admitted")
    return cls()


class _Sparse:
    """A SciPy sparse matrix being read."""

    format = ""
    state: Mapping[Any, Any] = MappingProxyType({})

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        state = state[0] if isinstance(state, tuple) else state
        if not isinstance(state, dict):
            raise _Refused("it holds a sparse matrix of an unknown form")
        self.state = state

    def resolved(self, memo: dict[int, Any]) -> SparseMatrixData:
        state = {_text(key): value for key, value in self.state.items()}
        shape = state.get("_shape", state.get("shape"))
        data = _resolved(state.get("data"), memo)
        if self.format == "coo":
            rows, columns = _resolved(state.get("coords", (state.get("row"), state.get("col"))), memo)
        else:
            pointers, minor = (_resolved(state.get(key), memo) for key in ("indptr", "indices"))
            if not (isinstance(pointers, np.ndarray) and isinstance(minor, np.ndarray)):
                raise _Refused("it holds an incomplete sparse matrix")
            major = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
            rows, columns = (major, minor) if self.format == "csr" else (minor, major)
        if not all(isinstance(part, np.ndarray) for part in (rows, columns, data)) or not isinstance(shape, tuple):
            raise _Refused("it holds an incomplete sparse matrix")
        return SparseMatrixData((int(shape[0]), int(shape[1])), rows, columns, data)


class _Csr(_Sparse):
    format = "csr"


class _Csc(_Sparse):
    format = "csc"


class _Coo(_Sparse):
    format = "coo"


class _Chumpy:
    """A chumpy object being read: an array under wrappers."""

    state: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise _Refused("it holds a chumpy object of an unknown form")
        self.state = {_text(key): value for key, value in state.items()}

    def _part(self, name: str, memo: dict[int, Any]) -> NDArray[Any]:
        if name not in self.state:
            raise _Refused(f"it holds a chumpy object without its {name!r}")
        return np.asarray(_resolved(self.state[name], memo))


class _Ch(_Chumpy):
    """`chumpy.ch.Ch`: the array `x`."""

    def resolved(self, memo: dict[int, Any]) -> NDArray[Any]:
        return self._part("x", memo)


class _Select(_Chumpy):
    """`chumpy.reordering.Select`: entries `idxs` of the flattened `a`, in the shape `preferred_shape`."""

    def resolved(self, memo: dict[int, Any]) -> NDArray[Any]:
        selected: NDArray[Any] = self._part("a", memo).ravel()[self._part("idxs", memo).astype(np.intp)]
        shape = self.state.get("preferred_shape")
        return selected if shape is None else selected.reshape(tuple(int(n) for n in shape))


@dataclass(frozen=True, eq=False)
class SparseMatrixData:
    """A sparse matrix as it was stored; entries in the same place add up.

    Attributes:
        shape: (R, C).
        rows, columns, values: (N,) of each stored entry.
    """

    shape: tuple[int, int]
    rows: NDArray[np.integer]
    columns: NDArray[np.integer]
    values: NDArray[Any]

    def __post_init__(self) -> None:
        """Refuse entries outside the matrix; `load` tells users."""
        if not (self.rows.shape == self.columns.shape == self.values.shape == (len(self.values),)):
            raise _Refused("it holds a sparse matrix whose parts differ in length")
        for index, limit in ((self.rows, self.shape[0]), (self.columns, self.shape[1])):
            if index.dtype.kind not in "iu" or (index.size and (index.min() < 0 or index.max() >= limit)):
                raise _Refused(f"it holds a sparse matrix with entries outside its shape {self.shape}")

    def toarray(self) -> NDArray[Any]:
        """Return the dense (R, C) array; raises UserError for one of unreasonable size."""
        if self.shape[0] * self.shape[1] > MAX_DENSE:
            raise UserError(f"a sparse matrix of shape {self.shape} is too large to be a body model's")
        dense = np.zeros(self.shape, self.values.dtype)
        np.add.at(dense, (self.rows, self.columns), self.values)
        return dense


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _DType,
    ("chumpy", "Ch"): _Ch,
    ("chumpy.ch", "Ch"): _Ch,
    ("chumpy.reordering", "Select"): _Select,
    ("_codecs", "encode"): _Function(_encode),
    ("collections", "OrderedDict"): OrderedDict,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ADMITTED[_module, "_reconstruct"] = _Function(_reconstruct)
    _ADMITTED[_module, "scalar"] = _Function(_scalar)
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _ADMITTED[_module, "_frombuffer"] = _Function(_from_buffer)
for _module in ("builtins", "__builtin__"):
    _ADMITTED |= {(_module, kind.__name__): kind for kind in (set, frozenset, bytes, bytearray, complex)}
    _ADMITTED[_module, "object"] = _Object
for _module in ("copyreg", "copy_reg"):
    _ADMITTED[_module, "_reconstructor"] = _Function(_rebuild)
for _kind, _cls in (("csr", _Csr), ("csc", _Csc), ("coo", _Coo)):
    for _module in (f"scipy.sparse.{_kind}", f"scipy.sparse._{_kind}"):
        _ADMITTED |= {(_module, f"{_kind}_{suffix}"): _cls for suffix in ("matrix", "array")}


def _resolved(value: Any, memo: dict[int, Any]) -> Any:
    """Return `value` with every stand-in replaced by what it stands for; `memo` keeps what was shared shared."""
    if isinstance(value, (str, bytes, int, float, complex, type(None))):
        return value
    if id(value) in memo:
        return memo[id(value)][1]
    if isinstance(value, _Array):
        result: Any = value.value
        if result.dtype == object:
            result = _objects([_resolved(item, memo) for item in result.flat]).reshape(result.shape)
    elif isinstance(value, (_Sparse, _Ch, _Select)):
        memo[id(value)] = (value, None)  # a chumpy object that contains itself has no value
        result = value.resolved(memo)
    elif isinstance(value, dict):
        result = type(value)()
        memo[id(value)] = (value, result)
        result.update((_resolved(k, memo), _resolved(v, memo)) for k, v in value.items())
    elif isinstance(value, list):
        result = []
        memo[id(value)] = (value, result)
        result.extend(_resolved(item, memo) for item in value)
    elif isinstance(value, (tuple, set, frozenset)):
        result = type(value)(_resolved(item, memo) for item in value)
    elif isinstance(value, (_Function, _DType, _Object, _Chumpy, type)):
        raise _Refused("it holds a bare class or function where data belongs")
    else:
        result = value
    memo[id(value)] = (value, result)  # with the value, so that its id is not used again
    return result
