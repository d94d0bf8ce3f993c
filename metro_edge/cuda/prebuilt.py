"""The PTX that ships in the wheel and cubins that may lie beside it; `python -m metro_edge.cuda.prebuilt` writes PTX.

PTX is compiled by the driver for the GPU at hand, also for GPUs that came after it. Every file begins with the hash of
the sources that it was made from, so that one that fell behind is never used.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from metro_edge.cuda.toolchain import KERNEL_FILES, KERNELS, OPTIONS, compile_with_nvcc, source_of
from metro_edge.files import write_bytes

LOGGER = logging.getLogger("metro_edge.cuda")
OLDEST = "compute_75"  # Turing; Jetsons from Orin (8.7) on
# The version of the PTX language that CUDA 11.4 (JetPack 5) reads. nvcc writes its own version, which older drivers
# refuse; the kernels need nothing newer, and ptxas checks that (tests/metro_edge/cuda/test_toolchain.py).
PTX_VERSION = "7.4"


def source_hash(name: str) -> str:
    """Return the SHA-256 of a kernel file, the headers beside it and the compiler's options; raises UserError."""
    digest = hashlib.sha256(" ".join(OPTIONS).encode())
    for path in (source_of(name), *sorted(KERNELS.glob("*.cuh"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def ptx_path(name: str) -> Path:
    """Return where the shipped PTX of a kernel file is."""
    return KERNELS / f"{name}.ptx"


def cubin_path(name: str, capability: tuple[int, int]) -> Path:
    """Return where a cubin for GPUs of one compute capability may be put."""
    return KERNELS / f"{name}.sm_{capability[0]}{capability[1]}.cubin"


def portable_ptx(name: str) -> bytes:
    """Compile a kernel file to the PTX that ships; raises UserError without nvcc."""
    text = compile_with_nvcc(name, OLDEST)[0].decode()
    text = re.sub(r"^\.version .*$", f".version {PTX_VERSION}", text, count=1, flags=re.MULTILINE)
    return f"// sources {source_hash(name)}\n{text}".encode()


def read_ptx(name: str) -> bytes | None:
    """Return the shipped PTX; None where there is none or it was made from other sources."""
    path = ptx_path(name)
    if not path.is_file():
        return None
    text = path.read_bytes()
    if text.split(b"\n", 1)[0] != f"// sources {source_hash(name)}".encode():
        LOGGER.warning("%s was made from other sources and is left out: make ptx", path)
        return None
    return text + b"\0"  # the driver is given no length


def main() -> None:
    """Write the PTX of every kernel file."""
    for name in KERNEL_FILES:
        write_bytes(ptx_path(name), portable_ptx(name))
        print(f"wrote {ptx_path(name)}")


if __name__ == "__main__":
    main()
