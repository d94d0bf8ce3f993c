"""`python -m benchmarks table`: the Markdown of a saved result again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser("table", help="print the Markdown of a saved result again")
    parser.add_argument("result", metavar="RESULT.json", type=Path)
    parser.add_argument(
        "--readme",
        metavar="README.md",
        type=Path,
        help="replace the text between <!-- table:begin --> and <!-- table:end --> of this file by it",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.html.kinds import saved_markdown
    from benchmarks.tables import insert_into_readme

    markdown = saved_markdown(args.result)
    if args.readme is not None:
        insert_into_readme(args.readme, saved_markdown(args.result, details=False))
    print(markdown, end="")
    return 0
