"""The wheel holds metro_edge and its assets, and nothing else of the checkout."""

from __future__ import annotations

import configparser
import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("metro_edge", "training", "engines", "benchmarks", "tests")
METADATA = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.plan", "*.plan.json")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree, so that no build folder is left in the checkout."""
    tree = tmp_path_factory.mktemp("tree")
    for name in METADATA:
        shutil.copy(ROOT / name, tree)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=LEFT_OUT)
    built = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(built),
    ]
    done = subprocess.run([*command, str(tree)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = built.glob("*.whl")
    return path


def test_wheel_holds_metro_edge_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = next(name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
    assert {name.split("/")[0] for name in names} == {"metro_edge", info}
    assert f"{info}/licenses/LICENSE" in names
    assert f"{info}/licenses/NOTICE" in names


def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    package = ROOT / "metro_edge"
    wanted = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file()
        and path.suffix in {".py", ".typed", ".cu", ".cuh", ".ptx", ".cubin"}
        and "__pycache__" not in path.parts
    }
    wanted |= {str(path.relative_to(ROOT)) for path in (package / "assets").rglob("*") if path.is_file()}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("metro_edge/")}
    assert held == wanted


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(name.split("/")[0] for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert metadata["Name"] == "metro-edge"
    assert metadata["Requires-Python"] == ">=3.10"
    assert set(metadata.get_all("Provides-Extra")) == {
        "train",
        "export",
        "tensorrt",
        "rtx",
        "openvino",
        "smpl",
        "h36m",
        "cpp",
        "video",
        "track",
        "pandas",
        "view",
        "dev",
    }
    assert scripts["console_scripts"]["metro-edge"] == "metro_edge.cli:main"

    base = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {line.split(">")[0] for line in base} == {"numpy", "opencv-python", "onnxruntime", "protobuf", "tqdm"}
    rtx = [line for line in metadata.get_all("Requires-Dist") if line.startswith("tensorrt-rtx")]
    assert len(rtx) == 1
    assert 'platform_machine == "x86_64"' in rtx[0]


def test_wheel_works_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "import metro_edge; print(metro_edge.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
