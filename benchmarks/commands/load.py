"""`python -m benchmarks load`: several cameras before one engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.commands._common import add_engine, add_output, said


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "load",
        help="latency of several cameras before one engine",
        description="Let several cameras send frames to one engine, each waiting for its answer (closed loop) or at a "
        "fixed rate (open loop), and search the rate at which deadlines break; print tables and save them as JSON, "
        "Markdown and PNG.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder or .zip")
    add_engine(parser)
    add_output(parser)
    parser.add_argument("--precision", metavar="P", default="fp32", help="default: fp32")
    parser.add_argument("--cameras", metavar="N", type=int, nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    parser.add_argument(
        "--rate", metavar="HZ", type=float, nargs="+", default=[5.0, 10.0, 30.0], help="of each camera (5 10 30)"
    )
    parser.add_argument("--loop", metavar="L", nargs="+", default=["closed", "open"], help="closed, open (both)")
    parser.add_argument("--arrivals", metavar="A", default="periodic", help="periodic (default) or poisson")
    parser.add_argument("--seconds", metavar="S", type=float, default=4.0, help="of each cell (4)")
    parser.add_argument("--deadline-ms", metavar="D", type=float, default=100.0, help="from due to mesh (100)")
    parser.add_argument("--queue", metavar="N", type=int, default=1, help="frames of a camera that may wait (1)")
    parser.add_argument("--allowed", metavar="X", type=float, default=0.01, help="share that may miss (0.01)")
    parser.add_argument(
        "--tolerance", metavar="X", type=float, default=0.05, help="of the search for the largest rate (0.05); 0: none"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the arrivals (0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.load import Settings
    from benchmarks.load import run as measure

    settings = Settings(
        bundle=args.bundle,
        precision=args.precision,
        backend=args.backend,
        threads=args.threads,
        cameras=tuple(dict.fromkeys(args.cameras)),
        rates_hz=tuple(dict.fromkeys(args.rate)),
        loops=tuple(dict.fromkeys(args.loop)),
        arrivals=args.arrivals,
        seconds=args.seconds,
        deadline_ms=args.deadline_ms,
        queue=args.queue,
        allowed=args.allowed,
        tolerance=args.tolerance or None,
        seed=args.seed,
        output=args.output,
    )
    return said(*measure(settings))
