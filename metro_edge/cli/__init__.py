"""`metro-edge COMMAND`: parsing and printing only, one module per command."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from metro_edge.errors import UserError

COMMANDS = ("run", "view", "demo", "info", "build", "plans", "doctor", "selftest", "export-triton")
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED, EXIT_BROKEN_PIPE, EXIT_TERMINATED = 130, 141, 143  # 128 and the signal's number, as shells say it


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line; its commands do so too."""

    def error(self, message: str) -> NoReturn:
        """Print it and exit with code 2."""
        self.exit(EXIT_USER_ERROR, f"error: {printable(message)}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; their modules load nothing heavy."""
    parser = Parser(
        prog="metro-edge",
        description="3D joints and a body mesh of every person in a picture, with METRO.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"metro_edge.cli.{name.replace('-', '_')}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 done, 2 a mistake in what was given, 130 or 143 interrupted."""
    quiet_opencv()
    with terminated():
        return guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.version:
        from metro_edge import __version__

        print(f"metro-edge {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return EXIT_USER_ERROR
    return int(args.run(args))


def quiet_opencv() -> None:
    """Silence what OpenCV and its FFmpeg log about damaged files and streams that do not answer.

    The error line says it better. Call it before OpenCV is loaded; what the environment says already stays.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET


def printable(text: str) -> str:
    """Return one line without control characters: a stranger's text may not steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def run_command(args: argparse.Namespace) -> int:
    """Call `args.run(args)` and return the exit code; a user's mistake is printed in one line.

    The other command lines of the project end here: `python -m training`, `engines` and `benchmarks`.
    """
    return guarded(lambda: int(args.run(args)))


def guarded(work: Callable[[], int]) -> int:
    """Return the exit code of `work`; mistakes, interruption and an output that cannot be written are no traceback."""
    _prepare_streams()
    try:
        try:
            return work()
        finally:
            sys.stdout.flush()  # here, where it can still be said that it failed
    except UserError as error:
        _close_progress_bars()
        _say(f"error: {printable(' '.join(str(error).split()))}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt as error:
        _close_progress_bars()
        ended = isinstance(error, Terminated)
        _say("interrupted by SIGTERM" if ended else "interrupted")
        return EXIT_TERMINATED if ended else EXIT_INTERRUPTED
    except OSError:
        broken = _output_error()
        if broken is None:
            raise
        _close_progress_bars()
        if isinstance(broken, BrokenPipeError):
            return EXIT_BROKEN_PIPE  # who read it has seen enough, as `head` has
        _say(f"error: cannot write the output: {broken.strerror or broken}")
        return EXIT_USER_ERROR


class Terminated(KeyboardInterrupt):
    """SIGTERM came: everything is cleaned up as after Ctrl-C."""


@contextlib.contextmanager
def terminated() -> Iterator[None]:
    """Under `with`, SIGTERM raises Terminated; outside of the main thread, where none comes, it does nothing.

    Further ones are ignored, also afterwards: `timeout` sends two, and the second may not disturb the cleaning up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)


def _prepare_streams() -> None:
    """Let every text be written: names in another encoding are escaped, and what was closed (`2>&-`) takes it too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (until the end)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _output_error() -> OSError | None:
    """Return why stdout or stderr cannot be written, None where they can; what cannot be written is then let go.

    Otherwise Python would try again at its end, and complain.
    """
    found = None
    for stream in (sys.stdout, sys.stderr):
        try:
            if found is None:
                stream.write("\n")  # what failed before need not be there any more
            stream.flush()
        except OSError as error:
            found = found or error
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), stream.fileno())
    return found


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens
        print(line, file=sys.stderr)


def _close_progress_bars() -> None:
    """Clear the bars that an error left open, which the error line would be written into; loads nothing."""
    if (tqdm := sys.modules.get("tqdm")) is None:
        return
    bars = sorted(getattr(tqdm.tqdm, "_instances", ()), key=lambda bar: -abs(bar.pos))
    with contextlib.suppress(OSError):
        for bar in bars:  # from the lowest line up
            bar.close()
        if bars:
            print(end="\r", file=sys.stderr)
