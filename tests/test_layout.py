"""The shape of the tree: who may import whom, how light the runtime is, where modules live."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each of the four packages may import of the four.
MAY_IMPORT = {
    "metro_edge": {"metro_edge"},
    "training": {"metro_edge", "training"},
    "engines": {"metro_edge", "training", "engines"},
    "benchmarks": {"metro_edge", "training", "engines", "benchmarks"},
}
# The runtime never needs these, not even inside a function.
NEVER_IN_RUNTIME = {"torch", "torchvision", "timm", "lightning", "anny", "onnxsim", "onnxscript"}
# These belong inside the function that uses them.
NEVER_AT_MODULE_LEVEL = {"tensorrt", "tensorrt_rtx", "pycuda", "openvino", "onnx", "matplotlib"}
# Loading the package may not load these.
NOT_LOADED_BY_IMPORT = {
    "torch",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "onnxruntime",
    "openvino",
    "cv2",
    "onnx",
}
IMPORT_BUDGET_S = 0.3

# The one home of each name: a file of that name elsewhere in metro_edge would be a second way to do a thing.
HOMES = {
    name: f"metro_edge/{name}.py"
    for name in ("spec", "bundle", "body", "metrics", "preprocess", "postprocess", "estimator", "errors")
}


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_modules(source: str, module: str, *, is_package: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Yield (absolute name, line, is at module level) of each import outside type-checking blocks."""
    tree = ast.parse(source)
    inside: set[ast.AST] = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inside.update(ast.walk(node))
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            names = [".".join([*base, node.module] if node.module else base)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            first = node.args[0] if node.args else None
            if not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
                continue
            names = [first.value]
        else:
            continue
        for name in names:
            yield name, node.lineno, node not in inside


def imports_of(path: Path) -> Iterator[tuple[str, int, bool]]:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    is_package = path.name == "__init__.py"
    yield from imported_modules(path.read_text("utf-8"), module, is_package=is_package)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_import_direction(package: str) -> None:
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package]
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in python_files(package)
        for name, line, _ in imports_of(path)
        if name.split(".")[0] in forbidden
    ]
    assert found == []


def test_runtime_imports_no_training_library() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in python_files("metro_edge")
        for name, line, at_module_level in imports_of(path)
        if name.split(".")[0] in NEVER_IN_RUNTIME or (at_module_level and name.split(".")[0] in NEVER_AT_MODULE_LEVEL)
    ]
    assert found == []


def test_the_checker_itself_sees_every_form_of_import() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import anny
import importlib, training.data
from ..errors import UserError
from . import sibling
def late():
    import torch.nn
    importlib.import_module("engines.convert")
"""
    found = set(imported_modules(source, "metro_edge.cli.build"))
    assert found == {
        ("typing", 2, True),
        ("importlib", 5, True),
        ("training.data", 5, True),
        ("metro_edge.errors", 6, True),
        ("metro_edge.cli", 7, True),
        ("torch.nn", 9, False),
        ("engines.convert", 10, False),
    }
    assert set(imported_modules("from . import a", "metro_edge.cli", is_package=True)) == {("metro_edge.cli", 1, True)}


def test_import_is_light() -> None:
    code = (
        "import json, sys, time; start = time.process_time(); import metro_edge; "
        "print(json.dumps([time.process_time() - start, sorted({m.split('.')[0] for m in sys.modules})]))"
    )
    seconds = []
    for _ in range(3):
        # Processor time, so that other work on the machine does not fail the test.
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            text=True,
        )
        elapsed_s, modules = json.loads(done.stdout)
        assert NOT_LOADED_BY_IMPORT.isdisjoint(modules)
        seconds.append(elapsed_s)
    assert min(seconds) < IMPORT_BUDGET_S


def test_modules_live_where_the_design_says() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in python_files("metro_edge")
        # The GPU twins of pre- and postprocess carry the names of what they mirror.
        if path.stem in HOMES and "cuda" not in path.parts
    }
    assert found <= set(HOMES.values())
    assert {"metro_edge/spec.py", "metro_edge/errors.py"} <= found


def test_every_command_file_has_the_two_functions() -> None:
    commands = [path for path in (ROOT / "metro_edge/cli").glob("*.py") if not path.stem.startswith("_")]
    assert commands
    for path in commands:
        functions = {n.name for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.FunctionDef)}
        assert {"add_parser", "run"} <= functions, path.name


def test_test_folders_mirror_the_packages() -> None:
    for folder in (p for p in (ROOT / "tests").rglob("*") if p.is_dir() and any(p.glob("test_*.py"))):
        mirrored = folder.relative_to(ROOT / "tests")
        assert (ROOT / mirrored).is_dir(), f"tests/{mirrored} mirrors no folder"


def project_text_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is tracked is unknown")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    files = [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    return [path for path in files if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


def test_no_file_names_a_path_of_this_machine() -> None:
    here = {str(ROOT), str(Path.home())} | ({str(ROOT.parent)} if len(ROOT.parts) > 2 else set())
    here -= {"/tmp", "/"}
    machine = re.compile(
        "|".join([*(re.escape(path) + r"(?![\w.-])" for path in here), r"(?<![\w.])/(?:home|Users)/\w"])
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in project_text_files()
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1)
        if (match := machine.search(line)) and path != Path(__file__)
    ]
    assert found == []
