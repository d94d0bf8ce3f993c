"""The CUDA context that everything of one GPU shares: the primary one, as PyTorch, CuPy and TensorRT use it, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from metro_edge.backends.gpu import Gpu
from metro_edge.cuda.driver import with_advice
from metro_edge.cuda.loading import load_pycuda
from metro_edge.errors import DeviceError, UserError

if TYPE_CHECKING:
    from typing_extensions import Self


class DeviceContext:
    """The primary context of a GPU, current inside `with`, in any thread and also several times.

        context = DeviceContext(0)
        with context:
            ...

    Attributes:
        ordinal: number of the GPU.
        device: pycuda.driver.Device.
        driver: the module pycuda.driver.

    Raises:
        MissingExtraError: without PyCUDA.
        UserError: without driver or GPU, or with fewer GPUs than `ordinal` says.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self.driver = load_pycuda()
        self.ordinal = ordinal
        try:
            self.driver.init()
            count = self.driver.Device.count()
            if not 0 <= ordinal < count:
                raise UserError(f"there are {count} GPUs, numbered from 0; number {ordinal} was asked for")
            self.device = self.driver.Device(ordinal)
            self._context: Any = self.device.retain_primary_context()
        except self.driver.Error as error:
            raise UserError(f"no GPU can be used: {error}") from None

    @property
    def handle(self) -> int:
        """CUcontext, as a number."""
        return int(self._context.handle)

    @property
    def name(self) -> str:
        """Name of the GPU."""
        return str(self.device.name())

    @property
    def gpu(self) -> Gpu:
        """Name and compute capability."""
        return Gpu(self.name, ".".join(map(str, self.device.compute_capability())))

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._context is None

    def close(self) -> None:
        """Give the primary context back; what was allocated in it must be freed before. Twice is fine."""
        if self._context is not None:
            self._context.detach()
            self._context = None

    def __enter__(self) -> Self:
        if self._context is None:
            raise UserError("this CUDA context is closed")
        self._context.push()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        type(self._context).pop()


@contextmanager
def device_errors(driver: Any, doing: str) -> Iterator[None]:
    """Turn what PyCUDA raises inside into a DeviceError that says what failed, and what to do where the GPU is lost."""
    try:
        yield
    except driver.MemoryError as error:
        raise DeviceError(
            f"{doing}: no device memory left ({error}): close other programs, or allow fewer people"
        ) from None
    except driver.Error as error:
        raise DeviceError(with_advice(f"{doing}: {error}")) from None
