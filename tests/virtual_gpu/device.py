"""The device that tests marked `gpu` run on: the stand-in where the environment names it, else a real GPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metro_edge.cuda.loading import Image, KernelLoader
from metro_edge.cuda.toolchain import source_of
from tests.virtual_gpu import build

LIBRARY, SANITIZE, MUTANT = "VIRTUAL_GPU_LIBRARY", "VIRTUAL_GPU_SANITIZE", "VIRTUAL_GPU_MUTANT"


def environment(sanitize: str = "", **more: str) -> dict[str, str]:
    """Build what is missing and return the environment of a process that uses the stand-in; raises UnavailableError."""
    paths = [str(build.pycuda_site()), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, LIBRARY: str(build.driver()), SANITIZE: sanitize, "PYTHONPATH": os.pathsep.join(paths)}
    if sanitize:
        libraries = [
            subprocess.run(
                [build.compiler(), f"-print-file-name={name}"], check=True, capture_output=True, text=True
            ).stdout.strip()
            for name in ("libasan.so", "libstdc++.so")
        ]
        # Python does not free all it has at its end.
        variables |= {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    return {**variables, **more}


def on_stand_in() -> bool:
    """Whether this process runs on the stand-in."""
    return LIBRARY in os.environ


def host_image(name: str, capability: tuple[int, int]) -> Iterator[Image]:
    """Give a kernel file compiled for the host to metro_edge.cuda.loading; tests of faults name another folder."""
    source = source_of(name)
    if folder := os.environ.get(MUTANT):
        source = Path(folder) / source.name
    yield Image("library of the host", build.image(source, os.environ.get(SANITIZE, "")).read_bytes())


class Device:
    """A CUDA context with kernels, the one that tests share."""

    def __init__(self) -> None:
        self.driver = self._import()
        self.driver.init()
        self.context = self.driver.Device(0).retain_primary_context()
        self.context.push()
        self.loader = KernelLoader(host_image) if on_stand_in() else KernelLoader()

    @staticmethod
    def _import() -> Any:
        if on_stand_in():
            # Global, so that PyCUDA finds the driver's functions in it.
            Device.library = ctypes.CDLL(os.environ[LIBRARY], mode=ctypes.RTLD_GLOBAL)
            Device.library.virtual_gpu_count.restype = ctypes.c_long
        try:
            import pycuda.driver as driver
        except ImportError as error:
            pytest.skip(f"no GPU with PyCUDA here ({error}); `make test-cuda` runs these tests on a stand-in")
        return driver

    library: ctypes.CDLL

    def close(self) -> None:
        self.context.pop()
        self.context.detach()

    def count(self, name: str) -> int:
        """Return what the stand-in counted: calls of a driver function, `kernel NAME`, `bytes to device` ..."""
        return int(self.library.virtual_gpu_count(name.encode()))

    def wait(self) -> None:
        """Wait for all work; fails where a kernel wrote outside an allocation."""
        self.context.synchronize()
