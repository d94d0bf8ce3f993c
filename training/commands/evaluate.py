"""`python -m training evaluate`: accuracy of a checkpoint on held-out samples, beside baselines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "evaluate", help="accuracy of a checkpoint on held-out samples, beside baselines"
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, help="samples (default: all of the run's validation samples)")
    parser.add_argument("-o", "--output", type=Path, help="write the figures to this JSON file as well")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the table."""
    from metro_edge.files import write_json
    from training.checkpoint import load_checkpoint
    from training.report import accuracy_report, accuracy_table

    report = accuracy_report(load_checkpoint(args.checkpoint), count=args.count)
    print(accuracy_table(report))
    if args.output:
        write_json(args.output, report)
    return 0
