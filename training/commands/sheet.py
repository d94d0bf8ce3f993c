"""`python -m training sheet`: a contact sheet of generated people."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser("sheet", help="a contact sheet of generated people")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=64)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the sheet."""
    from training.data.generator import GeneratedPeople
    from training.data.sheet import contact_sheet
    from training.files import check_writable

    check_writable(args.output)
    contact_sheet(GeneratedPeople(args.seed, args.count), args.count, args.output)
    print(f"wrote {args.output}")
    return 0
