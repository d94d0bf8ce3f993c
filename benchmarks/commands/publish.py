"""`python -m benchmarks publish`: all results of a folder as one leaderboard."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.commands._common import RESULTS, shown_paths


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "publish",
        help="all results of a folder as one leaderboard",
        description="Write the leaderboard of a folder's results, the newest of each bundle, device, backend and "
        "precision, as a page and as Markdown, with published figures in tables of their own.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", default=RESULTS, help=f"default: {RESULTS}")
    page, markdown = Path("benchmarks") / "leaderboard.html", Path("docs") / "leaderboard.md"
    parser.add_argument("-o", "--output", metavar="PAGE.html", type=Path, default=page, help=f"default: {page}")
    parser.add_argument("--markdown", metavar="PAGE.md", type=Path, default=markdown, help=f"default: {markdown}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.html.leaderboard import publish

    folder, page, markdown = shown_paths([args.folder, args.output, args.markdown])
    command = shlex.join(["python", "-m", "benchmarks", "publish", folder, "-o", page, "--markdown", markdown])
    publish(args.folder, args.output, args.markdown, command)
    print(f"wrote {args.output}\nwrote {args.markdown}", file=sys.stderr)
    return 0
