"""`python -m benchmarks stages`: latency of each stage from capture to mesh."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.commands._common import add_engine, add_output, said


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "stages",
        help="latency of each stage from capture to mesh, throughput and cold start",
        description="Measure each stage from the decoder to the mesh and its overlay until it has settled, frames that "
        "miss the period of a rate, throughput and cold starts; print tables and save them as JSON, Markdown and PNG.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder or .zip")
    add_engine(parser)
    add_output(parser)
    parser.add_argument("--precision", metavar="P", nargs="+", default=[], help="default: all of the bundle")
    parser.add_argument("--source", metavar="VIDEO", type=Path, help="default: the shipped clip at 1280 x 720")
    parser.add_argument(
        "--box",
        metavar="N",
        type=float,
        nargs=4,
        help="x, y, width, height of the person in VIDEO (default: all of it)",
    )
    parser.add_argument("--rate", metavar="HZ", type=float, default=30.0, help="its period is the deadline (30)")
    group = parser.add_argument_group("when it has settled")
    group.add_argument("--window", metavar="N", type=int, default=50, help="frames of a window (50)")
    group.add_argument("--windows", metavar="N", type=int, default=3, help="windows in a row that must agree (3)")
    group.add_argument("--within", metavar="X", type=float, default=0.05, help="share that they may differ by (0.05)")
    group.add_argument("--min-frames", metavar="N", type=int, default=200, help="of each precision, at least (200)")
    group.add_argument("--max-frames", metavar="N", type=int, default=1000, help="of each precision, at most (1000)")
    group = parser.add_argument_group("throughput and cold start")
    group.add_argument("--runs", metavar="N", type=int, default=20, help="calls of each batch and crowd (20)")
    group.add_argument("--batch", metavar="N", type=int, nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    group.add_argument("--people", metavar="N", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="1 2 4 8 16")
    group.add_argument("--streams", metavar="N", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    group.add_argument("--stream-seconds", metavar="S", type=float, default=3.0, help="of each number of streams (3)")
    group.add_argument("--repeats", metavar="N", type=int, default=3, help="cold starts of each precision (3)")
    group.add_argument("--plan-for", metavar="GPU", help="time building a plan ahead of time, such as for sm86")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.stability import Stability
    from benchmarks.stages import Settings
    from benchmarks.stages import run as measure

    settings = Settings(
        bundle=args.bundle,
        precisions=tuple(dict.fromkeys(args.precision)),
        source=args.source,
        box=None if args.box is None else tuple(args.box),
        backend=args.backend,
        threads=args.threads,
        rate_hz=args.rate,
        stability=Stability(args.window, args.windows, args.within, args.min_frames, args.max_frames),
        runs=args.runs,
        batches=tuple(args.batch),
        people=tuple(args.people),
        streams=tuple(args.streams),
        stream_s=args.stream_seconds,
        repeats=args.repeats,
        plan_for=args.plan_for,
        output=args.output,
    )
    return said(*measure(settings))
