"""What TensorRT says while it builds: messages, kept for error reports, and progress, shown as one bar."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

from tqdm import tqdm

LOGGER = logging.getLogger("metro_edge.tensorrt")


def logger_of(trt: object) -> Any:
    """Return the one logger of a library (`tensorrt`, `tensorrt_rtx`), which keeps the first it is given.

    Messages go to Python's logging under `metro_edge.tensorrt`; `start()` forgets the errors, `reason()`
    returns the first since then.
    """
    return _make_logger(cast(Any, trt))


@cache
def _make_logger(trt: Any) -> Any:
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
    }

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def start(self) -> None:
            self.errors = []

        def reason(self) -> str:
            # Later errors mostly repeat that the step containing the first one failed.
            return " ".join(self.errors[0].split()) if self.errors else "the library gave no reason"

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                # Errors are raised with their reason by whoever called the library.
                self.errors.append(message)
                level = logging.INFO
            LOGGER.log(level, "%s", message)

    return Log()


class _Phase:
    """A phase of the build: `steps` steps, `done` of them behind it, inside `parent`."""

    def __init__(self, parent: _Phase | None, steps: int) -> None:
        self.parent = parent
        self.steps = max(steps, 1)
        self.done = 0

    def fraction(self) -> float:
        """How much of the outermost phase is behind, in [0, 1], counting steps of one phase as equal."""
        part = min(self.done / self.steps, 1.0)
        phase = self
        while phase.parent is not None:
            phase = phase.parent
            part = min((phase.done + part) / phase.steps, 1.0)
        return part


class Progress:
    """Nested phases as one bar in per cent, which never goes back. TensorRT reports from several threads."""

    def __init__(self, title: str, *, show: bool) -> None:
        bar_format = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
        self.bar = tqdm(total=100, desc=title, disable=not show, bar_format=bar_format)
        self.cancelled = False
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins inside `parent`."""
        with self._lock:
            self._phases[phase] = _Phase(self._phases.get(parent) if parent else None, steps)
            self.bar.set_postfix_str(phase, refresh=False)

    def step_complete(self, phase: str, step: int) -> bool:
        """Step number `step` of a phase is done; returns whether the build goes on."""
        with self._lock:
            self._advance(phase, step + 1)
        return not self.cancelled

    def phase_finish(self, phase: str) -> None:
        """A phase is over."""
        with self._lock:
            # The last step of a phase is not always reported.
            self._advance(phase, None)
            self._phases.pop(phase, None)

    def _advance(self, phase: str, done: int | None) -> None:
        if (known := self._phases.get(phase)) is not None:
            known.done = known.steps if done is None else done
            self.bar.update(max(0, int(100 * known.fraction()) - self.bar.n))


@contextmanager
def attach_progress(library: object, config: Any, title: str, *, show: bool) -> Iterator[Progress]:
    """Show the build that runs inside the block as a bar; Ctrl-C stops it and is raised after the block."""
    progress = Progress(title, show=show)
    trt: Any = library

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                return progress.step_complete(phase_name, step)
            except KeyboardInterrupt:  # must not cross the library; it stops at the next step instead
                progress.cancelled = True
                return False

        def phase_finish(self, phase_name: str) -> None:
            progress.phase_finish(phase_name)

    monitor = Monitor()  # the library keeps no reference of its own
    config.progress_monitor = monitor
    try:
        with progress.bar:
            yield progress
    finally:
        config.progress_monitor = None
    if progress.cancelled:
        raise KeyboardInterrupt
