"""What a pickle may ask for: stand-ins that hold the values in the file and can do nothing else.

Each overrides __setstate__, so that no attribute can be set from a file. `metro_edge.unpickle` looks names up in
ADMITTED and lets `resolved` put values in the stand-ins' places.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError

MAX_DENSE = 2**28  # entries: a file may claim any shape for a few stored numbers
_DTYPE = re.compile(r"[<>=|]?([?]|[biufc]\d{1,2}|[SU]\d{0,4}|O8?)")


class RefusedError(pickle.UnpicklingError):
    """A pickle that needs something that is not admitted."""


class _Function:
    """A function that a pickle may call."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("it changes a function")


class _Object:
    """`object`, only as the base that protocols 0 and 1 name."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("it changes a class")


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
            raise RefusedError(f"it needs the data type {text!r}; only numbers, strings and objects are read")
        self.dtype = np.dtype(object if match[1].startswith("O") else match[0])

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if any(part is not None for part in state[2:5]):  # subarray, names, fields
            raise RefusedError("it needs a structured data type; only numbers, strings and objects are read")
        if order in ("<", ">"):
            if self.dtype.kind in "SU" and len(state) > 5 and 0 <= state[5] <= 2**16:
                self.dtype = np.dtype(f"{order}{self.dtype.kind}{state[5] // (4 if self.dtype.kind == 'U' else 1)}")
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")


class _Array:
    """An array being read; `resolved` puts `value` in its place."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, _DType):
            raise RefusedError("it holds an array without a data type")
        shape = tuple(int(n) for n in shape)
        if isinstance(data, list):
            if dtype.dtype != object:
                raise RefusedError("it holds a list where numbers belong")
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
        raise RefusedError("it holds bytes where objects belong")
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
        raise RefusedError("it holds a number without a data type")
    return _numbers(data, dtype)[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, by which Python 3 writes bytes in protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _rebuild(cls: Any, *_: Any) -> Any:
    """`copy_reg._reconstructor`, by which protocols 0 and 1 make objects."""
    if not (isinstance(cls, type) and issubclass(cls, (_Sparse, _Chumpy))):
        raise RefusedError("it makes an object of a class that is not admitted")
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
            raise RefusedError("it holds a sparse matrix of an unknown form")
        self.state = state

    def resolved(self, memo: dict[int, Any]) -> SparseMatrixData:
        state = {_text(key): value for key, value in self.state.items()}
        shape = state.get("_shape", state.get("shape"))
        data = resolved(state.get("data"), memo)
        if self.format == "coo":
            rows, columns = resolved(state.get("coords", (state.get("row"), state.get("col"))), memo)
        else:
            pointers, minor = (resolved(state.get(key), memo) for key in ("indptr", "indices"))
            if not (isinstance(pointers, np.ndarray) and isinstance(minor, np.ndarray)):
                raise RefusedError("it holds an incomplete sparse matrix")
            major = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
            rows, columns = (major, minor) if self.format == "csr" else (minor, major)
        if not all(isinstance(part, np.ndarray) for part in (rows, columns, data)) or not isinstance(shape, tuple):
            raise RefusedError("it holds an incomplete sparse matrix")
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
            raise RefusedError("it holds a chumpy object of an unknown form")
        self.state = {_text(key): value for key, value in state.items()}

    def _part(self, name: str, memo: dict[int, Any]) -> NDArray[Any]:
        if name not in self.state:
            raise RefusedError(f"it holds a chumpy object without its {name!r}")
        return np.asarray(resolved(self.state[name], memo))


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
            raise RefusedError("it holds a sparse matrix whose parts differ in length")
        for index, limit in ((self.rows, self.shape[0]), (self.columns, self.shape[1])):
            if index.dtype.kind not in "iu" or (index.size and (index.min() < 0 or index.max() >= limit)):
                raise RefusedError(f"it holds a sparse matrix with entries outside its shape {self.shape}")

    def toarray(self) -> NDArray[Any]:
        """Return the dense (R, C) array; raises UserError for one of unreasonable size."""
        if self.shape[0] * self.shape[1] > MAX_DENSE:
            raise UserError(f"a sparse matrix of shape {self.shape} is too large to be a body model's")
        dense = np.zeros(self.shape, self.values.dtype)
        np.add.at(dense, (self.rows, self.columns), self.values)
        return dense


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _DType,
    ("chumpy", "Ch"): _Ch,
    ("chumpy.ch", "Ch"): _Ch,
    ("chumpy.reordering", "Select"): _Select,
    ("_codecs", "encode"): _Function(_encode),
    ("collections", "OrderedDict"): OrderedDict,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    ADMITTED[_module, "_reconstruct"] = _Function(_reconstruct)
    ADMITTED[_module, "scalar"] = _Function(_scalar)
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    ADMITTED[_module, "_frombuffer"] = _Function(_from_buffer)
for _module in ("builtins", "__builtin__"):
    ADMITTED |= {(_module, kind.__name__): kind for kind in (set, frozenset, bytes, bytearray, complex)}
    ADMITTED[_module, "object"] = _Object
for _module in ("copyreg", "copy_reg"):
    ADMITTED[_module, "_reconstructor"] = _Function(_rebuild)
for _kind, _cls in (("csr", _Csr), ("csc", _Csc), ("coo", _Coo)):
    for _module in (f"scipy.sparse.{_kind}", f"scipy.sparse._{_kind}"):
        ADMITTED |= {(_module, f"{_kind}_{suffix}"): _cls for suffix in ("matrix", "array")}


def resolved(value: Any, memo: dict[int, Any]) -> Any:
    """Return `value` with every stand-in replaced by what it stands for; `memo` keeps what was shared shared."""
    if isinstance(value, (str, bytes, int, float, complex, type(None))):
        return value
    if id(value) in memo:
        return memo[id(value)][1]
    if isinstance(value, _Array):
        result: Any = value.value
        if result.dtype == object:
            result = _objects([resolved(item, memo) for item in result.flat]).reshape(result.shape)
    elif isinstance(value, (_Sparse, _Ch, _Select)):
        memo[id(value)] = (value, None)  # a chumpy object that contains itself has no value
        result = value.resolved(memo)
    elif isinstance(value, dict):
        result = type(value)()
        memo[id(value)] = (value, result)
        result.update((resolved(k, memo), resolved(v, memo)) for k, v in value.items())
    elif isinstance(value, list):
        result = []
        memo[id(value)] = (value, result)
        result.extend(resolved(item, memo) for item in value)
    elif isinstance(value, (tuple, set, frozenset)):
        result = type(value)(resolved(item, memo) for item in value)
    elif isinstance(value, (_Function, _DType, _Object, _Chumpy, type)):
        raise RefusedError("it holds a bare class or function where data belongs")
    else:
        result = value
    memo[id(value)] = (value, result)  # with the value, so that its id is not used again
    return result
