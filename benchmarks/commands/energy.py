"""`python -m benchmarks energy`: joules a frame, heat, clocks and throttling."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.commands._common import add_engine, add_output, said


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "energy",
        help="joules a frame, heat, clocks and throttling",
        description="Run the estimator steadily and read power, temperature and clocks from the device itself: a "
        "Jetson's rails, an NVIDIA GPU's counter, or the counters of an x86 processor.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder or .zip")
    parser.add_argument("--seconds", metavar="S", type=float, default=60.0, help="of each precision (default: 60)")
    parser.add_argument("--idle-seconds", metavar="S", type=float, default=10.0, help="before each (default: 10)")
    parser.add_argument("--precision", metavar="P", nargs="+", default=[], help="default: all of the bundle")
    add_engine(parser)
    parser.add_argument("--fps", metavar="F", type=float, help="frames a second (default: as fast as it goes)")
    parser.add_argument(
        "--reader", metavar="R", action="append", default=[],
        help="ina3221, tegrastats, nvml or rapl, may be repeated (default: what this machine has)",
    )  # fmt: skip
    parser.add_argument("--interval-ms", metavar="MS", type=int, default=100, help="between readings (default: 100)")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.energy import Settings
    from benchmarks.energy import run as measure

    settings = Settings(
        bundle=args.bundle,
        seconds=args.seconds,
        idle_seconds=args.idle_seconds,
        precisions=tuple(dict.fromkeys(args.precision)),
        backend=args.backend,
        threads=args.threads,
        fps=args.fps,
        readers=tuple(args.reader),
        interval_ms=args.interval_ms,
        output=args.output,
    )
    _, markdown, paths = measure(settings)
    return said(markdown, paths)
