"""`python -m training body`: make the Anny template anew and report how well its parts fit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "body", help="make the Anny template anew and report how well its parts fit"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the template and print its errors."""
    from training.bodies.anny import build_anny_template

    template, errors = build_anny_template()
    template.save(args.output)
    print(f"{template.name}: levels {template.level_sizes}, {args.output.stat().st_size / 1e6:.2f} MB")
    for name, error in errors.items():
        print(f"{name:34s} {error:6.2f} mm")
    return 0
