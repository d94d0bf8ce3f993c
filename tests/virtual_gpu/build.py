"""Building the stand-in GPU: a library in place of the CUDA driver, PyCUDA against it, kernels for the host.

Everything goes to one folder of the environment, `virtual-gpu`, and is made again only when what it is made from
changed. Nothing is installed into the environment itself: no other test sees a PyCUDA or a driver that is not there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "metro_edge/cuda/kernels"
PYCUDA = "pycuda==2026.1"
SONAME = "libcuda.so.1"
SHIM = HERE / "include/shim.h"
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


class UnavailableError(Exception):
    """Something outside the project that the stand-in needs is not installed."""


def home() -> Path:
    """Return the folder of all that is built: METRO_EDGE_VIRTUAL_GPU, else `virtual-gpu` in the environment."""
    return Path(os.environ.get("METRO_EDGE_VIRTUAL_GPU") or Path(sys.prefix) / "virtual-gpu")


def cuda_headers() -> Path:
    """Return a folder with cuda.h: of the toolkit, else of NVIDIA's runtime wheel; raises UnavailableError."""
    nvcc = shutil.which("nvcc")
    folders = [Path(os.environ[name]) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    folders += [Path("/usr/local/cuda/include")] + ([Path(nvcc).resolve().parents[1] / "include"] if nvcc else [])
    for entry in map(Path, sys.path):
        folders += sorted(entry.glob("nvidia/cu1?/include")) + sorted(entry.glob("nvidia/cuda_runtime/include"))
    for folder in folders:
        if (folder / "cuda.h").is_file():
            return folder
    raise UnavailableError("no cuda.h: install the CUDA toolkit, or pip install nvidia-cuda-runtime")


def compiler() -> str:
    """Return g++; raises UnavailableError where there is none of version 12 or newer (it needs _Float16)."""
    found = shutil.which("g++")
    if not found:
        raise UnavailableError("no g++: install g++ 12 or newer")
    version = subprocess.run([found, "-dumpversion"], check=True, capture_output=True, text=True).stdout
    if int(version.split(".")[0]) < 12:
        raise UnavailableError(f"g++ {version.strip()} lacks _Float16 in C++: install g++ 12 or newer")
    return found


def _digest(paths: Iterable[Path], *words: str) -> str:
    """Return what changes when one of the files or words does."""
    digest = hashlib.sha256(repr(words).encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: list[str | Path], **options: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr[-8000:]}")


def driver() -> Path:
    """Build the library in place of the driver, if it is not there; returns its path.

    The functions of cuda.h that the stand-in lacks become stubs which report their name and fail.
    """
    sources, headers, gxx = sorted((HERE / "driver").glob("*")), cuda_headers(), compiler()
    library = home() / f"driver-{_digest([*sources, Path(__file__)], str(headers))}" / SONAME
    if library.exists():
        return library
    declared = subprocess.run(
        [gxx, "-E", "-xc++", f"-I{headers}", f"-I{HERE / 'include'}", "-"],
        input="#include <cuda.h>\n#include <cudaProfiler.h>",
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = set(re.findall(r"\bCUresult\s+(cu[A-Z]\w*)\s*\(", declared))
    own = {name for path in sources for name in re.findall(r"^DRIVER (cu\w+)\(", path.read_text("utf-8"), re.MULTILINE)}
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        stubs, built = Path(folder) / "stubs.cpp", Path(folder) / SONAME
        lines = [f'extern "C" int {name}() {{ return missing("{name}"); }}' for name in sorted(names - own)]
        stubs.write_text('extern "C" int missing(const char *);\n' + "\n".join(lines) + "\n")
        options = ["-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-fPIC", "-shared"]
        options += [f"-Wl,-soname,{SONAME}", "-Wl,-z,nodelete", f"-I{headers}", f"-I{HERE / 'include'}"]
        parts = [*(path for path in sources if path.suffix == ".cpp"), stubs]
        _run([gxx, *options, *parts, "-o", built, "-ldl", "-lpthread"])
        os.replace(built, library)
    return library


def pycuda_site() -> Path:
    """Build PyCUDA from source, if it is not there (about two minutes); returns the folder to put on the path."""
    headers, gxx = cuda_headers(), compiler()
    version = re.search(r"#define CUDA_VERSION (\d+)", (headers / "cuda.h").read_text("utf-8"))
    words = (PYCUDA, version.group(1) if version else "", platform.machine(), sys.version.split()[0])
    site = home() / f"site-{_digest([], *words)}"
    if site.exists():
        return site
    home().mkdir(parents=True, exist_ok=True)
    print(f"building {PYCUDA} for the stand-in GPU (once, about two minutes)", flush=True)
    with tempfile.TemporaryDirectory(dir=home()) as name:
        folder = Path(name)
        # An empty library is enough to link against: the symbols are looked up when PyCUDA is loaded.
        _run([gxx, "-shared", "-xc++", "/dev/null", f"-Wl,-soname,{SONAME}", "-o", folder / "libcuda.so"])
        (folder / ".aksetup-defaults.py").write_text(
            f"CUDA_INC_DIR = {[str(headers), str(HERE / 'include')]!r}\n"
            f"CUDADRV_LIB_DIR = [{str(folder)!r}]\n"
            "CUDA_ENABLE_CURAND = False\n"  # its header may be missing, and nothing here draws random numbers
            'CXXFLAGS = ["-w", "-O0", "-g0"]\n'  # compiling takes half as long
        )
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-binary=pycuda"]
        _run(
            [*pip, "--target", folder / "site", PYCUDA, "numpy"],
            env={**os.environ, "HOME": str(folder), "PIP_CACHE_DIR": str(Path.home() / ".cache/pip")},
        )
        for twice in (folder / "site").glob("numpy*"):  # the environment's own is the one that is used
            shutil.rmtree(twice)
        try:
            os.replace(folder / "site", site)
        except OSError:
            if not site.exists():  # another process built it meanwhile
                raise
    return site


def image(kernels: Path, sanitize: str = "") -> Path:
    """Compile a kernel file for the host, if that is not done yet; returns a shared library that the stand-in loads.

    `sanitize` is a list for g++'s -fsanitize, such as `address,undefined`.
    """
    gxx = compiler()
    parts = [kernels, *sorted(kernels.parent.glob("*.cuh")), SHIM, Path(__file__)]
    library = home() / "images" / f"{kernels.stem}-{_digest(parts, sanitize)}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    options = ["-std=c++17", "-O2", "-g1", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-fPIC", "-shared"]
    # No contraction: a kernel that wants a fused multiply-add says so. No unique symbols: dlclose must unload.
    options += ["-ffp-contract=off", "-fno-gnu-unique", "-pthread", f"-I{HERE / 'include'}", f"-I{kernels.parent}"]
    if sanitize:
        options += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        source, built = Path(folder) / f"{kernels.stem}.cpp", Path(folder) / library.name
        source.write_text(host_source(kernels), "utf-8")
        _run([gxx, *options, "-include", SHIM, source, "-o", built])
        os.replace(built, library)
    return library


def host_source(kernels: Path) -> str:
    """Return C++ of a kernel file: shared memory as macros, which C++ cannot say, and a table of the kernels."""
    text = kernels.read_text("utf-8")
    bare = COMMENT.sub("", text)
    names = re.findall(
        r'extern\s+"C"\s+__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+'
        r"(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(",
        bare,
    )
    if len(names) != len(re.findall(r"__global__", bare)) or not names:
        raise RuntimeError(f'{kernels}: every kernel must be written extern "C" __global__ void NAME(')
    text = re.sub(
        r"(?<!extern )__shared__\s+([\w:]+(?: [\w:]+)*)\s+(\w+)\s*((?:\[[^\]]*\]\s*)*);", r"SHARED(\1, \2, \3);", text
    )
    if "__shared__" in COMMENT.sub("", text):
        raise RuntimeError(f"{kernels}: a __shared__ declaration has a form that this build does not know")
    entries = ", ".join(f'host_gpu::describe("{name}", &{name})' for name in names)
    return (
        f'#line 1 "{kernels}"\n{text}\n'
        f"const host_gpu::Kernel host_gpu::kernels[] = {{{entries}}};\n"
        f"const unsigned host_gpu::kernel_count = {len(names)};\n"
    )
