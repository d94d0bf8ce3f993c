"""The command lines of `html` and `publish`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

RESULTS = Path("benchmarks") / "results"


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    command = commands.add_parser(
        "html",
        help="saved results of any kind as one HTML page",
        description="Write one HTML file of saved results: tables, plots and how each was measured. It holds "
        "everything itself and loads nothing. Results of one kind that differ in data or protocol are refused.",
    )
    command.add_argument("results", metavar="RESULT.json", type=Path, nargs="+", help="in the order to show them")
    command.add_argument("-o", "--output", metavar="REPORT.html", type=Path, default=Path("report.html"))
    command.add_argument("--mixed", action="store_true", help="show results that differ, too, and say in what")
    command.set_defaults(run=_html)

    command = commands.add_parser(
        "publish",
        help="all results of a folder as one leaderboard",
        description="Write the leaderboard of a folder's results, the newest of each bundle, device, backend and "
        "precision, as a page and as Markdown, with published figures in tables of their own.",
    )
    command.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", default=RESULTS, help=f"default: {RESULTS}")
    page, markdown = Path("benchmarks") / "leaderboard.html", Path("docs") / "leaderboard.md"
    command.add_argument("-o", "--output", metavar="PAGE.html", type=Path, default=page, help=f"default: {page}")
    command.add_argument("--markdown", metavar="PAGE.md", type=Path, default=markdown, help=f"default: {markdown}")
    command.set_defaults(run=_publish)


def _html(args: argparse.Namespace) -> int:
    from benchmarks.html.report import write_html

    words = [*_shown(args.results), "-o", *_shown([args.output]), *(["--mixed"] if args.mixed else [])]
    write_html(args.results, args.output, args.mixed, shlex.join(["python", "-m", "benchmarks", "html", *words]))
    print(f"wrote {args.output}", file=sys.stderr)
    return 0


def _publish(args: argparse.Namespace) -> int:
    from benchmarks.html.leaderboard import publish

    words = [*_shown([args.folder]), "-o", *_shown([args.output]), "--markdown", *_shown([args.markdown])]
    command = shlex.join(["python", "-m", "benchmarks", "publish", *words])
    publish(args.folder, args.output, args.markdown, command)
    print(f"wrote {args.output}\nwrote {args.markdown}", file=sys.stderr)
    return 0


def _shown(paths: list[Path]) -> list[str]:
    from benchmarks.run import _shown as shown

    return [shown(path) for path in paths]
