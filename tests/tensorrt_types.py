"""Types of TensorRT for mypy, from the package `tensorrt-stubs`: `python -m tests.tensorrt_types FROM INTO`.

TensorRT itself does not install on a machine without NVIDIA's package index. Its stubs do, but (10.13.0.35.1) they hold
definitions that are no Python, for which mypy refuses the whole file, and installed as a package they leave an empty
`tensorrt` behind that can be imported. So they are installed beside the environment, and what can be read of them is
written to INTO/tensorrt/__init__.pyi, where mypy_path finds it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

STUBS = "tensorrt_bindings/tensorrt.pyi"


def is_python(text: str) -> bool:
    """Whether `text` parses."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def blocks(lines: list[str], indent: int) -> Iterator[list[str]]:
    """Split into statements at the given indentation; decorators stay with what they decorate."""
    start = re.compile(rf" {{{indent}}}(?=[^\s)\]}}])")
    block: list[str] = []
    for line in lines:
        if start.match(line) and block and not block[-1].lstrip().startswith("@"):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def readable(stub: str) -> str:
    """Return `stub` for mypy: a method that does not parse takes and returns Any, any other such statement goes."""
    kept: list[str] = []
    for block in blocks(stub.splitlines(), 0):
        text = "\n".join(block)
        if text.startswith("bool: "):  # a data type; it would hide Python's bool in every signature below
            continue
        if is_python(text):
            kept.append(text)
            continue
        if not block[0].startswith("class "):
            continue
        members: list[str] = []
        for member in blocks(block[1:], 4):
            text = "\n".join(member)
            name = re.match(r"    def (\w+)", member[-1] if member[0].lstrip().startswith("@") else member[0])
            if is_python(f"class _:\n{text}"):
                members.append(text)
            elif name and not member[0].lstrip().startswith("@"):
                members.append(f"    def {name[1]}(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any: ...")
        kept.append("\n".join([block[0], *members]))
    return "\n".join(["# mypy: ignore-errors", *kept, "__version__: str", ""])


def main(arguments: list[str]) -> int:
    """Write the readable stubs; returns the exit code."""
    source, target = Path(arguments[0]) / STUBS, Path(arguments[1]) / "tensorrt" / "__init__.pyi"
    text = readable(source.read_text(encoding="utf-8"))
    ast.parse(text)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"{target}: {text.count(chr(10) + 'class ')} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
