"""The driver's answers, from a small real library that stands in for it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from metro_edge.backends.gpu import Gpu, first_gpu, gpu_from_driver

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return flags ? 1 : INIT; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, "Orin", (size_t)size);
  return device == 40 ? 0 : 101;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
  return device == 40 ? 0 : 101;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(("init", "expected"), [(0, Gpu("Orin", "8.7")), (100, None)])
def test_gpu_from_driver(tmp_path: Path, init: int, expected: Gpu | None) -> None:
    source, library = tmp_path / "driver.c", tmp_path / "libdriver.so"
    source.write_text(DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", f"-DINIT={init}", str(source), "-o", str(library)], check=True)
    assert gpu_from_driver(ctypes.CDLL(str(library))) == expected


def test_first_gpu_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert first_gpu() is None
