"""ROS message classes from the .msg definitions that rosbags carries: stubs for mypy, and classes to run with.

The classes behave as those that ROS generates: keywords alone, every field with its default, constants on the class.
"""

from __future__ import annotations

import array
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
NEEDED = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo", "sensor_msgs/msg/PointCloud2",
          "visualization_msgs/msg/MarkerArray")  # fmt: skip
CODES = {
    "int8": "b", "uint8": "B", "byte": "B", "octet": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I",
    "int64": "q", "uint64": "Q", "float32": "f", "float64": "d",
}  # fmt: skip
PLAIN = {"bool": bool, "string": str, "float32": float, "float64": float}


def closure(names: tuple[str, ...] = NEEDED) -> list[str]:
    """The definitions and all that they are made of."""
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in found:
            found[name] = None
            for _, (kind, what) in STORE.fielddefs[name][1]:
                kind, what = what[0] if kind in (Nodetype.ARRAY, Nodetype.SEQUENCE) else (kind, what)
                if kind == Nodetype.NAME:
                    visit(what)

    for name in names:
        visit(name)
    return sorted(found)


def _type_of(field: Any) -> str:
    kind, what = field
    if kind == Nodetype.NAME:
        package, _, name = what.split("/")
        return f"{package}.msg.{name}"
    if kind == Nodetype.BASE:
        return PLAIN.get(what[0], int).__name__
    (inner_kind, inner), size = what[0], what[1]
    if kind == Nodetype.ARRAY and inner_kind == Nodetype.BASE and inner[0] in CODES:
        return "numpy.typing.NDArray[numpy.generic]"  # as ROS generates arrays of a fixed length
    if inner_kind == Nodetype.BASE and inner[0] in CODES:
        return f"array.array[{PLAIN.get(inner[0], int).__name__}]"
    assert kind == Nodetype.SEQUENCE or size
    return f"list[{_type_of((inner_kind, inner))}]"


def write_stubs(folder: Path) -> None:
    """Write PACKAGE/msg/__init__.pyi of all needed packages under `folder`."""
    packages: dict[str, list[str]] = {}
    for full in closure():
        package, _, name = full.split("/")
        constants, fields = STORE.fielddefs[full]
        lines = [f"class {name}:"]
        lines += [f"    {key}: typing.Final[{PLAIN.get(kind, int).__name__}]" for key, kind, _ in constants]
        lines += [f"    {key}: {_type_of(field)}" for key, field in fields]
        arguments = "".join(f", {key}: {_type_of(field)} = ..." for key, field in fields)
        lines.append(f"    def __init__(self, *{arguments}) -> None: ...")
        packages.setdefault(package, []).append("\n".join(lines))
    imports = "import array\nimport typing\n\nimport numpy\nimport numpy.typing\n\n"
    imports += "".join(f"import {package}.msg\n" for package in packages) + "\n"
    for package, classes in packages.items():
        (folder / package / "msg").mkdir(parents=True)
        (folder / package / "__init__.pyi").touch()
        (folder / package / "msg" / "__init__.pyi").write_text(imports + "\n\n".join(classes) + "\n")


def _default(field: Any, classes: dict[str, type]) -> Any:
    kind, what = field
    if kind == Nodetype.NAME:
        return classes[what]()
    if kind == Nodetype.BASE:
        return PLAIN.get(what[0], int)()
    (inner_kind, inner), size = what
    if inner_kind == Nodetype.BASE and inner[0] in CODES:
        if kind == Nodetype.ARRAY:
            return np.zeros(size, np.dtype(CODES[inner[0]]))
        return array.array(CODES[inner[0]])
    return [_default((inner_kind, inner), classes) for _ in range(size if kind == Nodetype.ARRAY else 0)]


def make_modules() -> dict[str, types.ModuleType]:
    """Modules PACKAGE.msg by name, for sys.modules."""
    classes: dict[str, type] = {}
    modules: dict[str, types.ModuleType] = {}
    for full in closure():
        package, _, name = full.split("/")
        constants, fields = STORE.fielddefs[full]

        def __init__(self: Any, _fields: Any = fields, **given: Any) -> None:  # noqa: N807
            assert set(given) <= {key for key, _ in _fields}, given
            for key, field in _fields:
                setattr(self, key, given[key] if key in given else _default(field, classes))

        slots = tuple(key for key, _ in fields)  # another name is an error, as in ROS
        body = {"__slots__": slots, "__init__": __init__, **{key: value for key, _, value in constants}}
        classes[full] = type(name, (), body)
        for path in (package, f"{package}.msg"):
            modules.setdefault(path, types.ModuleType(path))
        setattr(modules[f"{package}.msg"], name, classes[full])
    return modules


def wire(message: Any, name: str) -> Any:
    """The message as another process receives it: through rosbags' own serialisation, which checks the types."""
    return STORE.deserialize_cdr(STORE.serialize_cdr(_as_rosbags(message, name), name), name)


def _as_rosbags(message: Any, name: str) -> Any:
    """Arrays as NumPy's, which rosbags takes; everything else as it is."""
    values = {}
    for key, field in STORE.fielddefs[name][1]:
        values[key] = _value_as_rosbags(getattr(message, key), field)
    return STORE.types[name](**values)


def _value_as_rosbags(value: Any, field: Any) -> Any:
    kind, what = field
    if kind == Nodetype.NAME:
        return _as_rosbags(value, what)
    if kind == Nodetype.BASE:
        assert type(value) is PLAIN.get(what[0], int), (value, what)  # as ROS asserts
        return value
    if what[0][0] == Nodetype.BASE and what[0][1][0] in CODES:
        return np.asarray(value, np.dtype(CODES[what[0][1][0]]))
    return [_value_as_rosbags(one, what[0]) for one in value]


if __name__ == "__main__":
    write_stubs(Path(sys.argv[1]))
