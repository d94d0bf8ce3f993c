"""`python -m benchmarks live`: speed, memory, identities and jitter of the live pipeline."""

from __future__ import annotations

import argparse
from typing import Any

from metro_edge.errors import UserError

PARTS = ("speed", "flight", "people", "memory", "drawing", "identities", "smoothing")


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "live",
        help="speed, memory, identities and jitter of the live pipeline",
        description="Measure the live pipeline on generated clips with the shipped bundle and print tables. Flight, "
        "identities and smoothing render their scenes first (minutes, once).",
    )
    parser.add_argument("parts", metavar="PART", nargs="*", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--frames", metavar="N", type=int, default=3000, help="of the memory's run (default: 3000)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.live import run_parts

    if unknown := set(args.parts) - set(PARTS):
        raise UserError(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    if args.frames < 200:
        raise UserError(f"--frames must be at least 200, got {args.frames}")
    run_parts(args.parts or list(PARTS), args.frames)
    return 0
