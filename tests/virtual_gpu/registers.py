"""Registers and spills of every kernel by architecture: `python -m tests.virtual_gpu.registers` prints a table."""

from __future__ import annotations

import re

from metro_edge.cuda.toolchain import KERNEL_FILES, compile_with_nvcc

# Turing to Blackwell; 87 is Orin, 110 Thor, 121 GB10. CUDA 13's nvcc begins with 75.
ARCHITECTURES = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
REPORT = re.compile(
    r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r"\s+ptxas info\s+: Used (\d+) registers"
)


def resources(name: str, architecture: str) -> dict[str, tuple[int, int]]:
    """Compile a kernel file with nvcc; returns kernel -> (registers, bytes spilled and of stack)."""
    log = compile_with_nvcc(name, architecture)[1]
    return {
        kernel: (int(registers), sum(map(int, spilled)))
        for kernel, *spilled, registers in REPORT.findall(re.sub(r"\n\s+", "\n    ", log))
    }


def main() -> None:
    print(f"| kernel | {' | '.join(f'sm_{a}' for a in ARCHITECTURES)} |")
    print(f"| --- |{' ---: |' * len(ARCHITECTURES)}")
    for name in KERNEL_FILES:
        columns = [resources(name, f"sm_{a}") for a in ARCHITECTURES]
        for kernel in columns[0]:
            cells = [f"{r}" + (f" + {s} B spilled" if s else "") for r, s in (column[kernel] for column in columns)]
            print(f"| `{kernel}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
