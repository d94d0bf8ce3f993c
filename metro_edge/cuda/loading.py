"""Loading kernels into the current CUDA context: a cubin, the shipped PTX, or compiled on the spot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from metro_edge.cuda import prebuilt, toolchain
from metro_edge.errors import MissingExtraError, UserError

LOGGER = logging.getLogger("metro_edge.cuda")
Capability = tuple[int, int]


@dataclass(frozen=True)
class Image:
    """What the driver loads.

    Attributes:
        origin: where it comes from, for the log.
        data: a cubin, or PTX that ends with a zero byte.
    """

    origin: str
    data: bytes = field(repr=False)


def shipped_or_compiled(name: str, capability: Capability) -> Iterator[Image]:
    """Yield images of a kernel file for a GPU, best first: cubin, shipped PTX, nvcc, NVRTC.

    The compilers are asked only when an image before was refused, for instance by a driver older than the PTX.
    """
    cubin = prebuilt.cubin_path(name, capability)
    if cubin.is_file():
        yield Image(f"cubin {cubin.name}", cubin.read_bytes())
    if ptx := prebuilt.read_ptx(name):
        yield Image(f"shipped PTX {name}.ptx", ptx)
    architecture = f"sm_{capability[0]}{capability[1]}"
    for compiler in (_by_nvcc, _by_nvrtc):
        try:
            image = compiler(name, architecture)
        except toolchain.CompileError as error:
            LOGGER.info("%s: %s", name, error)
        else:
            yield image


def _by_nvcc(name: str, architecture: str) -> Image:
    return Image(f"{architecture} compiled by nvcc", toolchain.compile_with_nvcc(name, architecture)[0])


def _by_nvrtc(name: str, architecture: str) -> Image:
    return Image(f"{architecture} compiled by NVRTC", toolchain.compile_with_nvrtc(name, architecture))


class KernelLoader:
    """The kernels of one CUDA context, each file loaded when a kernel of it is first asked for.

        loader = KernelLoader()
        crop = loader.function("preprocess", "crop")

    The context must be current, at each call. Which image was taken is logged to `metro_edge.cuda`.

    Args:
        choose: gives the images of a kernel file for a compute capability, best first; another choice than
            `shipped_or_compiled` is for tests.
    """

    def __init__(self, choose: Callable[[str, Capability], Iterator[Image]] = shipped_or_compiled) -> None:
        self._choose = choose
        self._modules: dict[str, Any] = {}
        self._functions: dict[tuple[str, str], Any] = {}

    def function(self, file: str, kernel: str) -> Any:
        """Return the pycuda.driver.Function `kernel` of a kernel file.

        Raises:
            MissingExtraError: without PyCUDA.
            UserError: no context, or no image that the driver takes; the text says what each one met.
        """
        key = (file, kernel)
        if key not in self._functions:
            if file not in self._modules:
                self._modules[file] = self._load(file)
            self._functions[key] = self._modules[file].get_function(kernel)
        return self._functions[key]

    def _load(self, file: str) -> Any:
        driver = load_pycuda()
        try:
            device = driver.Context.get_device()
        except driver.Error as error:
            raise UserError(f"no CUDA context in this thread ({error}): push one before the first kernel") from None
        capability = device.compute_capability()
        refused = []
        for image in self._choose(file, capability):
            try:
                module = driver.module_from_buffer(image.data)
            except driver.Error as error:
                LOGGER.warning("%s: the driver refuses the %s: %s", file, image.origin, error)
                refused.append(f"{image.origin}: {error}")
                continue
            LOGGER.info("%s: %s on %s", file, image.origin, device.name())
            return module
        tried = "; ".join(refused) or "there is no prebuilt one"
        version = ".".join(map(str, capability))
        raise UserError(
            f"no image of the kernels {file} for this GPU, compute capability {version}: {tried}. "
            "Install nvcc, or NVRTC of the driver's CUDA version (pip install nvidia-cuda-nvrtc-cu12)"
        )


def load_pycuda() -> Any:
    """Return pycuda.driver; raises UserError where PyCUDA or the driver is missing."""
    try:
        import pycuda.driver as driver
    except ModuleNotFoundError:
        raise MissingExtraError("pycuda", "tensorrt", "run CUDA kernels") from None
    except ImportError as error:
        raise UserError(f"PyCUDA does not find the CUDA driver: {error}") from None
    return driver
