"""`python -m benchmarks html`: saved results as one page."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.commands._common import shown_paths


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "html",
        help="saved results of any kind as one HTML page",
        description="Write one HTML file of saved results: tables, plots and how each was measured. It holds "
        "everything itself and loads nothing. Results of one kind that differ in data or protocol are refused.",
    )
    parser.add_argument("results", metavar="RESULT.json", type=Path, nargs="+", help="in the order to show them")
    parser.add_argument("-o", "--output", metavar="REPORT.html", type=Path, default=Path("report.html"))
    parser.add_argument("--mixed", action="store_true", help="show results that differ, too, and say in what")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.html.report import write_html

    words = [*shown_paths(args.results), "-o", *shown_paths([args.output]), *(["--mixed"] if args.mixed else [])]
    write_html(args.results, args.output, args.mixed, shlex.join(["python", "-m", "benchmarks", "html", *words]))
    print(f"wrote {args.output}", file=sys.stderr)
    return 0
