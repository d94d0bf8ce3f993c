"""Which readers this machine has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.power.jetson import Ina3221Reader
from benchmarks.power.nvml import NvmlReader
from benchmarks.power.rapl import RaplReader
from benchmarks.power.reader import NoReaderError, Reader
from benchmarks.power.sysfs import SysfsReader
from benchmarks.power.tegrastats import TegrastatsReader
from metro_edge.errors import UserError

READERS: dict[str, Callable[[Path], Reader]] = {
    "ina3221": Ina3221Reader,
    "tegrastats": lambda root: TegrastatsReader(),
    "nvml": lambda root: NvmlReader(),
    "rapl": RaplReader,
}


def open_readers(stack: ExitStack, wanted: Sequence[str], on_gpu: bool, root: Path = Path("/")) -> list[Reader]:
    """Open readers of power, then one of heat and clocks.

    Without names: a Jetson's rails, which count CPU and GPU together; else the processors' counters, and the GPU's
    where the network runs on one, which it must have.

    Args:
        stack: closes them.
        wanted: names of READERS; all of them must be there.
        on_gpu: whether the network runs on a GPU.
        root: where the file system begins.

    Raises:
        UserError: an unknown name.
        NoReaderError: a reader that is not here, or none for this processor: with what was looked for.
    """
    if unknown := [name for name in wanted if name not in READERS]:
        raise UserError(f"unknown reader {', '.join(unknown)}; known: {', '.join(READERS)}")
    opened = [stack.enter_context(READERS[name](root)) for name in dict.fromkeys(wanted)]
    if not opened:
        opened = _found(stack, on_gpu, root)
    return [*opened, stack.enter_context(SysfsReader(root))]


def _found(stack: ExitStack, on_gpu: bool, root: Path) -> list[Reader]:
    missing = []

    def tried(name: str) -> list[Reader]:
        try:
            return [stack.enter_context(READERS[name](root))]
        except NoReaderError as error:
            missing.append(f"{name}: {error}")
            return []

    if board := tried("ina3221") or tried("tegrastats"):
        return board
    gpu = tried("nvml") if on_gpu else []
    processors = tried("rapl")
    if not (gpu if on_gpu else processors):
        where = "GPU" if on_gpu else "CPU"
        raise NoReaderError(f"nothing here measures the power of the {where}. {'; '.join(missing)}")
    return gpu + processors
