"""`python -m training publish`: a run's checkpoint as a small file with its accuracy inside."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "publish", help="write a run's checkpoint as a small file with its accuracy inside"
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Publish and print the accuracy."""
    from training.checkpoint import load_checkpoint
    from training.files import check_writable
    from training.report import accuracy_table, publish

    check_writable(args.output)
    published = publish(load_checkpoint(args.checkpoint), args.output)
    print(accuracy_table(published.metrics))
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")
    return 0
