"""`python -m training sizes`: what the sizes of the edge preset cost on this machine."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "sizes", help="what the sizes of the edge preset cost on this machine (minutes)"
    )
    parser.add_argument("--runs", type=int, default=40)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print the table."""
    from training.sizes import size_table

    print(size_table(args.runs))
    return 0
