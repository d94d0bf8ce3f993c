"""`python -m engines COMMAND`: turn a trained checkpoint into a bundle that runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from metro_edge.cli import Parser, quiet_opencv, run_command

COMMANDS = ("convert", "finetune", "quantize")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, see `metro_edge.cli.run_command`."""
    quiet_opencv()
    return run_command(_parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m engines", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        importlib.import_module(f"engines.commands.{name}").add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
