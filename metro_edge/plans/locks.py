"""One process at a time: a lock that the operating system gives back when its holder dies."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from metro_edge.errors import UserError
from metro_edge.files import reason

POLL_S = 0.1


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of the file `path`, which is made and stays; waits for other processes and threads.

    Args:
        path: of the lock file, in a folder that can be written.
        waiting: called once when the lock is another's.

    Raises:
        UserError: the file cannot be made.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from None
    try:
        while not _take(handle):
            if waiting is not None:
                waiting()
                waiting = None
            time.sleep(POLL_S)
        yield
    finally:
        os.close(handle)  # gives the lock back


def _take(handle: int) -> bool:
    if sys.platform == "win32":
        windows = importlib.import_module("msvcrt")
        try:
            windows.locking(handle, windows.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    unix = importlib.import_module("fcntl")
    try:
        unix.flock(handle, unix.LOCK_EX | unix.LOCK_NB)
    except BlockingIOError:
        return False
    return True
