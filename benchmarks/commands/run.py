"""`python -m benchmarks run`: latency and accuracy of every precision of a bundle on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.commands._common import add_engine, add_output, said


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "run",
        help="measure a bundle on this machine",
        description="Measure latency and accuracy of every precision of a bundle, print one table and save it as JSON "
        "and Markdown. The first run renders its samples (minutes); later ones read them from runs/people.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder or .zip")
    parser.add_argument("--samples", metavar="N", type=int, default=2000, help="for the accuracy (default: 2000)")
    parser.add_argument(
        "--precision",
        metavar="P",
        nargs="+",
        default=[],
        help="fp32, fp16, int8 (default: all of the bundle); fp32 is measured along as the reference",
    )
    add_engine(parser)
    parser.add_argument(
        "--beside",
        metavar="B",
        nargs="+",
        default=[],
        help="further engines on the same processor, measured in turns with the first and against its fp32",
    )
    parser.add_argument("--runs", metavar="N", type=int, default=100, help="calls timed of each (default: 100)")
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        default="generated",
        help="folder of shards that training wrote, or the word generated, for people rendered now (default); with "
        "--protocol a data set's files",
    )
    parser.add_argument("--protocol", metavar="NAME", default="", help="compare by it: docs/evaluation.md has them")
    parser.add_argument("--smpl", metavar="DIR", default="", help="SMPL files, for data labelled in pose and shape")
    parser.add_argument("--no-motion", action="store_true", help="leave out the people who move")
    parser.add_argument("--no-crops", action="store_true", help="leave out other crops of the first samples")
    parser.add_argument("--seed", metavar="N", type=int, help="of generated people (default: 3; training uses 1 and 2)")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.people import TEST_SEED
    from benchmarks.run import Settings
    from benchmarks.run import run as measure

    settings = Settings(
        bundle=args.bundle,
        samples=args.samples,
        precisions=tuple(dict.fromkeys(args.precision)),
        backend=args.backend,
        beside=tuple(args.beside),
        threads=args.threads,
        runs=args.runs,
        data=args.data,
        seed=TEST_SEED if args.seed is None else args.seed,
        output=args.output,
        rules=args.protocol,
        smpl=args.smpl,
        motion=not args.no_motion,
        crops=not args.no_crops,
    )
    _, markdown, paths = measure(settings)
    return said(markdown, paths)
