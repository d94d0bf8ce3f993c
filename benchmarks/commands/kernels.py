"""`python -m benchmarks kernels`: the CUDA kernels on this GPU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.commands._common import add_output, said


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "kernels",
        help="time the CUDA kernels on this GPU",
        description="Time each CUDA kernel on this GPU beside its NumPy and OpenCV twin, print one table and save it.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="folder or .zip (default: shipped)")
    parser.add_argument("--people", metavar="N", type=int, nargs="+", default=[1, 4, 16], help="default: 1 4 16")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.kernels import run as measure

    words = ["python -m benchmarks kernels", *([str(args.bundle)] if args.bundle else [])]
    command = " ".join([*words, "--people", *map(str, args.people)])
    markdown, paths = measure(args.bundle, args.people, args.output, command)
    return said(markdown, paths)
