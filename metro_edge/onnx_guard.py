"""What an ONNX file from a stranger may not hold, found before any engine reads it.

An engine would follow a tensor's reference to another file, and load code for an operator of a foreign domain where
somebody registered one. The check walks protobuf's wire format and copies nothing, so that it costs milliseconds for
networks of any size. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

from metro_edge.errors import BundleError

DOMAINS = ("", "ai.onnx")
MAX_DEPTH = 16  # of graphs inside nodes, and of nothing else that we make
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_INSIDE = 0  # TensorProto.DataLocation.DEFAULT


def check_onnx(graph: bytes, name: str) -> None:
    """Raise BundleError unless `graph` is one self-contained ONNX model of standard operators.

    Args:
        graph: the file's content.
        name: of the file, for the message.

    Raises:
        BundleError: not protobuf, no graph, tensors outside the file, operators of another domain (named, with their
            node), functions, graphs for training, or graphs nested too deeply.
    """
    try:
        found = False
        for field, value in _fields(memoryview(graph)):
            if field == 7 and isinstance(value, memoryview):
                found = True
                _check_graph(value, name, 0)
            elif field == 25:
                raise BundleError(f"{name} defines functions, which no network of ours needs")
            elif field == 20:
                raise BundleError(f"{name} holds graphs for training, which no network of ours needs")
    except (IndexError, ValueError) as error:
        raise BundleError(f"{name} is not an ONNX graph: {error}") from None
    if not found:
        raise BundleError(f"{name} is not an ONNX graph: it has none")


def _check_graph(graph: memoryview, name: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BundleError(f"{name} nests graphs more than {MAX_DEPTH} deep")
    for field, value in _fields(graph):
        if not isinstance(value, memoryview):
            continue
        if field == 1:
            _check_node(value, name, depth)
        elif field == 5:
            _check_tensor(value, name)
        elif field == 15:  # SparseTensorProto: values and indices
            for part, tensor in _fields(value):
                if part in (1, 2) and isinstance(tensor, memoryview):
                    _check_tensor(tensor, name)


def _check_node(node: memoryview, name: str, depth: int) -> None:
    kind = label = domain = ""
    for field, value in _fields(node):
        if not isinstance(value, memoryview):
            continue
        if field == 3:
            label = _text(value)
        elif field == 4:
            kind = _text(value)
        elif field == 7:
            domain = _text(value)
        elif field == 5:
            _check_attribute(value, name, depth)
    if domain not in DOMAINS:
        raise BundleError(f"{name}: node {label!r} is {kind} of the domain {domain!r}; only standard operators are run")


def _check_attribute(attribute: memoryview, name: str, depth: int) -> None:
    for field, value in _fields(attribute):
        if not isinstance(value, memoryview):
            continue
        if field in (5, 10):
            _check_tensor(value, name)
        elif field in (6, 11):
            _check_graph(value, name, depth + 1)
        elif field in (22, 23):
            for part, tensor in _fields(value):
                if part in (1, 2) and isinstance(tensor, memoryview):
                    _check_tensor(tensor, name)


def _check_tensor(tensor: memoryview, name: str) -> None:
    label, outside = "", False
    for field, value in _fields(tensor):
        if field == 8 and isinstance(value, memoryview):
            label = _text(value)
        outside = outside or field == 13 or (field == 14 and value != _INSIDE)
    if outside:
        raise BundleError(f"{name}: tensor {label!r} lies in another file; a bundle's networks hold their weights")


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield field number and value of a message: varints as integers, everything else as a view of its bytes."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        if key >= 1 << 32:  # engines keep the low 32 bits, which would name another field
            raise ValueError("a field number of more than 32 bits")
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            number, place = _varint(message, place)
            yield field, number
            continue
        if kind == _BYTES:
            size, place = _varint(message, place)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if size > end - place:
            raise ValueError("it ends in the middle of a field")
        yield field, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def _text(value: memoryview) -> str:
    return bytes(value[:200]).decode(errors="replace")
