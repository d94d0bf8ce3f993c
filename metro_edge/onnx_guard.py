"""What an ONNX file from a stranger may not hold, found before any engine reads it.

An engine would follow a tensor's reference to another file, load code for an operator of a foreign domain where
somebody registered one, run loops without end, and trust a tensor's shape: OpenVINO (2026.4) runs tensors of -1 x -4
or 2^32 x 2^32 numbers. The check walks protobuf's wire format and copies no weights, so that it costs milliseconds for
networks of any size. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from metro_edge.errors import BundleError

DOMAINS = ("", "ai.onnx")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_INSIDE = 0  # TensorProto.DataLocation.DEFAULT
# TensorProto.DataType -> bits of a number: floats, integers, bool, bfloat16, FP8 and 4-bit types; no text, no complex.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4,
}  # fmt: skip
# float_data, int32_data, int64_data, double_data and uint64_data -> bytes of a number, 0 for varints.
_NUMBERS = {4: 4, 5: 0, 7: 0, 10: 8, 11: 0}
MAX_RANK = 16


def check_onnx(graph: bytes, name: str) -> None:
    """Raise BundleError unless `graph` is one self-contained ONNX model of standard operators.

    Args:
        graph: the file's content.
        name: of the file, for the message.

    Raises:
        BundleError: not protobuf, no graph, tensors outside the file or of other sizes than they claim, operators of
            another domain or with graphs inside, such as loops (each named, with its node), functions, sparse
            tensors, or graphs for training.
    """
    try:
        found = False
        for field, value in _fields(memoryview(graph)):
            if field == 7 and isinstance(value, memoryview):
                found = True
                _check_graph(value, name)
            elif field == 25:
                raise BundleError(f"{name} defines functions, which no network of ours needs")
            elif field == 20:
                raise BundleError(f"{name} holds graphs for training, which no network of ours needs")
    except (IndexError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{name} is not an ONNX graph: {error}") from None
    if not found:
        raise BundleError(f"{name} is not an ONNX graph: it has none")


def _check_graph(graph: memoryview, name: str) -> None:
    for field, value in _fields(graph):
        if not isinstance(value, memoryview):
            continue
        if field == 1:
            _check_node(value, name)
        elif field == 5:
            _check_tensor(value, name)
        elif field == 15:
            raise BundleError(f"{name} holds sparse tensors, which no network of ours needs")


def _check_node(node: memoryview, name: str) -> None:
    kind = label = domain = ""
    attributes = []
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
            attributes.append(value)
    if domain not in DOMAINS:
        raise BundleError(f"{name}: node {label!r} is {kind} of the domain {domain!r}; only standard operators are run")
    for attribute in attributes:
        _check_attribute(attribute, name, f"node {label!r} ({kind})")


def _check_attribute(attribute: memoryview, name: str, node: str) -> None:
    tensors = 0
    for field, value in _fields(attribute):
        if not isinstance(value, memoryview):
            continue
        if field in (5, 10):
            _check_tensor(value, name)
            tensors += field == 5
        elif field in (6, 11):
            raise BundleError(f"{name}: {node} holds a graph of its own, which no network of ours needs")
        elif field in (22, 23):
            raise BundleError(f"{name}: {node} holds sparse tensors, which no network of ours needs")
    if tensors > 1:  # readers would merge them, shapes one after the other
        raise BundleError(f"{name}: {node} holds one tensor in several parts, which no network of ours does")


def _check_tensor(tensor: memoryview, name: str) -> None:
    label, outside, kind, numbers, raw = "", False, 0, 0, None
    shape: list[int] = []
    for field, value in _fields(tensor):
        if field == 1:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field == 8 and isinstance(value, memoryview):
            label = _text(value)
        elif field == 9 and isinstance(value, memoryview):
            raw = len(value)
        elif field in _NUMBERS:
            numbers += _count(value, _NUMBERS[field])
        outside = outside or field == 13 or (field == 14 and value != _INSIDE)
    what = f"{name}: tensor {label!r}"
    if outside:
        raise BundleError(f"{what} lies in another file; a bundle's networks hold their weights")
    if kind not in _BITS:
        raise BundleError(f"{what} is of type {kind}, which no network of ours needs")
    if len(shape) > MAX_RANK or any(size >= 1 << 63 for size in shape):  # such are negative to a reader
        raise BundleError(f"{what} has a shape of more than {MAX_RANK} sizes, or of negative ones")
    claimed = math.prod(shape)
    whole = (claimed + 1) // 2 if _BITS[kind] == 4 else claimed  # two 4-bit numbers are stored as one
    wanted = (whole if raw is None else 0, None if raw is None else -(-claimed * _BITS[kind] // 8))
    if (numbers, raw) != wanted:
        held = f"{numbers} numbers" if raw is None else f"{raw} bytes"
        raise BundleError(f"{what} claims to be of shape {tuple(shape)}, {claimed} numbers, where {held} are")


def _packed(numbers: memoryview) -> list[int]:
    """Return the varints of a packed field, as many as a shape may have and one more."""
    found: list[int] = []
    place = 0
    while place < len(numbers) and len(found) <= MAX_RANK:
        number, place = _varint(numbers, place)
        found.append(number)
    return found


def _count(value: int | memoryview, size: int) -> int:
    """Return how many numbers a field holds; `size`: bytes of one, 0 for varints."""
    if isinstance(value, int):
        return 1
    if size:
        return len(value) // size
    return int(np.count_nonzero(np.frombuffer(value, np.uint8) < 0x80))  # the last byte of each has no high bit


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
