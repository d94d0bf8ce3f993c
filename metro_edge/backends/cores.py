"""Which CPU cores an engine's threads run on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from metro_edge.errors import UserError
from metro_edge.machine import usable_cores


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral)


def check_cores(threads: int | None, affinity: Sequence[int] | None) -> tuple[int | None, tuple[int, ...] | None]:
    """Return the number of threads, None for the engine's choice, and the cores they run on, None for any.

    Args:
        threads: CPU threads of one inference.
        affinity: numbers of cores, as the operating system counts them, one for each thread.

    Raises:
        UserError: fewer than one thread or more than cores that this process may use, cores that it may not use,
            named twice, of another number than the threads, or a system that pins no threads.
    """
    most = usable_cores()
    # Engines' threads spin: more than cores cost seconds a call.
    if threads is not None and not (_is_whole(threads) and 1 <= threads <= most):
        raise UserError(
            f"the number of threads must be 1 to {most}, the cores that this process may use; got {threads}"
        )
    if affinity is None:
        return threads, None
    cores = tuple(affinity)
    if sys.platform != "linux":
        raise UserError(f"affinity is for Linux alone; {sys.platform} does not pin a process's threads to cores")
    usable = sorted(os.sched_getaffinity(0))
    if not cores or len(set(cores)) != len(cores) or not set(cores) <= set(usable):
        raise UserError(
            f"affinity must be different cores of {', '.join(map(str, usable))}, which this process may use; "
            f"got {', '.join(map(str, cores)) or 'none'}"
        )
    if threads not in (None, len(cores)):
        raise UserError(f"affinity names one core per thread: got {len(cores)} cores for {threads} threads")
    return len(cores), cores


@contextmanager
def running_on(cores: Sequence[int] | None) -> Iterator[None]:
    """Keep the calling thread, and threads that it starts, on some cores inside the block; None changes nothing."""
    if cores is None or sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
