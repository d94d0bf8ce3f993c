"""The kernels compile for every GPU, spill nothing, and the shipped PTX is that of the sources."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from metro_edge.cuda import prebuilt, toolchain
from metro_edge.errors import UserError
from tests.virtual_gpu.build import COMMENT
from tests.virtual_gpu.registers import ARCHITECTURES, resources

MAX_REGISTERS = 64  # of 65,536 a multiprocessor: 1,024 threads of any kernel fit, all that Turing can hold

needs_nvcc = pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc here")
needs_nvrtc = pytest.mark.skipif(toolchain.find_nvrtc() is None, reason="no NVRTC here")
every_file = pytest.mark.parametrize("name", toolchain.KERNEL_FILES)


def kernels_of(name: str) -> set[str]:
    text = COMMENT.sub("", toolchain.source_of(name).read_text("utf-8"))
    return set(re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", text))


def check_resources(name: str, architecture: int) -> None:
    found = resources(name, f"sm_{architecture}")
    assert found.keys() == kernels_of(name)
    for kernel, (registers, spilled) in found.items():
        assert spilled == 0, f"{kernel} spills on sm_{architecture}"
        assert registers <= MAX_REGISTERS, f"{kernel} takes {registers} registers on sm_{architecture}"


def test_every_kernel_file_is_listed():
    assert {path.stem for path in toolchain.KERNELS.glob("*.cu")} == set(toolchain.KERNEL_FILES)


@needs_nvcc
@every_file
def test_orin_compiles_without_spills(name):
    check_resources(name, 87)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@every_file
def test_every_architecture_compiles_without_spills(name, architecture):
    check_resources(name, architecture)


@needs_nvrtc
@every_file
def test_nvrtc_compiles_the_same_kernels(name):
    ptx = toolchain.compile_with_nvrtc(name, "compute_75").decode()
    assert set(re.findall(r"\.visible \.entry (\w+)\(", ptx)) == kernels_of(name)
    assert toolchain.compile_with_nvrtc(name, "sm_87")[:4] == b"\x7fELF"


@every_file
def test_the_shipped_ptx_is_that_of_the_sources(name):
    ptx = prebuilt.read_ptx(name)
    assert ptx is not None, "make ptx writes it again"
    text = ptx.decode()
    assert text.endswith("\0")
    assert set(re.findall(r"\.visible \.entry (\w+)\(", text)) == kernels_of(name)
    assert re.findall(r"^\.(version|target) (\S+)$", text, re.MULTILINE) == [("version", "7.4"), ("target", "sm_75")]


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="no ptxas here")
@every_file
def test_the_assembler_finds_nothing_newer_than_its_ptx_version(name, tmp_path):
    """ptxas refuses an instruction that came later than the version a file names."""
    for architecture in (75, 87, 120):
        done = subprocess.run(
            ["ptxas", f"-arch=sm_{architecture}", str(prebuilt.ptx_path(name)), "-o", str(tmp_path / "out.cubin")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    newer = prebuilt.ptx_path(name).read_text("utf-8").replace("ret;", "griddepcontrol.wait;\nret;", 1)
    (tmp_path / "newer.ptx").write_text(newer.replace(".target sm_75", ".target sm_90"))
    command = ["ptxas", "-arch=sm_90", str(tmp_path / "newer.ptx"), "-o", str(tmp_path / "out.cubin")]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@needs_nvcc
def test_ptx_is_written_with_the_hash_of_its_sources():
    assert prebuilt.portable_ptx("preprocess").startswith(f"// sources {prebuilt.source_hash('preprocess')}\n".encode())


def broken_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "KERNELS", folder)
    (folder / "preprocess.cu").write_text('extern "C" __global__ void crop() { not_there(); }\n')


@needs_nvcc
def test_what_nvcc_refuses_is_said(tmp_path, monkeypatch):
    broken_kernels(tmp_path, monkeypatch)
    with pytest.raises(toolchain.CompileError, match=r"nvcc refuses preprocess\.cu for sm_87: .*not_there"):
        toolchain.compile_with_nvcc("preprocess", "sm_87")


@needs_nvrtc
def test_what_nvrtc_refuses_is_said(tmp_path, monkeypatch):
    broken_kernels(tmp_path, monkeypatch)
    with pytest.raises(toolchain.CompileError, match=r"NVRTC refuses preprocess\.cu for sm_87: .*not_there"):
        toolchain.compile_with_nvrtc("preprocess", "sm_87")


def test_compilers_that_are_missing_are_said(monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    monkeypatch.setattr(toolchain, "find_nvrtc", lambda: None)
    with pytest.raises(toolchain.CompileError, match="no nvcc on the path"):
        toolchain.compile_with_nvcc("preprocess", "sm_87")
    with pytest.raises(toolchain.CompileError, match="no NVRTC: pip install"):
        toolchain.compile_with_nvrtc("preprocess", "sm_87")
    with pytest.raises(toolchain.CompileError, match="does not start"):
        toolchain.compile_with_nvcc("preprocess", "sm_87", tmp_path / "nvcc")
    with pytest.raises(UserError, match="no kernel file 'nothing'"):
        toolchain.source_of("nothing")
