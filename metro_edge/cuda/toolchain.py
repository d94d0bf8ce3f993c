"""Compiling kernel files with nvcc or NVRTC, whichever is there."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from metro_edge.errors import UserError

KERNELS = Path(__file__).resolve().parent / "kernels"
KERNEL_FILES = ("preprocess", "postprocess", "overlay")
# No contraction: only where a kernel says fmaf is a product not rounded, so that every compiler gives the same result.
OPTIONS = ("-std=c++17", "-fmad=false")
NVRTC_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so")


class CompileError(UserError):
    """A kernel file that the compiler at hand refuses."""


def find_nvcc() -> Path | None:
    """Return nvcc on the path, under CUDA_HOME or where the toolkit puts it; None where there is none."""
    roots = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)] + ["/usr/local/cuda"]
    found = shutil.which("nvcc") or next((p for root in roots if (p := shutil.which(f"{root}/bin/nvcc"))), None)
    return Path(found) if found else None


def nvrtc_candidates() -> Iterator[str]:
    """Yield names and paths that NVRTC may have: of NVIDIA's wheels, of the system, of the toolkit."""
    for entry in map(Path, sys.path):
        for pattern in ("nvidia/cu1?/lib/libnvrtc.so.*", "nvidia/cuda_nvrtc/lib/libnvrtc.so.*"):
            yield from (str(path) for path in sorted(entry.glob(pattern)) if "builtins" not in path.name)
    yield from NVRTC_NAMES
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if root:
            yield f"{root}/lib64/libnvrtc.so"


def find_nvrtc() -> ctypes.CDLL | None:
    """Return the loaded NVRTC library; None where there is none."""
    for name in nvrtc_candidates():
        try:
            # It opens its built-in functions by name alone, which finds them only if they are open already.
            for part in sorted(Path(name).parent.glob("libnvrtc-builtins.so.*")) if "/" in name else ():
                ctypes.CDLL(str(part))
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def source_of(name: str) -> Path:
    """Return the path of a kernel file such as `preprocess`; raises UserError for one that there is not."""
    path = KERNELS / f"{name}.cu"
    if name not in KERNEL_FILES or not path.is_file():
        raise UserError(f"no kernel file {name!r}; there are {', '.join(KERNEL_FILES)}")
    return path


def compile_with_nvcc(name: str, architecture: str, nvcc: Path | None = None) -> tuple[bytes, str]:
    """Compile a kernel file; returns the image and what the assembler said of registers and spills.

    Args:
        name: of the kernel file, such as `preprocess`.
        architecture: `sm_87` for a cubin, `compute_75` for PTX.
        nvcc: the compiler, else `find_nvcc`.

    Raises:
        CompileError: no nvcc, or one that refuses the file.
    """
    nvcc = nvcc or find_nvcc()
    if nvcc is None:
        raise CompileError("no nvcc on the path, under CUDA_HOME or in /usr/local/cuda")
    kind = "cubin" if architecture.startswith("sm_") else "ptx"
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / f"{name}.{kind}"
        command = [nvcc, f"-{kind}", f"-arch={architecture}", *OPTIONS, "-Xptxas", "-v", source_of(name), "-o", image]
        try:
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        except OSError as error:
            raise CompileError(f"{nvcc} does not start: {error.strerror}") from None
        if done.returncode:
            raise CompileError(f"nvcc refuses {name}.cu for {architecture}: {_last_lines(done.stderr)}")
        return image.read_bytes(), done.stderr


def compile_with_nvrtc(name: str, architecture: str, nvrtc: ctypes.CDLL | None = None) -> bytes:
    """Compile a kernel file without a toolkit; see `compile_with_nvcc`."""
    nvrtc = nvrtc or find_nvrtc()
    if nvrtc is None:
        raise CompileError("no NVRTC: pip install nvidia-cuda-nvrtc, or the wheel for your CUDA version")
    program = ctypes.c_void_p()
    text = source_of(name).read_bytes()
    failed = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, f"{name}.cu".encode(), 0, None, None)
    if failed:
        raise CompileError(f"NVRTC does not start: error {failed}")
    try:
        options = [f"--gpu-architecture={architecture}", *(f"-{option}" for option in OPTIONS), f"-I{KERNELS}"]
        values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), values):
            log = _nvrtc_bytes(nvrtc, program, "ProgramLog").decode(errors="replace")
            raise CompileError(f"NVRTC refuses {name}.cu for {architecture}: {_last_lines(log)}")
        image = _nvrtc_bytes(nvrtc, program, "CUBIN" if architecture.startswith("sm_") else "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return image


def _nvrtc_bytes(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    if getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)):
        raise CompileError(f"this NVRTC gives no {what}")
    buffer = ctypes.create_string_buffer(size.value)
    if getattr(nvrtc, f"nvrtcGet{what}")(program, buffer):
        raise CompileError(f"this NVRTC gives no {what}")
    return buffer.raw.rstrip(b"\0") if what != "CUBIN" else buffer.raw


def _last_lines(text: str) -> str:
    return " / ".join(re.sub(r"\s+", " ", line).strip() for line in text.strip().splitlines()[-4:]) or "without a word"
