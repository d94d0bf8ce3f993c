"""The CUDA context that everything of one GPU shares: the primary one, as PyTorch, CuPy and TensorRT use it, too."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from metro_edge.backends.gpu import Gpu
from metro_edge.cuda.driver import with_advice
from metro_edge.cuda.loading import load_pycuda
from metro_edge.errors import DeviceError, UserError

if TYPE_CHECKING:
    from typing_extensions import Self


class Closable(Protocol):
    """What frees memory."""

    def close(self) -> None:
        """Free it; doing it twice is fine."""


class _Entered(threading.local):
    """The contexts whose `with` this thread is inside, the innermost last."""

    def __init__(self) -> None:
        self.contexts: list[DeviceContext] = []


_entered = _Entered()


class DeviceContext:
    """The primary context of a GPU, current inside `with`, in any thread and also several times.

        context = DeviceContext(0)
        with context:
            ...

    A DeviceBuffer that is made inside belongs to it, and is freed when it is closed.

    Attributes:
        ordinal: number of the GPU.
        device: pycuda.driver.Device.
        driver: the module pycuda.driver.

    Raises:
        MissingExtraError: without PyCUDA.
        UserError: without driver or GPU, or with fewer GPUs than `ordinal` says.
    """

    def __init__(self, ordinal: int = 0) -> None:
        if not isinstance(ordinal, int):
            raise UserError(f"the number of a GPU must be whole, got {ordinal!r}")
        self.driver = load_pycuda()
        self.ordinal = ordinal
        self._left = threading.Condition()
        self._inside: list[int] = []  # threads, once for each `with`
        self._closed = False
        self._buffers: weakref.WeakSet[Closable] = weakref.WeakSet()
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
        return self._closed

    def close(self, free: Callable[[], None] | None = None) -> None:
        """Free the buffers that were made in it, and give it back, when no other thread is inside. Twice is fine.

        After that PyCUDA would free nothing that was allocated in it, also where others hold the primary context.

        Args:
            free: called first, with the context current: frees what else was allocated in it.

        Raises:
            UserError: the calling thread itself is inside.
        """
        with self._left:
            if self._closed:
                return
            self.check_outside()
            self._closed = True
            self._left.wait_for(lambda: not self._inside)
        self._context.push()
        try:
            if free is not None:
                free()
            for buffer in list(self._buffers):
                buffer.close()
        finally:
            self.driver.Context.pop()
            self._context.detach()

    def __enter__(self) -> Self:
        with self._left:
            if self._closed:
                raise UserError("this CUDA context is closed")
            self._context.push()
            self._inside.append(threading.get_ident())
        _entered.contexts.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _entered.contexts.pop()
        self.driver.Context.pop()
        with self._left:
            self._inside.remove(threading.get_ident())
            self._left.notify_all()

    def check_outside(self) -> None:
        """Raise UserError where the calling thread is inside this context's `with`, where it cannot be closed."""
        if threading.get_ident() in self._inside:
            raise UserError("a CUDA context cannot be closed inside its own `with`: leave it first")

    def owns(self, buffer: Closable) -> None:
        """Let a buffer go with the context, at the latest."""
        self._buffers.add(buffer)


def entered_context() -> DeviceContext | None:
    """Return the context whose `with` this thread is inside, None where it is inside none."""
    return _entered.contexts[-1] if _entered.contexts else None


@contextmanager
def device_errors(driver: Any, doing: str) -> Iterator[None]:
    """Turn what PyCUDA raises inside into a DeviceError that says what failed, and what to do where the GPU is lost."""
    try:
        yield
    except driver.MemoryError as error:
        raise DeviceError(f"{doing}: no memory left ({error}): close other programs, or allow fewer people") from None
    except driver.Error as error:
        raise DeviceError(with_advice(f"{doing}: {error}")) from None
