"""`metro-edge COMMAND`: parsing and printing only, one module per command."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from metro_edge.errors import UserError

COMMANDS = ("run", "view", "demo", "info", "build", "plans", "doctor", "selftest", "export-triton")
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; their modules load nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="metro-edge",
        description="3D joints and a body mesh of every person in a picture, with METRO.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"metro_edge.cli.{name.replace('-', '_')}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 done, 2 a mistake in what was given, 130 interrupted."""
    quiet_opencv()
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.version:
        from metro_edge import __version__

        print(f"metro-edge {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return EXIT_USER_ERROR
    return run_command(args)


def quiet_opencv() -> None:
    """Silence what OpenCV logs about damaged files, which the error line says better; call before it is loaded."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")


def printable(text: str) -> str:
    """Return one line without control characters: a stranger's text may not steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def run_command(args: argparse.Namespace) -> int:
    """Call `args.run(args)` and return the exit code; a user's mistake is printed in one line.

    The four command lines of the project end here: `metro-edge`, `python -m training`, `engines` and `benchmarks`.
    """
    try:
        return int(args.run(args))
    except UserError as error:
        _close_progress_bars()
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        _close_progress_bars()
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _close_progress_bars() -> None:
    """Clear the bars that an error left open, which the error line would be written into; loads nothing."""
    if (tqdm := sys.modules.get("tqdm")) is None:
        return
    bars = sorted(getattr(tqdm.tqdm, "_instances", ()), key=lambda bar: -abs(bar.pos))
    for bar in bars:  # from the lowest line up
        bar.close()
    if bars:
        print(end="\r", file=sys.stderr)
