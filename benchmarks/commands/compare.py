"""`python -m benchmarks compare`: what changed between two saved results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "compare",
        help="what changed between two saved results beyond noise",
        description="Print what changed from A to B beyond noise: errors of the same samples paired, all else by "
        "intervals that do not overlap. Results of different data, samples, seeds, protocols or machines are refused.",
    )
    parser.add_argument("a", metavar="A.json", type=Path)
    parser.add_argument("b", metavar="B.json", type=Path)
    parser.add_argument(
        "--allow",
        metavar="KIND",
        action="append",
        default=[],
        help="compare although they differ in this: data, samples, seed, protocol or machine; may be repeated",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.compare import compare, compare_markdown
    from benchmarks.html.kinds import guarded, read_run
    from benchmarks.html.reading import Result

    first, second = read_run(args.a), read_run(args.b)
    a, b = first.data, second.data
    both = Result(Path(f"{args.a} or {args.b}"), first.kind, {})
    print(guarded(both, lambda: compare_markdown(a, b, compare(a, b, args.allow), args.allow)), end="")
    return 0
