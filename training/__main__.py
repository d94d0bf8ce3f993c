"""`python -m training COMMAND`: make the body, the data and the pictures of it; train and evaluate."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from metro_edge.cli import Parser, quiet_opencv, run_command

COMMANDS = ("fit", "evaluate", "publish", "body", "sizes", "sheet", "tsv")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, see `metro_edge.cli.run_command`."""
    quiet_opencv()
    parser = Parser(prog="python -m training", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        importlib.import_module(f"training.commands.{name}").add_parser(subparsers)
    return run_command(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
