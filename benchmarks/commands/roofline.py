"""`python -m benchmarks roofline`: the least time on known devices, predicted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.commands._common import add_output, said


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "roofline",
        help="predict the least time on known devices",
        description="Count multiply-adds and bytes of every layer of a bundle's FP32 graph and predict, from published "
        "peaks, the least time on each device at each precision and what bounds it. The network is not timed; of the "
        "device this-cpu, the peaks are measured (a quarter of a minute).",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder or .zip")
    parser.add_argument("--precision", metavar="P", nargs="+", default=[], help="default: fp32 fp16 int8; also fp8")
    parser.add_argument(
        "--device", metavar="NAME", nargs="+", default=[], help="of the table, or this-cpu (default: all of the table)"
    )
    parser.add_argument("--batch", metavar="N", type=int, default=1, help="images of a call (default: 1)")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.roofline import run as measure

    markdown, paths = measure(args.bundle, args.precision, args.device, args.batch, args.output)
    return said(markdown, paths)
